"""Diffusion transformer for video: one block, any token layout per layer."""

import math
from collections.abc import Sequence

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from vidlab.backbones.base import LatentShape, VideoDenoiser
from vidlab.clip import DenoiserInput, DenoiserOutput, TextEmbedding
from vidlab.errors import UserError
from vidlab.layers.attention import CrossAttention, xavier_linears, zero_init
from vidlab.layers.block import BlockContext, DiTBlock
from vidlab.layers.embeddings import TimestepEmbedder
from vidlab.layers.layouts import Grid, TokenLayout
from vidlab.layers.modulation import ModulationTable, modulate
from vidlab.layers.rope import axis_split, rotation


class DiT(VideoDenoiser):
    """Patches of latents through transformer blocks modulated by the noise level and the pooled text.

    Peebles & Xie 2023 (DiT), with 3-D rotary positions, adaLN-single and cross-attention to text as in
    PixArt-alpha and Open-Sora Plan. Dropping the text (``input.text is None``) skips cross-attention.

    Args:
        latent: shape of the latents.
        text_width: width of text tokens and pooled text.
        layouts: token layout of each layer, cycled over ``depth``.
        width: D.
        depth: number of blocks.
        heads: attention heads; ``width / heads`` is even and at least 6.
        patch: (frames, rows, columns) of latents in one token.
        mlp_ratio: hidden width of the feed-forward over D.
        qk_norm: RMS-normalise queries and keys.
        rope_base: base of the rotary frequencies.
        activation_checkpointing: recompute each block in the backward pass to save memory.

    Raises:
        UserError: sizes that do not divide or are not positive, or no layout.
    """

    def __init__(
        self,
        latent: LatentShape,
        text_width: int,
        layouts: Sequence[TokenLayout],
        width: int,
        depth: int,
        heads: int,
        patch: Sequence[int],
        mlp_ratio: float = 4.0,
        qk_norm: bool = True,
        rope_base: float = 10000.0,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        _check_positive(width=width, depth=depth, heads=heads, patch=min(patch))
        if not layouts:
            raise UserError("model.backbone.layouts is empty: name at least one token layout.")
        _check_sizes(latent, width, heads, patch)
        self.patch = tuple(patch)
        self.head_dim = width // heads
        self.rope_base = rope_base
        self.activation_checkpointing = activation_checkpointing
        patch_channels = latent.channels * patch[0] * patch[1] * patch[2]
        self.embed = nn.Linear(patch_channels, width)
        self.time = TimestepEmbedder(width)
        self.text_tokens = nn.Linear(text_width, width)
        self.text_pooled = nn.Linear(text_width, width)
        self.modulation = nn.Linear(width, 6 * width)
        self.blocks = nn.ModuleList(
            DiTBlock(width, heads, mlp_ratio, layouts[i % len(layouts)], qk_norm) for i in range(depth)
        )
        self.head_table = ModulationTable(2, width)
        self.head_modulation = nn.Linear(width, 2 * width)
        self.head = nn.Linear(width, patch_channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier linears; silent branches: modulation, cross-attention output and head start at zero."""
        xavier_linears(self)
        for linear in (self.modulation, self.head_modulation, self.head):
            zero_init(linear)
        for module in self.modules():
            if isinstance(module, CrossAttention):
                zero_init(module.out)

    def forward(self, input: DenoiserInput) -> DenoiserOutput:
        """Predict the objective's target for every latent position."""
        self.check_requested(input.requested)
        tokens, grid = self.patchify(input.latents)
        context, condition = self._context(input, grid)
        for block in self.blocks:
            if self.activation_checkpointing and self.training:
                tokens = checkpoint(block, tokens, context, use_reentrant=False)
            else:
                tokens = block(tokens, context)
        shift, scale = self.head_table(self.head_modulation(F.silu(condition)))
        patches = self.head(modulate(tokens, shift, scale))
        return DenoiserOutput(prediction=self.unpatchify(patches, grid))

    def token_count(self, latent: LatentShape) -> int:
        """Patches per clip."""
        return latent.frames * latent.height * latent.width // math.prod(self.patch)

    def _context(self, input: DenoiserInput, grid: Grid) -> tuple[BlockContext, Float[Tensor, "B #L D"]]:
        condition = self.time(input.embedded_t)
        if input.text is not None:
            pooled = self.text_pooled(input.text.pooled)
            condition = condition + (pooled if condition.ndim == 2 else pooled[:, None])
        condition = _per_token(condition, self.patch[0], grid)
        context = BlockContext(
            grid=grid,
            rotation=rotation(grid, self.head_dim, self.rope_base, device=input.latents.device),
            modulation=self.modulation(F.silu(condition)),
            text=None if input.text is None else self._text(input.text),
            text_mask=None if input.text is None else input.text.mask,
        )
        return context, condition

    def _text(self, text: TextEmbedding) -> Float[Tensor, "B S D"]:
        return self.text_tokens(text.tokens)

    def patchify(self, latents: Float[Tensor, "B C T H W"]) -> tuple[Float[Tensor, "B L D"], Grid]:
        """Embed each patch; tokens are ordered (frames, rows, columns)."""
        p, q, r = self.patch
        _, _, frames, height, width = latents.shape
        if frames % p or height % q or width % r:
            raise ValueError(f"latents of {frames}x{height}x{width} do not divide into patches of {p}x{q}x{r}")
        grid = Grid(frames // p, height // q, width // r)
        patches = rearrange(latents, "b c (t p) (h q) (w r) -> b (t h w) (c p q r)", p=p, q=q, r=r)
        return self.embed(patches), grid

    def unpatchify(self, patches: Float[Tensor, "B L K"], grid: Grid) -> Float[Tensor, "B C T H W"]:
        """The inverse of the patch order of ``patchify``."""
        p, q, r = self.patch
        return rearrange(
            patches,
            "b (t h w) (c p q r) -> b c (t p) (h q) (w r)",
            t=grid.frames, h=grid.height, w=grid.width, p=p, q=q, r=r,
        )  # fmt: skip


def _per_token(condition: Tensor, patch_frames: int, grid: Grid) -> Float[Tensor, "B #L D"]:
    """(B, D) to (B, 1, D); (B, T, D), one per latent frame, to (B, L, D), averaged over a patch's frames."""
    if condition.ndim == 2:
        return condition[:, None]
    per_patch = rearrange(condition, "b (t p) d -> b t p d", p=patch_frames).mean(dim=2)
    return per_patch.repeat_interleave(grid.height * grid.width, dim=1)


def _check_positive(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise UserError(f"model.backbone.{name}={size} must be at least 1.")


def _check_sizes(latent: LatentShape, width: int, heads: int, patch: Sequence[int]) -> None:
    if width % heads:
        raise UserError(f"model.backbone.width={width} is not a multiple of model.backbone.heads={heads}.")
    try:
        axis_split(width // heads)
    except ValueError as error:
        raise UserError(f"model.backbone.heads={heads} with width={width}: {error}.") from None
    for name, size, step in zip(
        ("frames", "height", "width"), (latent.frames, latent.height, latent.width), patch, strict=True
    ):
        if size % step:
            raise UserError(
                f"model.backbone.patch={list(patch)} does not divide the latents: their {name} is {size}. "
                f"Change data.{name} or the patch."
            )
