"""Shortcut audit: can a pretext be won by low-level statistics?"""
