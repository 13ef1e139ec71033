"""The structure a user gives: a video or a picture whose edges, depth or outlines the made videos follow."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from vidlab.conditioning.base import Conditioning
from vidlab.conditioning.structure.conditioning import StructureConditioning
from vidlab.conditioning.structure.signals import SignalExtractor, SourceClips
from vidlab.errors import CorruptClipError, UserError
from vidlab.pipelines.conditioning_frames import Media, read_image, to_pixels
from vidlab.structure import StructureSignal

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".avif", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True)
class StructureInput:
    """A source of structure signals, and how strongly they act.

    ``pipe("a red square", structure=StructureInput("clip.mp4"))`` follows the clip's structure in another color.

    Args:
        video: a video or a picture: a file, uint8 (T, H, W, 3) or (H, W, 3), or pixels (3, T, H, W) in [-1, 1].
        signals: extractors by name, out of those the model was trained with; None is all of these. One extractor of
            another name, such as that of signals made by another program, stands in for the model's only one.
        frames: numbers of the frames of which signals are given, from 0; None is all that the video has.
        strength: what the controller adds is multiplied by it; 1 as in training, 0 is the model without control.
        interval: noise levels (least, greatest) in [0, 1] at which it acts; 1 is noise, where sampling begins.
        max_megapixels: larger pictures and frames are refused before they are decoded.

    Raises:
        UserError: a strength or an interval out of range.
    """

    video: Media | Float[Tensor, "3 T H W"]
    signals: Mapping[str, SignalExtractor] | None = None
    frames: Sequence[int] | None = None
    strength: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)
    max_megapixels: float = 128

    def __post_init__(self) -> None:
        if not isinstance(self.strength, int | float) or not -100 <= self.strength <= 100:
            raise UserError(f"structure.strength={self.strength}: give a number; 1 is as trained, 0 is off.")
        if len(self.interval) != 2 or not 0 <= self.interval[0] <= self.interval[1] <= 1:
            raise UserError(
                f"structure.interval={list(self.interval)}: two noise levels, 0 <= least <= greatest <= 1; sampling "
                "goes from 1, noise, to 0."
            )

    def signal(self, conditioning: Conditioning, clip_shape: tuple[int, int, int]) -> StructureSignal:
        """The signals of one clip.

        Args:
            conditioning: of the model.
            clip_shape: (frames, height, width) of its clips.

        Raises:
            UserError: a model without structure control, a signal it does not read, or a video that cannot be read.
        """
        if not isinstance(conditioning, StructureConditioning):
            raise UserError(
                "structure: this model was trained without structure control. Train a controller beside it with "
                "conditioning=structure init=from_run init.run=<its run>."
            )
        chosen = self._chosen(conditioning.signals)
        pixels, known = self._pixels(clip_shape)
        given = dict.fromkeys(chosen, known[None])
        found = conditioning.signal(SourceClips(pixels[None]), given, chosen)
        return replace(found, strength=float(self.strength), interval=(self.interval[0], self.interval[1]))

    def _chosen(self, trained: Mapping[str, SignalExtractor]) -> Mapping[str, SignalExtractor]:
        if self.signals is None:
            return trained
        unknown = [name for name in self.signals if name not in trained]
        if not unknown:
            return self.signals
        if len(trained) == len(self.signals) == 1:
            (name, usual), (other,) = next(iter(trained.items())), self.signals.values()
            if usual.channels == other.channels:
                return {name: other}
        raise UserError(
            f"structure={','.join(unknown)}: the model was trained with structure={','.join(trained)}. Another signal "
            "can stand in for a single one of as many channels."
        )

    def _pixels(self, clip_shape: tuple[int, int, int]) -> tuple[Float[Tensor, "3 T H W"], Tensor]:
        """The clip that signals are taken from, and at which frames; the last frame stands where there is none."""
        count, height, width = clip_shape
        if isinstance(self.video, Tensor):
            shown = self.video
        else:
            shown = to_pixels(_first_frames(self.video, count, self.max_megapixels), height, width)
        shown = shown[:, :count]
        have = shown.shape[1]
        numbers = list(range(have)) if self.frames is None else list(self.frames)
        if not numbers or not all(isinstance(n, int) and 0 <= n < count for n in numbers):
            raise UserError(f"structure.frames={numbers}: numbers of frames from 0 to {count - 1}.")
        if have > 1 and max(numbers) >= have:
            raise UserError(f"structure.frames={numbers}: structure.video has {have} frames, numbered from 0.")
        pixels = torch.cat([shown, shown[:, -1:].expand(-1, count - have, -1, -1)], dim=1)
        known = torch.zeros(count, dtype=torch.bool)
        known[numbers] = True
        return pixels, known


def _first_frames(video: Media, count: int, max_megapixels: float) -> UInt8[np.ndarray, "T H W 3"]:
    """Up to ``count`` frames from the start; one of a picture."""
    key = "structure.video"
    if isinstance(video, np.ndarray):
        if video.dtype != np.uint8 or video.ndim not in (3, 4) or video.shape[-1] != 3 or not len(video):
            raise UserError(f"{key}: an array must be uint8 (T, H, W, 3) or (H, W, 3), and is {video.shape}.")
        return video[None] if video.ndim == 3 else video[:count]
    path = Path(video).expanduser()
    from vidlab.data.video import DecodeLimits, probe, read_frames

    if path.suffix.lower() in PICTURES:
        return read_image(path, key, max_megapixels)[None]
    limits = DecodeLimits(max_megapixels)
    try:
        return read_frames(path, range(min(probe(path, limits=limits).frames, count)), limits=limits)
    except CorruptClipError as error:
        raise UserError(f"{key}={error}.") from error
