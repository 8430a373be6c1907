"""Shards that others wrote: listed, scanned and indexed where they lie."""
