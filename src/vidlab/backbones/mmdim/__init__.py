"""MM-DiM: the multi-modal diffusion Mamba of M4V (arXiv 2506.10915)."""

from vidlab.backbones.mmdim.model import MMDiM

__all__ = ["MMDiM"]
