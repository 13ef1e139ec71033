"""Adaptive layer normalization (adaLN-single: one shared projection, one small table per block)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from vidlab.layers.compilation.fused import fused

EPS = 1e-6


class ModulationTable(nn.Module):
    """A block's own offsets to the shared modulation (Chen et al. 2023, PixArt-alpha, section 2.3)."""

    def __init__(self, parts: int, width: int) -> None:
        super().__init__()
        self.parts = parts
        self.offset = nn.Parameter(torch.zeros(parts * width))

    def forward(self, shared: Float[Tensor, "B #L parts_D"]) -> tuple[Float[Tensor, "B #L D"], ...]:
        """``parts`` tensors (B, 1 or L, D)."""
        return (shared + self.offset).chunk(self.parts, dim=-1)


@fused
def modulate(
    x: Float[Tensor, "B L D"], shift: Float[Tensor, "B #L D"], scale: Float[Tensor, "B #L D"]
) -> Float[Tensor, "B L D"]:
    """LayerNorm without affine parameters, then x (1 + scale) + shift; in the dtype of x."""
    normed = F.layer_norm(x, x.shape[-1:], eps=EPS)  # float32 under autocast on a GPU
    return torch.addcmul(shift.to(normed.dtype), normed, 1 + scale.to(normed.dtype)).to(x.dtype)


@fused
def scale_and_shift(
    x: Float[Tensor, "B L D"], shift: Float[Tensor, "B #L D"], scale: Float[Tensor, "B #L D"]
) -> Float[Tensor, "B L D"]:
    """LayerNorm without affine parameters, then x scale + shift; in the dtype of x."""
    normed = F.layer_norm(x, x.shape[-1:], eps=EPS)
    return torch.addcmul(shift.to(normed.dtype), normed, scale.to(normed.dtype)).to(x.dtype)


@fused
def normalize(x: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
    """LayerNorm without affine parameters, in the dtype of x."""
    return F.layer_norm(x, x.shape[-1:], eps=EPS).to(x.dtype)


@fused
def add_gated(
    x: Float[Tensor, "B L D"], gate: Float[Tensor, "B #L D"], branch: Float[Tensor, "B L D"]
) -> Float[Tensor, "B L D"]:
    """x + gate branch, in the dtype of the residual stream x."""
    return torch.addcmul(x, gate.to(x.dtype), branch.to(x.dtype))


@fused
def add_gated_then_normalize(
    x: Float[Tensor, "B L D"], gate: Float[Tensor, "B #L D"], branch: Float[Tensor, "B L D"]
) -> tuple[Float[Tensor, "B L D"], Float[Tensor, "B L D"]]:
    """x + gate branch, and its LayerNorm: what one sublayer leaves and the next one reads."""
    x = add_gated.function(x, gate, branch)
    return x, normalize.function(x)


@fused
def add_then_modulate(
    x: Float[Tensor, "B L D"],
    branch: Float[Tensor, "B L D"],
    shift: Float[Tensor, "B #L D"],
    scale: Float[Tensor, "B #L D"],
) -> tuple[Float[Tensor, "B L D"], Float[Tensor, "B L D"]]:
    """x + branch, and LayerNorm(x + branch) (1 + scale) + shift."""
    x = x + branch.to(x.dtype)
    return x, modulate.function(x, shift, scale)


@fused
def add_then_scale_and_shift(
    x: Float[Tensor, "B L D"],
    branch: Float[Tensor, "B L D"],
    shift: Float[Tensor, "B #L D"],
    scale: Float[Tensor, "B #L D"],
) -> tuple[Float[Tensor, "B L D"], Float[Tensor, "B L D"]]:
    """x + branch, and LayerNorm(x + branch) scale + shift."""
    x = x + branch.to(x.dtype)
    return x, scale_and_shift.function(x, shift, scale)


@fused
def add_gated_norm(
    x: Float[Tensor, "B L D"], gate: Float[Tensor, "B #L D"], branch: Float[Tensor, "B L D"]
) -> Float[Tensor, "B L D"]:
    """x + gate LayerNorm(branch), in the dtype of the residual stream x."""
    normed = F.layer_norm(branch, branch.shape[-1:], eps=EPS)
    return torch.addcmul(x, gate.to(x.dtype), normed.to(x.dtype))
