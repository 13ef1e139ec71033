"""WF-VAE (Li et al. 2024): a causal video autoencoder whose latents carry an energy flow of wavelets."""

from vidlab.autoencoders.wfvae.model import WFVAE

__all__ = ["WFVAE"]
