"""Evaluation metrics on numpy arrays; no Prefect, no torch."""
