"""Diffusion transformer for video: one block, any token layout per layer."""

import math
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from vidlab.backbones.patched import ControlEmbed, PatchedDenoiser
from vidlab.backbones.sizes import check_patch, check_positive
from vidlab.clip import DenoiserInput, DenoiserOutput, LatentShape
from vidlab.errors import UserError
from vidlab.layers.attention import CrossAttention, xavier_linears, zero_init
from vidlab.layers.block import BlockContext, DiTBlock
from vidlab.layers.embeddings import TimestepEmbedder
from vidlab.layers.kernels import attention_kernel
from vidlab.layers.layouts import Grid, LayerPlan
from vidlab.layers.modulation import ModulationTable, modulate
from vidlab.layers.patches import patch_grid, per_token, unpatchify
from vidlab.layers.positions import fourier_positions
from vidlab.layers.rope import axis_split, rope_scales, rotation
from vidlab.layers.tables import Tables

# Over the noise of the patches, which a new embedding passes on at about unit variance.
POSITION_SCALE = 2.0


class DiT(PatchedDenoiser):
    """Patches of latents through transformer blocks modulated by the noise level and the pooled text.

    Peebles & Xie 2023 (DiT), with 3-D rotary positions, adaLN-single and cross-attention to text as in
    PixArt-alpha and Open-Sora Plan. Dropping the text (``input.text is None``) skips cross-attention.

    Args:
        latent: shape of the latents.
        text_width: width of text tokens and pooled text.
        layouts: token layout of each layer.
        width: D.
        depth: number of blocks.
        heads: attention heads; ``width / heads`` is even and at least 6.
        patch: (frames, rows, columns) of latents in one token.
        mlp_ratio: hidden width of the feed-forward over D.
        qk_norm: RMS-normalise queries and keys.
        rope_base: base of the rotary frequencies.
        rope_scale: (frames, rows, columns) by which positions are divided: position interpolation to larger grids.
        absolute_positions: add waves of a token's position to it (``fourier_positions``). Rotary positions are
            relative: where the latents are pure noise, all tokens look alike to them, and no prompt can say where
            anything is.
        activation_checkpointing: recompute each block in the backward pass to save memory.
        attention: attention kernel: auto, sdpa, xformers or flex.
        control_channels: channels of each part of the controls. Each is embedded like the latents, through a map that
            starts at zero, and added (Open-Sora Plan v1.3), so that a new controlled model equals its parent.

    Raises:
        UserError: sizes that do not divide or are not positive.
    """

    def __init__(
        self,
        latent: LatentShape,
        text_width: int,
        layouts: LayerPlan,
        width: int,
        depth: int,
        heads: int,
        patch: Sequence[int],
        mlp_ratio: float = 4.0,
        qk_norm: bool = True,
        rope_base: float = 10000.0,
        rope_scale: Sequence[float] = (1.0, 1.0, 1.0),
        absolute_positions: bool = True,
        activation_checkpointing: bool = False,
        attention: str = "auto",
        control_channels: Sequence[int] = (),
    ) -> None:
        super().__init__()
        check_positive(width=width, depth=depth, heads=heads, patch=min(patch))
        _check_heads(width, heads)
        check_patch(latent, patch)
        self.declare(patch, control_channels)
        self.latent_channels = latent.channels
        self.width = width
        self.head_dim = width // heads
        self.rope_base = rope_base
        self.rope_scale = rope_scales(rope_scale)
        self.absolute_positions = absolute_positions
        self.activation_checkpointing = activation_checkpointing
        self.tables = Tables()
        kernel = attention_kernel(attention)
        patch_channels = latent.channels * math.prod(patch)
        self.embed = nn.Linear(patch_channels, width)
        self.controls = nn.ModuleList(
            ControlEmbed(channels * math.prod(patch), width) for channels in self.control_channels
        )
        self.time = TimestepEmbedder(width)
        self.text_tokens = nn.Linear(text_width, width)
        self.text_pooled = nn.Linear(text_width, width)
        self.modulation = nn.Linear(width, 6 * width)
        self.blocks = nn.ModuleList(
            DiTBlock(width, heads, mlp_ratio, layout, qk_norm, kernel) for layout in layouts.layers(depth)
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
            if isinstance(module, CrossAttention | ControlEmbed):
                zero_init(module.out)

    def forward(self, input: DenoiserInput) -> DenoiserOutput:
        """Predict the objective's target for every latent position."""
        self.check_requested(input.requested)
        grid = patch_grid(input.latents, self.patch)
        tokens = self.embed_patches(input)  # (B, L, D)
        if self.absolute_positions:
            waves = self.tables.get(fourier_positions, grid, self.width, self.rope_scale, device=tokens.device)
            tokens = tokens + POSITION_SCALE * waves
        context, condition = self._context(input, grid)
        for block in self.blocks:
            tokens = self.run(block, tokens, context)
        shift, scale = self.head_table(self.head_modulation(F.silu(condition)))
        patches = self.head(modulate(tokens, shift, scale))  # (B, L, C p q r)
        return DenoiserOutput(prediction=unpatchify(patches, grid, self.patch))

    def _context(self, input: DenoiserInput, grid: Grid) -> tuple[BlockContext, Float[Tensor, "B #L D"]]:
        condition = self.time(input.embedded_t)  # (B, D), or (B, T, D) with a level per latent frame
        if input.text is not None:
            pooled = self.text_pooled(input.text.pooled)
            condition = condition + (pooled if condition.ndim == 2 else pooled[:, None])
        condition = per_token(condition, self.patch[0], grid)  # (B, 1 or L, D)
        context = BlockContext(
            grid=grid,
            rotation=self.tables.get(
                rotation, grid, self.head_dim, self.rope_base, self.rope_scale, device=input.latents.device
            ),
            modulation=self.modulation(F.silu(condition)),
            text=None if input.text is None else self.text_tokens(input.text.tokens),
            text_mask=None if input.text is None else input.text.mask,
        )
        return context, condition


def _check_heads(width: int, heads: int) -> None:
    if width % heads:
        raise UserError(f"model.backbone.width={width} is not a multiple of model.backbone.heads={heads}.")
    try:
        axis_split(width // heads)
    except ValueError as error:
        raise UserError(f"model.backbone.heads={heads} with width={width}: {error}.") from None
