"""Reading shards: manifest, indexes, verified bytes."""
