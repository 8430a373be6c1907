"""Files from any URL onto this node: whole, verified, shared by its ranks."""
