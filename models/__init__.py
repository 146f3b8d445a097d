"""Architectures, one per file, and how they are built, loaded and read out."""
