"""Autoencoders, pixels to latents and back: Haar, identity, trilinear, per-frame image VAE, WF-VAE, Pyramid Flow's."""
