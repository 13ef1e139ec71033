"""Intervals over few runs, tests, and what these could not have seen: pure functions on numbers."""
