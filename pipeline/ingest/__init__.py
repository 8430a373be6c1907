"""Making shards out of what a crawl left behind."""
