"""Structure control of a frozen denoiser."""

from vidlab.backbones.structure.controlled import StructureControlled

__all__ = ["StructureControlled"]
