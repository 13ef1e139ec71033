"""Frozen networks, read without running code: features (I3D, LPIPS, Inception), edges (HED, PiDiNet), cuts (TransNet)."""
