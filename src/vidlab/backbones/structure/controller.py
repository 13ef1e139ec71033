"""The structure controller of Open-Sora Plan: an encoder of signals and a projection for each block of a denoiser."""

import math
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from vidlab.backbones.base import BlockSpec
from vidlab.backbones.structure.downsampler import SignalDownsampler
from vidlab.clip import Stride
from vidlab.layers.attention import SelfAttention, xavier_linears, zero_init
from vidlab.layers.compilation.blocks import no_view
from vidlab.layers.kernels import AttentionKernel, auto
from vidlab.layers.layouts import Grid, LayerPlan, TokenLayout
from vidlab.layers.modulation import normalize
from vidlab.layers.patches import patch_grid, patchify
from vidlab.layers.rope import Rotation, axis_split, rotation
from vidlab.layers.tables import Tables
from vidlab.structure import Additions


class EncoderBlock(nn.Module):
    """A pre-norm transformer block that knows neither text nor noise level: self-attention and feed-forward."""

    def __init__(
        self, width: int, heads: int, mlp_ratio: float, layout: TokenLayout, kernel: AttentionKernel = auto
    ) -> None:
        super().__init__()
        self.layout = layout
        self.attention = SelfAttention(width, heads, qk_norm=True, kernel=kernel)
        hidden = int(width * mlp_ratio)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: Float[Tensor, "B L D"], grid: Grid, turned: Rotation) -> Float[Tensor, "B L D"]:
        """One block."""
        x = x + self.attention(normalize(x), self.layout, grid, turned).to(x.dtype)
        return x + self.mlp(normalize(x)).to(x.dtype)


class StructureController(nn.Module):
    """R = E(C_S), and F_j = P_j(R) for each block j (Open-Sora Plan, arXiv 2412.00131, equations 12 to 15).

    E is a tiny convolution network to the shape of the latents, their patches as tokens, and K transformer blocks. P_j
    is a linear map of each token that starts at zero, so that a new controller adds nothing. Neither reads the text or
    the noise level. The paper leaves open what normalizes R; here it is a layer norm without parameters.

    Args:
        channels: of the signals.
        latent_channels: of the latents.
        stride: pixels to a latent position.
        patch: latent positions to a token.
        blocks: of the denoiser.
        depth: K.
        mlp_ratio: hidden width of a feed-forward over D.
        layouts: token layout of each of the K blocks.
        rope_base: base of the rotary frequencies.
        kernel: attention kernel.
    """

    def __init__(
        self,
        channels: int,
        latent_channels: int,
        stride: Stride,
        patch: Sequence[int],
        blocks: BlockSpec,
        depth: int,
        mlp_ratio: float,
        layouts: LayerPlan,
        rope_base: float,
        kernel: AttentionKernel = auto,
    ) -> None:
        super().__init__()
        width, heads = blocks.width, blocks.heads
        self.patch = tuple(patch)
        self.head_dim, self.rope_base = width // heads, rope_base
        self.tables = Tables()
        self.downsample = SignalDownsampler(channels, latent_channels, stride)
        self.embed = nn.Linear(latent_channels * math.prod(patch), width)
        self.blocks = nn.ModuleList(
            EncoderBlock(width, heads, mlp_ratio, layout, kernel) for layout in layouts.layers(depth)
        )
        self.projections = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks.count))
        axis_split(self.head_dim)
        xavier_linears(self)
        for projection in self.projections:
            assert isinstance(projection, nn.Linear)
            zero_init(projection)

    def forward(
        self, maps: Float[Tensor, "B K T H W"], latents: Float[Tensor, "B C t h w"], gain: Float[Tensor, "B 1 1"]
    ) -> Additions:
        """What is added to the tokens of the latents behind each block, made when it is asked for (eq. 15).

        Args:
            maps: signals and where they are given.
            latents: of which only the shape is read.
            gain: by what each clip's additions are multiplied.
        """
        encoded = self.encoded(maps, latents)  # (B, L, D)
        return lambda number: gain * self.projections[number](encoded)  # eq. 15, (B, L, D)

    def encoded(self, maps: Float[Tensor, "B K T H W"], latents: Float[Tensor, "B C t h w"]) -> Float[Tensor, "B L D"]:
        """R, normalized."""
        grid = patch_grid(latents, self.patch)
        features = self.downsample(maps, latents.shape[2:]).to(self.embed.weight.dtype)  # (B, C, t, h, w)
        tokens = no_view(self.embed(patchify(features, self.patch)))  # (B, L, D)
        turned = self.tables.get(rotation, grid, self.head_dim, self.rope_base, (1.0, 1.0, 1.0), device=tokens.device)
        for block in self.blocks:
            tokens = block(tokens, grid, turned)
        return normalize(tokens)
