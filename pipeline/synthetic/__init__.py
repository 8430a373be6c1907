"""The demo's crawl: rendered pictures of ten kinds of objects."""
