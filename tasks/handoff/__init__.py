"""Predictions for other tools, what people should look at, and what they corrected."""
