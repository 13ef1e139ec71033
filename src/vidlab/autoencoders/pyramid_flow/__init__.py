"""The causal video VAE of Pyramid Flow (Jin et al. 2024): 8 x 8 x 8 pixels to a latent position of 16 channels."""

from vidlab.autoencoders.pyramid_flow.model import PyramidFlowVAE

__all__ = ["PyramidFlowVAE"]
