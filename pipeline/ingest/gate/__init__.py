"""One verdict for each image: accepted, quarantined or filtered, with its reason."""
