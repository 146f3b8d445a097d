"""The inference engine: bytes in, predictions out, one shard at a time."""
