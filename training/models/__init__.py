"""Trunks and heads."""
