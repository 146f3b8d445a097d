"""The steps of the pipeline: a pure function each, and the Prefect task over it."""
