"""MM-DiM: dual-stream attention blocks, then single-stream blocks of a causal mixer (M4V)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import override

from vidlab.backbones.base import BlockSpec
from vidlab.backbones.mmdim.conditions import StreamConditions, VectorCondition, spread, spread_clean
from vidlab.backbones.mmdim.contexts import Contexts
from vidlab.backbones.mmdim.dual_block import DualBlockContext, DualStreamBlock, Stream
from vidlab.backbones.mmdim.settings import check_settings, rotation_planes
from vidlab.backbones.mmdim.single_block import MMDiMBlock
from vidlab.backbones.patched import ControlEmbed, PatchedDenoiser
from vidlab.backbones.watched import frame_attention, later_half
from vidlab.clip import DenoiserInput, DenoiserOutput, LatentShape
from vidlab.features import SELF_ATTENTION, Feature
from vidlab.features.memory import Memory
from vidlab.layers.attention import xavier_linears, zero_init
from vidlab.layers.compilation.blocks import no_view
from vidlab.layers.kernels import attention_kernel
from vidlab.layers.layouts import Grid
from vidlab.layers.mixers.mixer import MixerKernels, can_resume
from vidlab.layers.mixers.recomposition import FrameGrids
from vidlab.layers.mixers.scan_orders import ScanOrders
from vidlab.layers.mixers.ssm_kernels import ssm_kernel
from vidlab.layers.modulation import modulate
from vidlab.layers.patches import patch_grid, patchify, unpatchify
from vidlab.layers.rope import rope_scales
from vidlab.layers.tables import Tables
from vidlab.structure import with_addition

# Tables of a shape are six, and pyramid flow has a shape for every stage and every length of the history.
KEPT = 512


class MMDiM(PatchedDenoiser):
    """Text and frames through L dual-stream MM-DiT blocks and N single-stream MM-DiM blocks (M4V, figure 2).

    Frames are read in their order: those of ``input.history``, each at its own resolution (eq. 7), then those of the
    latents, which alone are predicted. Attention in the dual-stream blocks is causal by frame, and text sees itself and
    the first frame. In a single-stream block the mixer reads [text, frames, text] from left to right: no frame is
    changed by a later one, but the text at the right end reads all frames, as in the paper, and what it reads comes to
    the left end of the next block. ``text_ends=left`` leaves the right end out; then no frame depends on a later one
    through the whole model. A new model predicts zero: gates and the head are closed. Without text
    (``input.text is None``) the frames are alone.

    The paper's body is not public beyond its abstract. What figure 2 and third parties leave open is a setting here,
    and the default is the reading closest to Pyramid Flow, on whose code it builds.

    Args:
        latent: shape of the latents at full resolution.
        text_width: width of text tokens.
        mixer: makes the mixer of a single-stream block; ``width``, ``heads`` and ``kernels`` are given.
        width: D.
        depth: N, single-stream blocks.
        heads: attention heads, and heads of the mixer.
        patch: (frames, rows, columns) of latents in one token.
        dual_depth: L, dual-stream blocks before them: 8 in the paper; 0, 2 and 4 in its ablation.
        temporal_branch: frames attend to frames beside the mixer.
        scan_paths: letters a to h of the paths that single-stream blocks take in turn.
        scan: ``serpentine``, each line begins where the last ended, or ``raster``.
        registers: how many learned tokens there are to precede frames, in each block.
        register_by: ``level``, by a frame's resolution; or ``role``: the last for predicted frames, the one before for
            the newest frame of the history, and so on.
        text_ends: ``both`` ends of the sequence show the text, or ``left``.
        history_timestep: text and history read the noise level of the predicted frames, ``current`` (Pyramid Flow), or
            ``clean``, that of clean latents: then what becomes of them can be kept while it falls (``remember``). Needs
            ``text_ends=left``.
        mlp_ratio: hidden width of the feed-forward over D.
        pooled_width: width of the pooled text; None is ``text_width``.
        rope_axes: channels of a head for (t, y, x); None shares them evenly.
        rope_base: base of the rotary frequencies.
        rope_scale: (frames, rows, columns) by which positions are divided: interpolation on longer or larger clips.
        absolute_positions: add Fourier features of a token's position (``fourier_positions``), as DiT does.
        activation_checkpointing: to save memory recompute each block in the backward pass (True, ``block``), or
            all of it but matrix products and attention (``selective``).
        attention: attention kernel: auto, sdpa, xformers or flex.
        ssm: state-space kernel: auto, torch or mamba_ssm.
        control_channels: channels of each part of the controls, added through maps that start at zero.

    Raises:
        UserError: sizes that do not divide or are not positive, or a setting that there is not.
    """

    def __init__(
        self,
        latent: LatentShape,
        text_width: int,
        mixer: Callable[..., nn.Module],
        width: int,
        depth: int,
        heads: int,
        patch: Sequence[int],
        dual_depth: int = 8,
        temporal_branch: bool = True,
        scan_paths: str = "abcdefgh",
        scan: str = "serpentine",
        registers: int = 3,
        register_by: str = "level",
        text_ends: str = "both",
        history_timestep: str = "current",
        mlp_ratio: float = 4.0,
        pooled_width: int | None = None,
        rope_axes: Sequence[int] | None = None,
        rope_base: float = 10000.0,
        rope_scale: Sequence[float] = (1.0, 1.0, 1.0),
        absolute_positions: bool = False,
        activation_checkpointing: bool | str = False,
        attention: str = "auto",
        ssm: str = "auto",
        control_channels: Sequence[int] = (),
    ) -> None:
        super().__init__()
        check_settings(
            latent, patch, dual_depth,
            {"width": width, "depth": depth, "heads": heads, "registers": registers, "scan_paths": len(scan_paths)},
            {"register_by": register_by, "text_ends": text_ends, "history_timestep": history_timestep},
        )  # fmt: skip
        self._declare(BlockSpec(dual_depth + depth, width, heads), dual_depth, patch, control_channels)
        self.tables = Tables(kept=KEPT)
        self.contexts = Contexts(
            self.tables, width, self.patch[0],
            full_grid=(latent.height // self.patch[1], latent.width // self.patch[2]),
            rope=(rotation_planes(width // heads, rope_axes), rope_base, rope_scales(rope_scale)),
            absolute=absolute_positions, orders=ScanOrders(scan_paths, scan), layers=depth, bank=registers,
            by_role=register_by == "role", both_ends=text_ends == "both", temporal=temporal_branch,
        )  # fmt: skip
        self.clean_history = history_timestep == "clean"
        self.activation_checkpointing = activation_checkpointing
        self._make_embeddings(latent.channels, text_width, pooled_width or text_width)
        kernels, sizes = MixerKernels(attention_kernel(attention), ssm_kernel(ssm)), (width, heads, mlp_ratio)
        self.dual_blocks = nn.ModuleList(DualStreamBlock(*sizes, kernels.attention) for _ in range(dual_depth))
        self.blocks = nn.ModuleList(
            MMDiMBlock(*sizes, mixer, kernels, temporal_branch, registers) for _ in range(depth)
        )
        self.head_modulation, self.head = nn.Linear(width, 2 * width), nn.Linear(width, self.embed.in_features)
        resumable = all(can_resume(block.get_submodule("mixer")) for block in self.blocks)
        self.spec = replace(self.spec, remembers_history=self.clean_history and resumable)
        self.reset_parameters()

    def _declare(
        self, blocks: BlockSpec, dual_depth: int, patch: Sequence[int], control_channels: Sequence[int]
    ) -> None:
        """What the model is, as far as its blocks tell."""
        self.width, self.watched = blocks.width, later_half(range(dual_depth))
        features = frozenset({SELF_ATTENTION} if self.watched else ())
        self.declare(patch, control_channels, reads_history=True, features=features, blocks=blocks)
        self.spec = replace(
            self.spec, takes_ssm=True, hidden_matrices=("dual_blocks.*", "blocks.*"), temporal=("blocks.*.temporal.*",)
        )

    def _make_embeddings(self, latent_channels: int, text_width: int, pooled_width: int) -> None:
        """Of patches, controls, the condition and text; declares the pooled text that is read."""
        self.spec = replace(self.spec, pooled_width=pooled_width)
        self.latent_channels, places = latent_channels, math.prod(self.patch)
        self.embed = nn.Linear(latent_channels * places, self.width)
        self.controls = nn.ModuleList(ControlEmbed(n * places, self.width) for n in self.control_channels)
        self.condition = VectorCondition(self.width, pooled_width)
        self.text_tokens = nn.Linear(text_width, self.width)

    def reset_parameters(self) -> None:
        """Xavier linears; all modulation, controls and the head start at zero; mixers keep their own start."""
        for part in (self.embed, self.controls, self.condition, self.text_tokens, self.dual_blocks):
            xavier_linears(part)
        for module in self.modules():
            if isinstance(module, MMDiMBlock):
                module.reset_parameters()
            elif isinstance(module, ControlEmbed):
                zero_init(module.out)
            elif isinstance(module, Stream):
                zero_init(module.modulation)
        zero_init(self.head_modulation)
        zero_init(self.head)

    @override
    def forward(self, input: DenoiserInput) -> DenoiserOutput:
        """Predict the objective's target for every latent position.

        Raises:
            ValueError: latents or history that do not divide into patches, or, with the temporal branch, grids that
                are no whole multiples of the smallest.
        """
        self.check_requested(input.requested)
        grid = patch_grid(input.latents, self.patch)
        frames = _frame_grids(input, grid, self.patch)
        conditions = self._conditions(input, grid, frames)
        features: dict[str, Feature] = {}
        if input.remembered is None:
            x, found = self._all(input, frames, conditions)
            if SELF_ATTENTION in input.requested:
                features[SELF_ATTENTION] = tuple(frame_attention(q, k, grid) for q, k in found)
        else:
            x = self._resumed(input, frames, conditions, input.remembered)
        shift, scale = self.head_modulation(conditions.predicted).chunk(2, dim=-1)
        patches = self.head(modulate(x[:, -grid.tokens :], shift, scale))  # (B, P, K)
        return DenoiserOutput(unpatchify(patches, grid, self.patch), features)

    @override
    def remember(self, input: DenoiserInput) -> Memory:
        if not self.spec.remembers_history:
            return super().remember(input)
        grid = patch_grid(input.latents, self.patch)
        frames = _frame_grids(input, grid, self.patch)
        conditions = self._conditions(input, grid, frames)
        known = FrameGrids(frames.sizes[: frames.history], 0)
        text = None if input.text is None else no_view(self.text_tokens(input.text.tokens))
        video = self._embedded(input, frames)[:, : known.tokens]  # (B, H, D)
        dual = self.contexts.dual(input, frames, conditions, known)
        memories = []
        for block in self.dual_blocks:
            text, video, memory = cast(DualStreamBlock, block).remember(text, video, dual)
            memories.append(memory)
        x = video if text is None else torch.cat([text, video], dim=1)  # (B, S + H, D)
        single = self.contexts.single(input, frames, conditions, known)
        for layer, block in enumerate(self.blocks):
            x, memory = cast(MMDiMBlock, block).remember(x, single.of_layer(layer))
            memories.append(memory)
        return Memory(parts=tuple(memories))

    def _all(
        self, input: DenoiserInput, frames: FrameGrids, conditions: StreamConditions
    ) -> tuple[Float[Tensor, "B L D"], list[tuple[Tensor, Tensor]]]:
        """[text, frames] after all blocks; and where it was requested what attention compares."""
        video = self._embedded(input, frames)
        text = None if input.text is None else no_view(self.text_tokens(input.text.tokens))
        found: list[tuple[Tensor, Tensor]] = []
        if len(self.dual_blocks):
            context = self.contexts.dual(input, frames, conditions)
            text, video, found = self._dual(text, video, context, input)
        x = video if text is None else torch.cat([text, video], dim=1)  # (B, S + V, D)
        single = self.contexts.single(input, frames, conditions)
        for layer, block in enumerate(self.blocks):
            x = self.run(block, x, single.of_layer(layer))
            x = with_addition(x, input.additions, len(self.dual_blocks) + layer)
        return x, found

    def _resumed(
        self, input: DenoiserInput, frames: FrameGrids, conditions: StreamConditions, memory: Memory
    ) -> Float[Tensor, "B P D"]:
        """The predicted frames after all blocks, text and history being remembered."""
        if input.requested or not self.spec.remembers_history:
            raise ValueError("features, and models that read their history anew, need input.remembered=None")
        new = FrameGrids(frames.sizes[frames.history :], frames.predicted)
        x = self.contexts.positioned(no_view(self.embed_patches(input)), input, new)  # (B, P, D)
        memories, dual = iter(memory.parts), self.contexts.dual(input, frames, conditions, new)
        for number, block in enumerate(self.dual_blocks):
            x = with_addition(cast(DualStreamBlock, block).resume(x, dual, next(memories)), input.additions, number)
        single = self.contexts.single(input, frames, conditions, new)
        for layer, block in enumerate(self.blocks):
            x = cast(MMDiMBlock, block).resume(x, single.of_layer(layer), next(memories))
            x = with_addition(x, input.additions, len(self.dual_blocks) + layer)
        return x

    def _conditions(self, input: DenoiserInput, grid: Grid, frames: FrameGrids) -> StreamConditions:
        condition = self.condition(input)
        if not self.clean_history:
            return spread(condition, self.patch[0], grid, frames)
        clean = self.condition(input, input.embedded_t.new_zeros(len(input.embedded_t)))
        return spread_clean(clean, condition, self.patch[0], grid, frames)

    def _embedded(self, input: DenoiserInput, frames: FrameGrids) -> Float[Tensor, "B V D"]:
        history = [self.embed(patchify(known.latents, self.patch)) for known in input.history]  # (B, tokens, D) each
        video = torch.cat([*history, self.embed_patches(input)], dim=1)
        return self.contexts.positioned(video, input, frames)

    def _dual(
        self, text: Tensor | None, video: Tensor, context: DualBlockContext, input: DenoiserInput
    ) -> tuple[Tensor | None, Tensor, list[tuple[Tensor, Tensor]]]:
        """The dual-stream blocks, and where it was requested what the attention of the later ones compares."""
        found = []
        for number, block in enumerate(self.dual_blocks):
            if SELF_ATTENTION not in input.requested:
                text, video = self.run(block, text, video, context)
                video = with_addition(video, input.additions, number)
                continue
            assert isinstance(block, DualStreamBlock)
            text, video, q, k = self.run(block.with_queries_and_keys, text, video, context)
            video = with_addition(video, input.additions, number)
            if number in self.watched:
                found.append((q, k))
        return text, video, found


def _frame_grids(input: DenoiserInput, grid: Grid, patch: tuple[int, int, int]) -> FrameGrids:
    """Sizes in tokens of the frames of the history, then of the predicted ones."""
    sizes: list[tuple[int, int]] = []
    for earlier in (patch_grid(known.latents, patch) for known in input.history):
        sizes += [(earlier.height, earlier.width)] * earlier.frames
    return FrameGrids((*sizes, *[(grid.height, grid.width)] * grid.frames), grid.frames)
