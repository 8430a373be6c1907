"""Benches of what is trained and scored, beside what others offer."""
