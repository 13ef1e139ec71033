"""Causal softmax attention as a sequence mixer."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from typing_extensions import override

from vidlab.errors import UserError
from vidlab.layers.attention import QKNorm
from vidlab.layers.mixers.mixer import MixerKernels, Real


class AttentionMixer(nn.Module):
    """Multi-head attention of every token to itself and to the real tokens before it.

    The quadratic counterpart of a scan, with its interface and its order. Like the single-stream block of FLUX it has
    no projection behind the heads; the block's own output projection follows.

    Args:
        width: D, a multiple of ``heads``.
        heads: N.
        kernels: ``attention`` is used.
        qk_norm: normalize queries and keys to unit root mean square, with a gain.

    Raises:
        UserError: D is no multiple of N.
    """

    def __init__(self, width: int, heads: int, kernels: MixerKernels | None = None, qk_norm: bool = True) -> None:
        super().__init__()
        if width % heads:
            raise UserError(f"mixer=attention: the width {width} must be a multiple of the {heads} heads.")
        self.heads = heads
        self.kernel = (kernels or MixerKernels()).attention
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = QKNorm(width // heads) if qk_norm else nn.Identity()
        self.k_norm = QKNorm(width // heads) if qk_norm else nn.Identity()

    @override
    def forward(self, x: Float[Tensor, "B L D"], real: Real | None = None) -> Float[Tensor, "B L D"]:
        if real is not None:
            x = x.masked_fill(~real[..., None], 0.0)  # softmax gives a pad weight 0, and 0 times NaN is NaN
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(2)  # (B, L, N, d) each
        q, k = self.q_norm(q), self.k_norm(k)
        return self.kernel(q, k, v, causal_mask(x.shape[1], real, x.device)).flatten(2)


def causal_mask(length: int, real: Real | None, device: torch.device | str | None = None) -> Bool[Tensor, "#B 1 L L"]:
    """True where a token may look: at real tokens before it, and always at itself, so that no row is empty."""
    itself = torch.eye(length, dtype=torch.bool, device=device)
    before = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    if real is None:
        return before[None, None]
    return ((before & real[:, None, :]) | itself)[:, None]
