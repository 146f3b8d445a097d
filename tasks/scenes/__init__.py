"""Procedural photo-like scenes with exact truth."""
