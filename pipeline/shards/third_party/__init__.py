"""Third-party shards: listed, scanned and indexed in place."""
