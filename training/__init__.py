"""Batches into trunks into scores."""
