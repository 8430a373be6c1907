"""Machines: the only use of Ray."""
