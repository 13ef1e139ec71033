"""Metrics of a clip against the original."""
