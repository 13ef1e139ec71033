"""Fréchet video distance of reconstructions."""

from typing import ClassVar

from torch import Tensor

from vidlab.metrics.base import ReferenceKind
from vidlab.metrics.sets.fvd import FVD


class ReconstructionFVD(FVD):
    """rFVD: FVD between clips and their own reconstructions by an autoencoder.

    Each clip comes with its original as ``reference``. Lower is better. It cannot be compared with the FVD of generated
    clips: both sets hold the same scenes, so it has no floor from sampling other scenes.
    """

    name: ClassVar[str] = "rfvd"
    reference_kind: ClassVar[ReferenceKind] = "paired"

    def _reference_numbers(self, reference: Tensor, keys: Tensor) -> Tensor:
        return keys
