"""Images into shards into batches."""
