"""HARIVO: a frozen text-to-image UNet that temporal layers make a video model (Kwon et al., ECCV 2024)."""

from vidlab.backbones.harivo.image import ImageUNet
from vidlab.backbones.harivo.image_model import ImageModel
from vidlab.backbones.harivo.model import HARIVO

__all__ = ["HARIVO", "ImageModel", "ImageUNet"]
