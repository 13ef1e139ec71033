"""Adaptive layer normalization (adaLN-single: one shared projection, one small table per block)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class ModulationTable(nn.Module):
    """A block's own offsets to the shared modulation (Chen et al. 2023, PixArt-alpha, section 2.3)."""

    def __init__(self, parts: int, width: int) -> None:
        super().__init__()
        self.parts = parts
        self.offset = nn.Parameter(torch.zeros(parts * width))

    def forward(self, shared: Float[Tensor, "B #L parts_D"]) -> tuple[Float[Tensor, "B #L D"], ...]:
        """``parts`` tensors (B, 1 or L, D)."""
        return (shared + self.offset).chunk(self.parts, dim=-1)


def modulate(
    x: Float[Tensor, "B L D"], shift: Float[Tensor, "B #L D"], scale: Float[Tensor, "B #L D"]
) -> Float[Tensor, "B L D"]:
    """LayerNorm without affine parameters, then x (1 + scale) + shift."""
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=1e-6), 1 + scale)
