"""STIV: a factorized diffusion transformer for text and image to video (arXiv 2412.07730)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from vidlab.backbones.base import BlockSpec
from vidlab.backbones.patched import ControlEmbed, PatchedDenoiser
from vidlab.backbones.sizes import check_sizes
from vidlab.backbones.stiv_block import BlockOptions, CausalTemporal, STIVBlock, STIVBlockContext, adaln, reset_adaln
from vidlab.backbones.stiv_conditions import MICRO, SingletonCondition
from vidlab.backbones.stiv_masking import Kept, checked_scores, fill, keep, keep_rotation, kept_places
from vidlab.backbones.watched import frame_attention, later_half
from vidlab.clip import TOKEN_DROP, DenoiserInput, DenoiserOutput, LatentShape
from vidlab.errors import UserError
from vidlab.features import SELF_ATTENTION, Feature, FrameAttention
from vidlab.layers.attention import CrossAttention, SelfAttention, xavier_linears, zero_init
from vidlab.layers.compilation.blocks import any_length, no_view
from vidlab.layers.kernels import attention_kernel
from vidlab.layers.layouts import Grid, Spatial, Temporal
from vidlab.layers.modulation import modulate
from vidlab.layers.patches import patch_grid, per_token, unpatchify
from vidlab.layers.rope import rope_scales, rotation_along
from vidlab.layers.sequence_parallel.frames import FrameSharing, OverTime
from vidlab.layers.sequence_parallel.shares import SequenceLayers
from vidlab.layers.tables import Tables
from vidlab.parallel.exchange import Team
from vidlab.structure import Additions, with_addition

# What a text-to-image parent lacks: attention along frames, and what it is told of them.
TEMPORAL = ("blocks.*.temporal.*", "condition.micro.sampling_stride.*", "condition.micro.frames.*")


class STIV(PatchedDenoiser):
    """Spatial attention, temporal attention, cross-attention and feed-forward in every block (STIV, section 3).

    The published sizes are XL 28 blocks of 1152 (18 heads), XXL 38 of 1536 (24), M 46 of 3072 (48); patches of
    2x2x2, text width 1280, 8 latent channels. A block has 20 D^2 weights, 16 D^2 without temporal attention. A new
    model predicts zero: gates and the head are closed. Dropping the text (``input.text is None``) skips
    cross-attention and the pooled text. The image condition is not here: it replaces a frame of the noisy latents.

    Args:
        latent: shape of the latents.
        text_width: width of text tokens and pooled text.
        width: D.
        depth: number of blocks, those after unmasking included: so counted, the published parameters come out.
        heads: attention heads; ``width / heads`` is a multiple of 4.
        patch: (frames, rows, columns) of latents in one token.
        mlp_ratio: hidden width of the feed-forward over D.
        qk_norm: RMS-normalize queries and keys, in every attention.
        sandwich_norm: normalize what the modulated sublayers return, too.
        scale_around_one: read (1 + scale) norm(x) + shift, as others do; else scale norm(x) + shift, as STIV prints,
            with scales that start at one.
        singleton_norm: normalize each projected condition before they are summed.
        shared_adaln: one projection of the condition for all blocks; else one for each.
        layer_offsets: a table per block added to its modulation (PixArt-alpha); the paper does not say.
        temporal_attention: off, frames do not see each other: the text-to-image model.
        temporal_modulation: modulate temporal attention like spatial attention.
        causal_temporal: a frame attends to itself and earlier ones only.
        micro_conditions: among original_resolution, crop, sampling_stride, frames; ``input.micro`` must have each.
        mask_ratio: share of the places of every frame, alike in all frames of a clip, dropped in training before the
            first block; ``input.micro["token_drop"]`` (B, places) then holds the uniform numbers that choose. The
            predictions at dropped places come from a learned token and the last blocks.
        unmask_blocks: how many of the last blocks see all places again, dropped ones as a learned token.
        rope_base: base of the rotary frequencies; rows and columns share the planes in space, frames have all in time.
        rope_scale: (frames, rows, columns) by which positions are divided: interpolation on longer or larger clips.
        activation_checkpointing: to save memory recompute each block in the backward pass (True, ``block``), or
            all of it but matrix products and attention (``selective``).
        attention: attention kernel: auto, sdpa, xformers or flex.
        control_channels: channels of each part of the controls, added through maps that start at zero.

    Raises:
        UserError: sizes that do not divide or are not positive, an unknown micro-condition.
    """

    frame_sharing: FrameSharing | None = None

    def __init__(
        self,
        latent: LatentShape,
        text_width: int,
        width: int,
        depth: int,
        heads: int,
        patch: Sequence[int],
        mlp_ratio: float = 4.0,
        qk_norm: bool = True,
        sandwich_norm: bool = True,
        scale_around_one: bool = False,
        singleton_norm: bool = True,
        shared_adaln: bool = True,
        layer_offsets: bool = True,
        temporal_attention: bool = True,
        temporal_modulation: bool = False,
        causal_temporal: bool = False,
        micro_conditions: Sequence[str] = (),
        mask_ratio: float = 0.0,
        unmask_blocks: int = 2,
        rope_base: float = 10000.0,
        rope_scale: Sequence[float] = (1.0, 1.0, 1.0),
        activation_checkpointing: bool | str = False,
        attention: str = "auto",
        control_channels: Sequence[int] = (),
    ) -> None:
        super().__init__()
        check_sizes(latent, width, depth, heads, patch, multiple=4)
        self.mask_ratio, self.unmask_blocks = _checked_masking(mask_ratio, unmask_blocks, depth)
        self.options = BlockOptions(
            qk_norm=qk_norm, sandwich_norm=sandwich_norm, scale_around_one=scale_around_one, shared_adaln=shared_adaln,
            layer_offsets=layer_offsets, temporal_attention=temporal_attention,
            temporal_modulation=temporal_modulation, causal_temporal=causal_temporal,
        )  # fmt: skip
        self.watched = later_half(range(depth))
        self.declare(patch, control_channels, features=frozenset({SELF_ATTENTION}), shares_sequence=True,
                     blocks=BlockSpec(depth, width, heads), temporal=TEMPORAL)  # fmt: skip
        self.latent_channels, self.head_dim = latent.channels, width // heads
        self.rope_base, self.rope_scale = rope_base, rope_scales(rope_scale)
        self.activation_checkpointing, self.tables = activation_checkpointing, Tables()
        kernel = attention_kernel(attention)
        self.embed = nn.Linear(latent.channels * math.prod(patch), width)
        self.controls = nn.ModuleList(ControlEmbed(n * math.prod(patch), width) for n in self.control_channels)
        self.condition = SingletonCondition(width, text_width, micro_conditions, singleton_norm)
        self.text_tokens = nn.Linear(text_width, width)
        self.adaln = adaln(width, self.options) if shared_adaln else None
        self.blocks = nn.ModuleList(STIVBlock(width, heads, mlp_ratio, self.options, kernel) for _ in range(depth))
        self.mask_token = nn.Parameter(torch.empty(width)) if mask_ratio > 0 else None
        self.head_modulation, self.head = nn.Linear(width, 2 * width), nn.Linear(width, self.embed.in_features)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier linears; gates, cross-attention, temporal attention, controls and head zero-initialized."""
        xavier_linears(self)
        for module in self.modules():
            if isinstance(module, CrossAttention | ControlEmbed):
                zero_init(module.out)
            elif isinstance(module, STIVBlock):
                self._reset_block(module)
        if self.adaln is not None:
            reset_adaln(self.adaln, self.options)
        if self.mask_token is not None:
            nn.init.normal_(self.mask_token, std=0.02)
        zero_init(self.head_modulation)
        zero_init(self.head)

    def _reset_block(self, block: STIVBlock) -> None:
        if block.modulation.own is not None:
            reset_adaln(block.modulation.own, self.options)
        if block.modulation.offsets is not None:
            nn.init.zeros_(block.modulation.offsets)
        # a closed gate before a zero-initialized output would leave both without gradient
        if isinstance(block.temporal, SelfAttention) and not self.options.temporal_modulation:
            zero_init(block.temporal.out)

    @override
    def forward(self, input: DenoiserInput) -> DenoiserOutput:
        """Predict the objective's target for every latent position.

        Raises:
            ValueError: latents that do not divide into patches, a missing micro-condition, or in training with
                ``mask_ratio`` no ``token_drop``.
        """
        self.check_requested(input.requested)
        clip = patch_grid(input.latents, self.patch)
        sharing = self._sharing_of(clip)
        input = input if sharing is None else sharing.own_input(input, clip.frames)
        grid = patch_grid(input.latents, self.patch)  # of the frames that are here
        tokens = no_view(self.embed_patches(input))  # (B, L, D)
        condition = per_token(self.condition(input), self.patch[0], grid)  # (B, 1 or L, D)
        step = self._step(input, grid, clip, condition)
        found = _Found(SELF_ATTENTION in input.requested, input.additions)
        if self.mask_token is None or not self.training:
            tokens = self._blocks(tokens, range(len(self.blocks)), step, found)
        else:
            scores = checked_scores(input.micro.get(TOKEN_DROP), len(tokens), grid)
            tokens = self._masked(tokens, kept_places(scores, self.mask_ratio), self.mask_token, step, clip, found)
        shift, scale = self.head_modulation(F.silu(condition)).chunk(2, dim=-1)  # (B, 1 or L, D) each
        patches = self.head(modulate(tokens, shift, scale))  # (B, L, C p q r)
        latents, features = unpatchify(patches, grid, self.patch), found.features()
        if sharing is None:
            return DenoiserOutput(latents, features)
        whole = {
            name: tuple(
                FrameAttention(sharing.whole(one.q, 1, clip.frames), sharing.whole(one.k, 1, clip.frames))
                for one in layers
            )
            for name, layers in features.items()
        }
        return DenoiserOutput(sharing.whole(latents, 2, clip.frames, self.patch[0]), whole)

    @override
    def sequence_layers(self) -> SequenceLayers:
        over_time = (Temporal(), Spatial()) if self.options.temporal_attention else ()
        width = self.head.in_features
        layouts = (Spatial(), *(over_time * len(self.blocks)))
        return SequenceLayers(layouts, width // self.head_dim, width, moves_within=True)

    @override
    def share_sequence(self, team: Team) -> None:
        self.frame_sharing = FrameSharing(team, CausalTemporal() if self.options.causal_temporal else Temporal())

    def _sharing_of(self, clip: Grid) -> FrameSharing | None:
        """How processes share the frames of a clip in training; None where each computes all of them."""
        sharing = self.frame_sharing
        return sharing if sharing is not None and self.training and sharing.shares(clip.frames) else None

    @override
    def micro_shapes(self, latent: LatentShape) -> dict[str, tuple[int, ...]]:
        """What ``input.micro`` must hold for latents of this shape (``token_drop`` in training only), each per clip."""
        shapes: dict[str, tuple[int, ...]] = {name: (MICRO[name],) for name in self.condition.micro}
        places = latent.height * latent.width // math.prod(self.patch[1:])
        return shapes if self.mask_token is None else shapes | {TOKEN_DROP: (places,)}

    def _masked(
        self, tokens: Tensor, kept: Kept, mask_token: Tensor, whole: STIVBlockContext, clip: Grid, found: "_Found"
    ) -> Tensor:
        """The first blocks on the kept places, the last ``unmask_blocks`` on all."""
        cut = len(self.blocks) - self.unmask_blocks
        tokens, fewer = keep(tokens, kept, whole.grid)  # (B, k, D), k the tokens of kept places
        per_clip = whole.condition.shape[1] == 1
        whole_additions = found.additions
        if whole_additions is not None:
            found.additions = lambda number: keep(whole_additions(number), kept, whole.grid)[0]
        step = replace(
            whole,
            grid=fewer,
            spatial=keep_rotation(whole.spatial, kept, whole.grid),
            temporal=keep_rotation(whole.temporal, kept, clip),
            condition=whole.condition if per_clip else keep(whole.condition, kept, whole.grid)[0],
            over_time=self._over_time(replace(fewer, frames=clip.frames), tokens.device),
        )
        tokens = self._blocks(tokens, range(cut), step, found)
        found.additions = whole_additions
        whole_again = fill(tokens, kept, whole.grid, mask_token)  # (B, L, D)
        return self._blocks(whole_again, range(cut, len(self.blocks)), whole, found)

    def _blocks(self, tokens: Tensor, numbers: range, step: STIVBlockContext, found: "_Found") -> Tensor:
        for number in numbers:
            block = self.blocks[number]
            if not found.wanted:
                tokens = with_addition(self.run(block, tokens, step), found.additions, number)
                continue
            assert isinstance(block, STIVBlock)
            tokens, q, k = self.run(block.with_queries_and_keys, tokens, step)
            tokens = with_addition(tokens, found.additions, number)
            if number in self.watched:
                found.layers.append(frame_attention(q, k, step.grid))  # of the kept places, where some are dropped
        return tokens

    def _over_time(self, clip: Grid, device: torch.device) -> OverTime | None:
        sharing = self._sharing_of(clip)
        return None if sharing is None or not self.options.temporal_attention else sharing.over_time(clip, device)

    def _step(
        self, input: DenoiserInput, grid: Grid, clip: Grid, condition: Float[Tensor, "B #L D"]
    ) -> STIVBlockContext:
        planes, text, device = self.head_dim // 2, input.text, input.latents.device
        space, time = (0, planes // 2, planes // 2), (planes, 0, 0)
        spatial, temporal = (
            self.tables.get(rotation_along, tokens, split, self.rope_base, self.rope_scale, device=device)
            for tokens, split in ((grid, space), (clip, time))
        )
        activated = F.silu(condition)
        return STIVBlockContext(
            grid=grid,
            spatial=spatial,
            temporal=temporal,
            condition=activated if self.adaln is None else self.adaln(activated),
            text=None if text is None else any_length(self.text_tokens(text.tokens)),
            text_mask=None if text is None or text.hidden is None else any_length(text.mask),
            over_time=self._over_time(clip, device),
        )


@dataclass
class _Found:
    """What was requested of the blocks of one forward pass, and what is added behind each."""

    wanted: bool
    additions: Additions | None = None
    layers: list[FrameAttention] = field(default_factory=list)

    def features(self) -> dict[str, Feature]:
        """By name; empty where nothing was requested."""
        return {SELF_ATTENTION: tuple(self.layers)} if self.wanted else {}


def _checked_masking(ratio: float, unmask_blocks: int, depth: int) -> tuple[float, int]:
    if not 0 <= ratio < 1:
        raise UserError(f"model.backbone.mask_ratio={ratio} must lie in [0, 1).")
    if ratio and not 0 <= unmask_blocks <= depth:
        raise UserError(
            f"model.backbone.unmask_blocks={unmask_blocks} must lie between 0 and model.backbone.depth={depth}: it "
            "counts the last of these blocks."
        )
    return ratio, unmask_blocks
