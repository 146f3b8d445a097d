"""Prefect flows and the command line: what runs, in what order, on what cluster."""
