"""Throughput against peers and limits."""
