"""Shards into batches: order, draws, damage, graph."""
