"""Labelled images of any layout, packed and split."""
