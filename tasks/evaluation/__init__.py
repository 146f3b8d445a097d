"""The parts of the step `evaluate`: truth joined to predictions, kind by kind."""
