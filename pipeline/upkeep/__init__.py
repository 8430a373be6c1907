"""Maintain finished shards: verify, repair, purge, merge, split, inspect."""
