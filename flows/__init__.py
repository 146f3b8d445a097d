"""Prefect flows and the command line: what runs, in what order, on what cluster."""

from pixelmill.flows.environment import apply_defaults

# Prefect and Dask read their settings when they are imported, so these must come first.
apply_defaults()
