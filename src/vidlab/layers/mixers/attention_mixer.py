"""Causal softmax attention as a sequence mixer."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from typing_extensions import override

from vidlab.errors import UserError
from vidlab.features.memory import Memory
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

    resumable = True

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
        q, k, v = self._heads(x, real)
        return self.kernel(q, k, v, causal_mask(x.shape[1], real, x.device)).flatten(2)

    def remember(self, x: Float[Tensor, "B L D"], real: Real | None = None) -> tuple[Float[Tensor, "B L D"], Memory]:
        """As a call; and keys and values, and which of them are real."""
        q, k, v = self._heads(x, real)
        if real is None:
            real = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        mixed = self.kernel(q, k, v, causal_mask(x.shape[1], real, x.device)).flatten(2)
        return mixed, Memory((k, v, real))

    def resume(self, x: Float[Tensor, "B L D"], memory: Memory) -> Float[Tensor, "B L D"]:
        """What a call would give for ``x`` after the tokens of ``memory``."""
        past_k, past_v, real = memory.tensors
        q, k, v = self._heads(x, None)
        real = torch.cat([real, real.new_ones(x.shape[:2])], dim=1)  # (B, past + L)
        mask = causal_mask(real.shape[1], real, x.device, first=past_k.shape[1])  # (B, 1, L, past + L)
        return self.kernel(q, torch.cat([past_k, k], dim=1), torch.cat([past_v, v], dim=1), mask).flatten(2)

    def _heads(self, x: Float[Tensor, "B L D"], real: Real | None) -> tuple[Tensor, Tensor, Tensor]:
        if real is not None:
            x = x.masked_fill(~real[..., None], 0.0)  # softmax gives a pad weight 0, and 0 times NaN is NaN
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(2)  # (B, L, N, d) each
        return self.q_norm(q), self.k_norm(k), v


def causal_mask(
    length: int, real: Real | None, device: torch.device | str | None = None, first: int = 0
) -> Bool[Tensor, "#B 1 rows L"]:
    """True where a token may look: at real tokens before it, and always at itself, so that no row is empty.

    Args:
        length: L.
        real: which tokens are; None is all.
        device: where to compute.
        first: the token of the first row.
    """
    place = torch.arange(length, device=device)
    before = place <= place[first:, None]  # (rows, L)
    if real is None:
        return before[None, None]
    return ((before & real[:, None, :]) | (place == place[first:, None]))[:, None]
