"""Pretext tasks: what to cut from an image, and what to ask of it."""
