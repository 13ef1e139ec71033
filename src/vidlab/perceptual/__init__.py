"""Frozen feature networks that metrics and losses measure with: I3D, LPIPS, Inception."""
