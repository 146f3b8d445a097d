"""Run configurations: the schema and the YAML presets that follow it."""
