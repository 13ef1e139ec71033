"""Solvers, guidance, and the loop that turns noise into a video."""
