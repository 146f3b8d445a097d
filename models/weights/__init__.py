"""Weights trained by this project, as safetensors, with their model cards."""
