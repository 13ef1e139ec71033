"""Diffusion transformer for video: one block, any token layout per layer."""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from vidlab.backbones.base import BlockSpec
from vidlab.backbones.patched import ControlEmbed, PatchedDenoiser
from vidlab.backbones.sizes import check_patch, check_positive
from vidlab.backbones.watched import later_half, through_blocks
from vidlab.clip import DenoiserInput, DenoiserOutput, History, LatentShape
from vidlab.errors import UserError
from vidlab.features import SELF_ATTENTION
from vidlab.layers.attention import CrossAttention, xavier_linears, zero_init
from vidlab.layers.block import BlockContext, DiTBlock
from vidlab.layers.compilation.blocks import any_length, no_view
from vidlab.layers.embeddings import TimestepEmbedder
from vidlab.layers.kernels import attention_kernel
from vidlab.layers.layouts import Full3D, Grid, LayerPlan
from vidlab.layers.modulation import ModulationTable, modulate
from vidlab.layers.patches import patch_grid, patchify, per_token, unpatchify
from vidlab.layers.positions import fourier_at, fourier_positions
from vidlab.layers.rope import axis_split, rope_scales, rotation, rotation_at
from vidlab.layers.sequence_parallel.sequence import WHOLE
from vidlab.layers.sequence_parallel.shares import SequenceLayers
from vidlab.layers.tables import Tables
from vidlab.layers.token_places import frame_causal, next_frames, token_places

# Over the noise of the patches, which a new embedding passes on at about unit variance.
POSITION_SCALE = 2.0


class DiT(PatchedDenoiser):
    """Patches of latents through transformer blocks modulated by the noise level and the pooled text.

    Peebles & Xie 2023 (DiT), with 3-D rotary positions, adaLN-single and cross-attention to text as in
    PixArt-alpha and Open-Sora Plan. Dropping the text (``input.text is None``) skips cross-attention.

    Where every layer is ``Full3D``, ``input.history`` is read: tokens of earlier frames, at their own resolution, stand
    before those of the latents, and a token sees what is not after its own frame. All are modulated by the noise level
    of the latents, as in Pyramid Flow.

    The feature ``self_attention`` is of the later half of those layers in which a token attends to its whole frame:
    what it compares there within the frame, in full attention a part of all that it compares.

    Args:
        latent: shape of the latents.
        text_width: width of text tokens and pooled text.
        layouts: token layout of each layer.
        width: D.
        depth: number of blocks.
        heads: attention heads; ``width / heads`` is even and at least 6.
        patch: (frames, rows, columns) of latents in one token.
        mlp_ratio: hidden width of the feed-forward over D.
        qk_norm: RMS-normalize queries and keys.
        rope_base: base of the rotary frequencies.
        rope_scale: (frames, rows, columns) by which positions are divided: position interpolation to larger grids.
        absolute_positions: add Fourier features of a token's position to it (``fourier_positions``). Rotary positions
            are relative: where the latents are pure noise, all tokens look alike to them, and no prompt can say where
            anything is.
        activation_checkpointing: to save memory recompute each block in the backward pass (True, ``block``), or
            all of it but matrix products and attention (``selective``).
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
        activation_checkpointing: bool | str = False,
        attention: str = "auto",
        control_channels: Sequence[int] = (),
    ) -> None:
        super().__init__()
        check_positive(width=width, depth=depth, heads=heads, patch=min(patch))
        _check_heads(width, heads)
        check_patch(latent, patch)
        full = all(isinstance(layout, Full3D) for layout in layouts.layers(depth))
        self.watched = later_half([n for n, layout in enumerate(layouts.layers(depth)) if layout.sees_frame])
        features = frozenset({SELF_ATTENTION} if self.watched else ())
        blocks = BlockSpec(depth, width, heads)
        self.declare(
            patch, control_channels, reads_history=full, features=features, blocks=blocks, shares_sequence=True
        )
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

    @override
    def sequence_layers(self) -> SequenceLayers:
        layouts = tuple(block.layout for block in self.blocks if isinstance(block, DiTBlock))
        return SequenceLayers(layouts, self.width // self.head_dim, self.width)

    def reset_parameters(self) -> None:
        """Xavier linears; modulation, cross-attention output and head are zero-initialized."""
        xavier_linears(self)
        for linear in (self.modulation, self.head_modulation, self.head):
            zero_init(linear)
        for module in self.modules():
            if isinstance(module, CrossAttention | ControlEmbed):
                zero_init(module.out)

    @override
    def forward(self, input: DenoiserInput) -> DenoiserOutput:
        self.check_requested(input.requested)
        grid = patch_grid(input.latents, self.patch)
        tokens = no_view(self.embed_patches(input))  # (B, L, D)
        context, condition = self._context(input, grid)
        if input.history:
            tokens, context = self._after_history(input.history, tokens, context)
        elif self.absolute_positions:
            positions = self.tables.get(fourier_positions, grid, self.width, self.rope_scale, device=tokens.device)
            tokens = tokens + (POSITION_SCALE * positions).to(tokens.dtype)
        sequence, last = self.sequence_of(grid, context.visible, tokens.device), len(self.blocks) - 1
        tokens, features = through_blocks(
            self.run, self.blocks, self.watched, tokens, context, input.requested, sequence, input.additions
        )
        if input.history and sequence is WHOLE:
            tokens = tokens[:, -grid.tokens :]  # (B, L, D), those of the latents
        condition = sequence.own(last, condition, 1)
        shift, scale = self.head_table(self.head_modulation(F.silu(condition)))  # (B, 1 or L, D) each
        patches = sequence.leave(last, self.head(modulate(tokens, shift, scale)))
        patches = patches[:, -grid.tokens :]  # (B, L, C p q r)
        return DenoiserOutput(unpatchify(patches, grid, self.patch), features)

    def _after_history(
        self, history: tuple[History, ...], tokens: Float[Tensor, "B L D"], context: BlockContext
    ) -> tuple[Float[Tensor, "B more D"], BlockContext]:
        """Earlier frames before the latents in one sequence, each token at its place in the grid of the latents."""
        if not self.spec.reads_history or self.patch[0] != 1 or context.modulation.shape[1] != 1:
            raise ValueError("history needs the layout Full3D in every layer, patches of one frame and one t per clip")
        grid = context.grid
        grids = [*(patch_grid(part.latents, self.patch) for part in history), grid]
        indices = [part.frame_index for part in history]
        indices.append(next_frames(indices, grid.frames))
        pairs = zip(grids, indices, strict=True)
        places = torch.cat([token_places(one, index, grid) for one, index in pairs])  # (tokens of the history + L, 3)
        earlier = [self.embed(patchify(part.latents, self.patch)) for part in history]
        sequence = torch.cat([*earlier, tokens], dim=1)  # (B, tokens of the history + L, D)
        if self.absolute_positions:
            positions = fourier_at(places, self.width, self.rope_scale)  # (tokens of the history + L, D)
            sequence = sequence + (POSITION_SCALE * positions).to(sequence.dtype)
        turned = rotation_at(places, axis_split(self.head_dim), self.rope_base, self.rope_scale)
        return sequence, replace(context, rotation=turned, visible=frame_causal(places[:, 0]))

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
            text=None if input.text is None else any_length(self.text_tokens(input.text.tokens)),
            text_mask=None if input.text is None or input.text.hidden is None else any_length(input.text.mask),
        )
        return context, condition


def _check_heads(width: int, heads: int) -> None:
    if width % heads:
        raise UserError(f"model.backbone.width={width} is not a multiple of model.backbone.heads={heads}.")
    try:
        axis_split(width // heads)
    except ValueError as error:
        raise UserError(f"model.backbone.heads={heads} with width={width}: {error}.") from None
