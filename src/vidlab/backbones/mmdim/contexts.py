"""What the blocks of MM-DiM share in one forward pass: positions, masks, scans, conditions."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from vidlab.backbones.mmdim.conditions import StreamConditions
from vidlab.backbones.mmdim.dual_block import DualBlockContext
from vidlab.backbones.mmdim.positions import fourier_of, frame_causal, frame_times, rotation_of
from vidlab.backbones.mmdim.settings import level_registers, role_registers
from vidlab.backbones.mmdim.single_block import SingleBlockContext
from vidlab.backbones.mmdim.temporal import temporal_grids, temporal_mask
from vidlab.clip import DenoiserInput
from vidlab.layers.mixers.recomposition import FrameGrids, frame_of_token, scan_tables, unscan_tables
from vidlab.layers.mixers.recomposition import text_ends as ends_of
from vidlab.layers.mixers.scan_orders import ScanOrders
from vidlab.layers.rope import Rotation
from vidlab.layers.tables import Tables

# As in DiT: over the noise of the patches, which a new embedding passes on at about unit variance.
POSITION_SCALE = 2.0


@dataclass(frozen=True)
class Contexts:
    """Makes the contexts of one model's blocks.

    A pass runs text and all frames, or a part: text and the frames of the history, or the predicted frames alone after
    a history that is remembered. ``part`` holds the frames that run; in a history none are predicted.

    Args:
        tables: keeps constant tensors.
        width: D.
        patch_frames: latent frames of a token.
        full_grid: (rows, columns) of a frame's tokens at full resolution.
        rope: planes, base and scale of rotary positions.
        absolute: whether Fourier features of positions are added to tokens.
        orders: of the scans.
        layers: how many single-stream blocks there are.
        bank: rows of registers.
        by_role: registers follow the role of a frame, not its resolution.
        both_ends: text stands at both ends of the scan.
        temporal: whether there is a temporal branch.
    """

    tables: Tables
    width: int
    patch_frames: int
    full_grid: tuple[int, int]
    rope: tuple[tuple[int, int, int], float, tuple[float, float, float]]
    absolute: bool
    orders: ScanOrders
    layers: int
    bank: int
    by_role: bool
    both_ends: bool
    temporal: bool

    def positioned(
        self, video: Float[Tensor, "B V D"], input: DenoiserInput, frames: FrameGrids
    ) -> Float[Tensor, "B V D"]:
        """Tokens of ``frames``, the last ones of all, with the Fourier features of their positions added."""
        if not self.absolute:
            return video
        times = frame_times(input, self.patch_frames)
        settings = (frames, self.width, self.rope[2])
        if times is None:
            positions = self.tables.get(fourier_of, *settings, device=video.device)  # (V, D)
        else:
            positions = fourier_of(*settings, video.device, times[-len(frames.sizes) :])
        return video + (POSITION_SCALE * positions).to(video.dtype)

    def dual(
        self, input: DenoiserInput, frames: FrameGrids, conditions: StreamConditions, part: FrameGrids | None = None
    ) -> DualBlockContext:
        """Of the dual-stream blocks; the mask has columns for text and all frames up to the last that runs."""
        number = self.tables.get(frame_of_token, frames, device=input.latents.device)
        text = None if input.text is None else input.text.mask
        running = _running(part, _slots(input))
        mask = None if text is None and len(frames.sizes) == 1 else frame_causal(number, text, running)
        if mask is not None and part is not None and not part.predicted:
            mask = mask[..., running]
        return DualBlockContext(
            rotation=self._rotation(input, frames)[_running(part, 0)],
            mask=mask,
            text_condition=conditions.text,
            video_condition=conditions.frames,
            video_places=None if conditions.places is None else conditions.places[_running(part, 0)],
        )

    def single(
        self, input: DenoiserInput, frames: FrameGrids, conditions: StreamConditions, part: FrameGrids | None = None
    ) -> SingleBlockContext:
        """Of the single-stream blocks."""
        device, paths = input.latents.device, (self.orders, min(len(self.orders.paths), self.layers))
        if self.by_role:
            registers = role_registers(frames, self.bank)
        else:
            registers = level_registers(frames, self.full_grid, self.bank)
        scanned = part or frames
        first = frames.history if part is not None and part.predicted else 0
        registers = registers[first : first + len(scanned.sizes)]
        text = None if input.text is None or first else ends_of(input.text.mask, self.both_ends)
        slots, places = _slots(input), conditions.joint_places(_slots(input))
        return SingleBlockContext(
            grids=temporal_grids(frames) if self.temporal else None,
            text=text,
            scans=self.tables.get(scan_tables, scanned, registers, self.bank, *paths, device=device),
            unscans=self.tables.get(unscan_tables, scanned, *paths, device=device),
            temporal_mask=self.tables.get(temporal_mask, frames, device=device) if self.temporal else None,
            condition=conditions.joint(slots),
            places=None if places is None else places[_running(part, slots)],
        )

    def _rotation(self, input: DenoiserInput, frames: FrameGrids) -> Rotation:
        """Of the frames; text stands at the origin, where nothing turns."""
        times, settings, device = frame_times(input, self.patch_frames), (frames, *self.rope), input.latents.device
        if times is None:
            return self.tables.get(rotation_of, *settings, device=device)
        return rotation_of(*settings, device, times)  # (V, ...)


def _slots(input: DenoiserInput) -> int:
    return 0 if input.text is None else input.text.tokens.shape[1]


def _running(part: FrameGrids | None, slots: int) -> slice:
    """Which tokens of [text, frames] run."""
    if part is None:
        return slice(None)
    return slice(-part.tokens, None) if part.predicted else slice(slots + part.tokens)
