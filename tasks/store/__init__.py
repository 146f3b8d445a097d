"""The store: Zarr masks and Parquet tables, committed exactly once."""
