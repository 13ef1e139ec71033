"""The two attention sublayers: self-attention within a token layout, and cross-attention to text."""

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vidlab.layers.compilation.flex import flex_padded
from vidlab.layers.compilation.fused import fused
from vidlab.layers.kernels import AttentionKernel, auto, in_padded_groups
from vidlab.layers.layouts import Grid, TokenLayout
from vidlab.layers.rope import Rotation, rotate, turned

Heads = Float[Tensor, "B L N d"]


def rms_norm(x: Float[Tensor, "*b d"], gain: Float[Tensor, "d"]) -> Float[Tensor, "*b d"]:
    """x / rms(x) * gain in float32 (Zhang & Sennrich 2019); on a CPU, fewer passes than torch's."""
    x = x.float()
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + 1e-6) * gain


class QKNorm(nn.Module):
    """RMS normalization of queries or keys (Dehghani et al. 2023, ViT-22B); STIV uses it in every attention."""

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(head_dim))

    def forward(self, x: Float[Tensor, "B L N d"]) -> Float[Tensor, "B L N d"]:
        """Unit root mean square per head, times the gain; in the dtype of x."""
        return normed_heads(x, self.gain)


@fused
def normed_heads(x: Float[Tensor, "B L N d"], gain: Float[Tensor, "d"]) -> Float[Tensor, "B L N d"]:
    """``rms_norm`` in the dtype of x."""
    return rms_norm(x, gain).to(x.dtype)


@fused
def normed_and_turned(x: Float[Tensor, "B L N d"], gain: Float[Tensor, "d"], by: Rotation) -> Float[Tensor, "B L N d"]:
    """``rms_norm``, then ``rotate``, in float32; returned in the dtype of x."""
    return rotate(rms_norm(x, gain), by).to(x.dtype)


def compared(x: Float[Tensor, "B L N d"], norm: nn.Module, by: Rotation) -> Float[Tensor, "B L N d"]:
    """Queries or keys as they are compared: normalized where ``norm`` is a ``QKNorm``, and turned."""
    return normed_and_turned(x, norm.gain, by) if isinstance(norm, QKNorm) else turned(x, by)


def attend_within(
    layout: TokenLayout,
    grid: Grid,
    kernel: AttentionKernel,
    q: Heads,
    k: Heads,
    v: Heads,
    visible: Bool[Tensor, "L L"] | None = None,
) -> Heads:
    """Attention of every token to its group; no mask is built where nothing is padded.

    With ``visible``, True where a token (row) sees another (column), the whole sequence is one group.
    """
    if visible is not None:
        return kernel(q, k, v, visible[None, None])
    batch, heads = q.shape[0], q.shape[2]
    q, k, v = (layout.partition(part, grid) for part in (q, k, v))  # groups instead of B or N: (B', L', N', d)
    if layout.pads_at_end and layout.padded(grid) != grid.tokens and in_padded_groups(kernel, q):
        groups = flex_padded(q, k, v, layout, grid, batch)
    else:
        groups = kernel(q, k, v, layout.key_mask(grid, batch, heads, q.device))
    return layout.restore(groups, grid)  # (B, L, N, d)


class SelfAttention(nn.Module):
    """Multi-head self-attention with 3-D rotary positions and optional QK normalization.

    The rotation is applied on the whole grid, before the layout partitions it, so positions do not depend on the
    layout.
    """

    def __init__(self, width: int, heads: int, qk_norm: bool = True, kernel: AttentionKernel = auto) -> None:
        super().__init__()
        self.heads = heads
        self.kernel = kernel
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.q_norm = QKNorm(width // heads) if qk_norm else nn.Identity()
        self.k_norm = QKNorm(width // heads) if qk_norm else nn.Identity()

    def forward(
        self,
        x: Float[Tensor, "B L D"],
        layout: TokenLayout,
        grid: Grid,
        rotation: Rotation,
        visible: Bool[Tensor, "L L"] | None = None,
    ) -> Float[Tensor, "B L D"]:
        """Attend within each group of the layout, or to what is visible."""
        return self.attend(*self.heads_of(x, rotation), layout, grid, visible)

    def heads_of(self, x: Float[Tensor, "B L D"], rotation: Rotation) -> tuple[Heads, Heads, Heads]:
        """Queries, keys and values, the first two as they are compared: normalized and turned."""
        # unflatten + unbind: their backward is one stack, where a permutation would copy once more
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(2)  # (B, L, N, d) each
        return compared(q, self.q_norm, rotation), compared(k, self.k_norm, rotation), v

    def attend(
        self,
        q: Heads,
        k: Heads,
        v: Heads,
        layout: TokenLayout,
        grid: Grid,
        visible: Bool[Tensor, "L L"] | None = None,
    ) -> Float[Tensor, "B L D"]:
        """What ``forward`` returns, from the queries, keys and values of ``heads_of``."""
        mixed = attend_within(layout, grid, self.kernel, q, k, v, visible)
        return self.out(mixed.flatten(2))  # (B, L, D)


class CrossAttention(nn.Module):
    """Multi-head attention from video tokens to text tokens."""

    def __init__(self, width: int, heads: int, qk_norm: bool = True, kernel: AttentionKernel = auto) -> None:
        super().__init__()
        self.heads = heads
        self.kernel = kernel
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.q_norm = QKNorm(width // heads) if qk_norm else nn.Identity()
        self.k_norm = QKNorm(width // heads) if qk_norm else nn.Identity()

    def forward(
        self, x: Float[Tensor, "B L D"], text: Float[Tensor, "B S D"], mask: Bool[Tensor, "B S"] | None
    ) -> Float[Tensor, "B L D"]:
        """Attend to the real text tokens; to all where there is no mask."""
        q = rearrange(self.q(x), "b l (n d) -> b l n d", n=self.heads)  # (B, L, N, d)
        k, v = self.kv(text).unflatten(-1, (2, self.heads, -1)).unbind(2)  # (B, S, N, d) each
        seen = None if mask is None else mask[:, None, None, :]  # (B, 1, 1, S)
        return self.out(rearrange(self.kernel(self.q_norm(q), self.k_norm(k), v, seen), "b l n d -> b l (n d)"))


def zero_init(linear: nn.Linear) -> nn.Linear:
    """Set a linear layer to zero, so that its branch adds nothing at first."""
    nn.init.zeros_(linear.weight)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
    return linear


def xavier_linears(module: nn.Module) -> None:
    """Initialize every linear layer below ``module``: Xavier-uniform weights (Glorot & Bengio 2010), zero biases.

    The scale follows the width. A fixed 0.02 suits a width near 1000; in a narrow model it leaves the path from the
    noise level and the text to the modulation almost without effect for hundreds of steps.
    """
    for child in module.modules():
        if isinstance(child, nn.Linear):
            nn.init.xavier_uniform_(child.weight)
            if child.bias is not None:
                nn.init.zeros_(child.bias)
