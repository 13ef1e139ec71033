"""Attention: one kernel function and the two sublayers built on it."""

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from vidlab.layers.layouts import Grid, TokenLayout
from vidlab.layers.rope import Rotation, rotate

Heads = Float[Tensor, "B L N d"]
Keys = Float[Tensor, "B S N d"]


# Measured on a Zen 5 CPU (one thread, bf16, B16 N3 L256 d64): products and softmax written out take 13 ms forward
# and backward, torch's flash kernel 33 ms, since its inner products run in float32. The probabilities are kept for the
# backward pass, so this is only for sequences where they are small.
WRITTEN_OUT_LIMIT_BYTES = 256 * 2**20


def attention(q: Heads, k: Keys, v: Keys, mask: Bool[Tensor, "B S"] | None = None) -> Heads:
    """Scaled dot-product attention, softmax(q k^T / sqrt d) v (Vaswani et al. 2017, eq. 1).

    Args:
        q: (B, L, N, d).
        k: (B, S, N, d).
        v: (B, S, N, d).
        mask: True at keys that may be seen; each row needs one.
    """
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    allowed = None if mask is None else mask[:, None, None, :]
    probabilities_bytes = q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2] * q.element_size()
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and probabilities_bytes <= WRITTEN_OUT_LIMIT_BYTES:
        return _written_out(q, k, v, allowed).transpose(1, 2)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed).transpose(1, 2)


def _written_out(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None) -> Tensor:
    scores = (q * q.shape[-1] ** -0.5) @ k.mT
    if allowed is not None:
        scores = scores.masked_fill(~allowed, float("-inf"))
    return scores.softmax(dim=-1) @ v


def rms_norm(x: Float[Tensor, "*b d"], gain: Float[Tensor, "d"]) -> Float[Tensor, "*b d"]:
    """x / rms(x) * gain in float32 (Zhang & Sennrich 2019); on a CPU, fewer passes than torch's."""
    x = x.float()
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + 1e-6) * gain


class QKNorm(nn.Module):
    """RMS normalisation of queries or keys (Dehghani et al. 2023, ViT-22B); STIV uses it in every attention."""

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(head_dim))

    def forward(self, x: Float[Tensor, "B L N d"]) -> Float[Tensor, "B L N d"]:
        """Unit root mean square per head, times the gain; float32."""
        return rms_norm(x, self.gain)


class SelfAttention(nn.Module):
    """Multi-head self-attention with 3-D rotary positions and optional QK normalisation.

    The rotation is applied on the whole grid, before the layout partitions it, so positions do not depend on the
    layout.
    """

    def __init__(self, width: int, heads: int, qk_norm: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.q_norm = QKNorm(width // heads) if qk_norm else nn.Identity()
        self.k_norm = QKNorm(width // heads) if qk_norm else nn.Identity()

    def forward(
        self, x: Float[Tensor, "B L D"], layout: TokenLayout, grid: Grid, rotation: Rotation
    ) -> Float[Tensor, "B L D"]:
        """Attend within each group of the layout."""
        # unflatten + unbind: their backward is one stack, where a permutation would copy once more
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(2)
        q = rotate(self.q_norm(q), rotation).to(v.dtype)
        k = rotate(self.k_norm(k), rotation).to(v.dtype)
        groups = attention(*(layout.partition(part, grid) for part in (q, k, v)))
        return self.out(rearrange(layout.restore(groups, grid), "b l n d -> b l (n d)"))


class CrossAttention(nn.Module):
    """Multi-head attention from video tokens to text tokens."""

    def __init__(self, width: int, heads: int, qk_norm: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.q_norm = QKNorm(width // heads) if qk_norm else nn.Identity()
        self.k_norm = QKNorm(width // heads) if qk_norm else nn.Identity()

    def forward(
        self, x: Float[Tensor, "B L D"], text: Float[Tensor, "B S D"], mask: Bool[Tensor, "B S"]
    ) -> Float[Tensor, "B L D"]:
        """Attend to the real text tokens."""
        q = rearrange(self.q(x), "b l (n d) -> b l n d", n=self.heads)
        k, v = self.kv(text).unflatten(-1, (2, self.heads, -1)).unbind(2)
        q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)
        return self.out(rearrange(attention(q, k, v, mask), "b l n d -> b l (n d)"))


def zero_init(linear: nn.Linear) -> nn.Linear:
    """Set a linear layer to zero, so that its branch starts silent."""
    nn.init.zeros_(linear.weight)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
    return linear


def xavier_linears(module: nn.Module) -> None:
    """Initialise every linear layer below ``module``: Xavier-uniform weights (Glorot & Bengio 2010), zero biases.

    The scale follows the width. A fixed 0.02 suits a width near 1000; in a narrow model it leaves the path from the
    noise level and the text to the modulation almost silent for hundreds of steps.
    """
    for child in module.modules():
        if isinstance(child, nn.Linear):
            nn.init.xavier_uniform_(child.weight)
            if child.bias is not None:
                nn.init.zeros_(child.bias)
