"""Keeping finished shards: verify, repair, purge, merge, split, look."""
