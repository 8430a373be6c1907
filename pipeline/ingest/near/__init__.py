"""Near duplicates: images that look alike."""
