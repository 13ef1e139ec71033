"""vidlab: a laboratory for text- and image-conditioned video diffusion."""

__version__ = "0.1.0"
