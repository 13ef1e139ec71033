"""Samplers, solvers and guidance: from noise to the latents of a video."""
