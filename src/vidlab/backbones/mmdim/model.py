"""MM-DiM: dual-stream attention blocks, then single-stream blocks of a causal mixer (M4V)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vidlab.backbones.mmdim.conditions import StreamConditions, VectorCondition, spread
from vidlab.backbones.mmdim.dual_block import DualBlockContext, DualStreamBlock, Stream
from vidlab.backbones.mmdim.positions import frame_causal, frame_times, rotation_of, waves_of
from vidlab.backbones.mmdim.settings import check_settings, level_registers, role_registers, rotation_planes
from vidlab.backbones.mmdim.single_block import MMDiMBlock, SingleBlockContext
from vidlab.backbones.mmdim.temporal import temporal_mask
from vidlab.backbones.patched import ControlEmbed, PatchedDenoiser
from vidlab.backbones.watched import frame_attention, later_half
from vidlab.clip import DenoiserInput, DenoiserOutput, LatentShape
from vidlab.features import SELF_ATTENTION, Feature
from vidlab.layers.attention import xavier_linears, zero_init
from vidlab.layers.kernels import attention_kernel
from vidlab.layers.layouts import Grid
from vidlab.layers.mixers.mixer import MixerKernels
from vidlab.layers.mixers.recomposition import FrameGrids, frame_of_token, scan_tables, unscan_tables
from vidlab.layers.mixers.recomposition import text_ends as ends_of
from vidlab.layers.mixers.scan_orders import ScanOrders
from vidlab.layers.mixers.ssm_kernels import ssm_kernel
from vidlab.layers.modulation import modulate
from vidlab.layers.patches import patch_grid, patchify, unpatchify
from vidlab.layers.rope import Rotation, rope_scales
from vidlab.layers.tables import Tables

# As in DiT: over the noise of the patches, which a new embedding passes on at about unit variance.
POSITION_SCALE = 2.0
# Tables of a shape are six, and pyramid flow has a shape for every stage and every length of the history.
KEPT = 512


class MMDiM(PatchedDenoiser):
    """Text and frames through L dual-stream MM-DiT blocks and N single-stream MM-DiM blocks (M4V, figure 2).

    Frames are read in their order: those of ``input.history``, each at its own resolution, then those of the latents,
    which alone are predicted. Attention in the dual-stream blocks is causal by frame, and text sees itself and the
    first frame. In a single-stream block the mixer reads [text, frames, text] from left to right: no frame is changed
    by a later one, but the text at the right end reads all frames, as in the paper, and what it reads comes to the left
    end of the next block. ``text_ends=left`` leaves the right end out; then no frame depends on a later one through
    the whole model. A new model predicts zero: gates and the head are closed. Without text (``input.text is None``)
    the frames are alone.

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
        mlp_ratio: hidden width of the feed-forward over D.
        pooled_width: width of the pooled text; None is ``text_width``.
        rope_axes: channels of a head for (t, y, x); None shares them evenly.
        rope_base: base of the rotary frequencies.
        rope_scale: (frames, rows, columns) by which positions are divided: interpolation on longer or larger clips.
        absolute_positions: add waves of a token's position to it (``fourier_positions``), as DiT does.
        activation_checkpointing: recompute each block in the backward pass to save memory.
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
        mlp_ratio: float = 4.0,
        pooled_width: int | None = None,
        rope_axes: Sequence[int] | None = None,
        rope_base: float = 10000.0,
        rope_scale: Sequence[float] = (1.0, 1.0, 1.0),
        absolute_positions: bool = False,
        activation_checkpointing: bool = False,
        attention: str = "auto",
        ssm: str = "auto",
        control_channels: Sequence[int] = (),
    ) -> None:
        super().__init__()
        check_settings(
            latent, patch, dual_depth,
            {"width": width, "depth": depth, "heads": heads, "registers": registers, "scan_paths": len(scan_paths)},
            {"register_by": register_by, "text_ends": text_ends},
        )  # fmt: skip
        self.watched = later_half(range(dual_depth))
        features = frozenset({SELF_ATTENTION} if self.watched else ())
        self.declare(patch, control_channels, reads_history=True, features=features)
        self.spec = replace(self.spec, takes_ssm=True, hidden_matrices=("dual_blocks.*", "blocks.*"))
        _, rows, columns = self.patch
        self.latent_channels, self.width = latent.channels, width
        self.full_grid = (latent.height // rows, latent.width // columns)
        self.orders = ScanOrders(scan_paths, scan)
        self.bank, self.by_role, self.both_ends = registers, register_by == "role", text_ends == "both"
        self.rope = (rotation_planes(width // heads, rope_axes), rope_base, rope_scales(rope_scale))
        self.absolute_positions, self.temporal_branch = absolute_positions, temporal_branch
        self.activation_checkpointing = activation_checkpointing
        self.tables = Tables(kept=KEPT)
        kernels = MixerKernels(attention_kernel(attention), ssm_kernel(ssm))
        patch_channels = latent.channels * math.prod(patch)
        self.embed = nn.Linear(patch_channels, width)
        self.controls = nn.ModuleList(ControlEmbed(n * math.prod(patch), width) for n in self.control_channels)
        self.condition = VectorCondition(width, pooled_width or text_width)
        self.text_tokens = nn.Linear(text_width, width)
        sizes = (width, heads, mlp_ratio)
        self.dual_blocks = nn.ModuleList(DualStreamBlock(*sizes, kernels.attention) for _ in range(dual_depth))
        self.blocks = nn.ModuleList(
            MMDiMBlock(*sizes, mixer, kernels, temporal_branch, registers) for _ in range(depth)
        )
        self.head_modulation, self.head = nn.Linear(width, 2 * width), nn.Linear(width, patch_channels)
        self.reset_parameters()

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

    def forward(self, input: DenoiserInput) -> DenoiserOutput:
        """Predict the objective's target for every latent position.

        Raises:
            ValueError: latents or history that do not divide into patches, or, with the temporal branch, grids that
                are no whole multiples of the smallest.
        """
        self.check_requested(input.requested)
        grid = patch_grid(input.latents, self.patch)
        frames = self._frames(input, grid)
        video = self._embedded(input, frames)
        text = None if input.text is None else self.text_tokens(input.text.tokens)
        conditions = spread(self.condition(input), self.patch[0], grid, frames)
        features: dict[str, Feature] = {}
        if len(self.dual_blocks):
            text, video, found = self._dual(text, video, input, frames, conditions)
            if SELF_ATTENTION in input.requested:
                features[SELF_ATTENTION] = tuple(frame_attention(q, k, grid) for q, k in found)
        x = video if text is None else torch.cat([text, video], dim=1)  # (B, S + V, D)
        context = self._single_context(input, frames, conditions)
        for layer, block in enumerate(self.blocks):
            x = self.run(block, x, context.of_layer(layer))
        shift, scale = self.head_modulation(conditions.predicted).chunk(2, dim=-1)
        patches = self.head(modulate(x[:, -grid.tokens :], shift, scale))  # (B, P, K)
        return DenoiserOutput(unpatchify(patches, grid, self.patch), features)

    def _frames(self, input: DenoiserInput, grid: Grid) -> FrameGrids:
        sizes: list[tuple[int, int]] = []
        for earlier in (patch_grid(known.latents, self.patch) for known in input.history):
            sizes += [(earlier.height, earlier.width)] * earlier.frames
        return FrameGrids((*sizes, *[(grid.height, grid.width)] * grid.frames), grid.frames)

    def _embedded(self, input: DenoiserInput, frames: FrameGrids) -> Float[Tensor, "B V D"]:
        history = [self.embed(patchify(known.latents, self.patch)) for known in input.history]
        video = torch.cat([*history, self.embed_patches(input)], dim=1)
        if not self.absolute_positions:
            return video
        times = frame_times(input, self.patch[0])
        settings = (frames, self.width, self.rope[2])
        if times is None:
            waves = self.tables.get(waves_of, *settings, device=video.device)
        else:
            waves = waves_of(*settings, video.device, times)
        return video + (POSITION_SCALE * waves).to(video.dtype)

    def _dual(
        self, text: Tensor | None, video: Tensor, input: DenoiserInput, frames: FrameGrids, conditions: StreamConditions
    ) -> tuple[Tensor | None, Tensor, list[tuple[Tensor, Tensor]]]:
        """The dual-stream blocks, and where it was requested what the attention of the later ones compares."""
        frame = self.tables.get(frame_of_token, frames, device=video.device)
        mask = None if input.text is None else input.text.mask
        context = DualBlockContext(
            rotation=self._rotation(input, frames),
            mask=None if mask is None and len(frames.sizes) == 1 else frame_causal(frame, mask),
            text_condition=conditions.text,
            video_condition=conditions.frames,
        )
        found = []
        for number, block in enumerate(self.dual_blocks):
            if SELF_ATTENTION not in input.requested:
                text, video = self.run(block, text, video, context)
                continue
            assert isinstance(block, DualStreamBlock)
            text, video, q, k = self.run(block.with_queries_and_keys, text, video, context)
            if number in self.watched:
                found.append((q, k))
        return text, video, found

    def _rotation(self, input: DenoiserInput, frames: FrameGrids) -> Rotation:
        """Of the frames; text stands at the origin, where nothing turns."""
        times, settings, device = frame_times(input, self.patch[0]), (frames, *self.rope), input.latents.device
        if times is None:
            return self.tables.get(rotation_of, *settings, device=device)
        return rotation_of(*settings, device, times)

    def _single_context(
        self, input: DenoiserInput, frames: FrameGrids, conditions: StreamConditions
    ) -> SingleBlockContext:
        device, paths = input.latents.device, (self.orders, min(len(self.orders.paths), len(self.blocks)))
        if self.by_role:
            registers = role_registers(frames, self.bank)
        else:
            registers = level_registers(frames, self.full_grid, self.bank)
        return SingleBlockContext(
            frames=frames,
            text=None if input.text is None else ends_of(input.text.mask, self.both_ends),
            scans=self.tables.get(scan_tables, frames, registers, self.bank, *paths, device=device),
            unscans=self.tables.get(unscan_tables, frames, *paths, device=device),
            temporal_mask=self.tables.get(temporal_mask, frames, device=device) if self.temporal_branch else None,
            condition=conditions.joint(0 if input.text is None else input.text.tokens.shape[1]),
        )
