"""The structure and the first frames of held-out clips, for what a model makes of their captions during training."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vidlab.clip import ClipBatch
from vidlab.conditioning.base import Conditioning
from vidlab.data.clip_reader import ClipReader
from vidlab.data.dataset import ChosenClips, ClipDataset, LoadFailure
from vidlab.data.module import ClipDataModule
from vidlab.errors import DataError
from vidlab.structure import StructureSignal


def held_out_structure(
    conditioning: Conditioning, data: ClipDataModule, positions: Sequence[int], device: torch.device
) -> StructureSignal | None:
    """The structure of all frames of held-out clips; None for a model that is told none, and nothing is read.

    Args:
        conditioning: of the model.
        data: whose clips.
        positions: among those held out, over and over where there are fewer.
        device: where signals are taken and returned.

    Raises:
        DataError: the clips cannot be read.
    """
    if not conditioning.tells_structure:
        return None
    count = len(data.data.shown)
    clips = held_out_clips(data, [position % count for position in positions]).to(device)
    return conditioning.whole_structure(clips.pixels, clips.factors)


def held_out_frames(
    data: ClipDataModule, positions: Sequence[int], count: int
) -> tuple[Float[Tensor, "B 3 T H W"], Bool[Tensor, "B T"]]:
    """Held-out clips, and which of their frames are given to a model: the first ``count``.

    Raises:
        DataError: the clips cannot be read.
    """
    return first_frames(held_out_clips(data, positions), count)


def first_frames(clips: ClipBatch, count: int) -> tuple[Float[Tensor, "B 3 T H W"], Bool[Tensor, "B T"]]:
    """Clips in pixels, and True at the first ``count`` frames of each, which a model is given."""
    known = torch.zeros(len(clips), clips.size[0], dtype=torch.bool)
    known[:, :count] = True
    return clips.pixels, known


def held_out_clips(data: ClipDataModule, positions: Sequence[int]) -> ClipBatch:
    """Clips as validation shows them; training clips when none is held out.

    Args:
        data: whose clips.
        positions: among ``data.data.shown``, from 0.

    Raises:
        DataError: they cannot be read.
    """
    view, clips = replace(data.view, random=False, views=None), data.data.shown
    reader = ClipReader(clips, view, data.seed, limits=data.limits)
    batch = ClipDataset(reader, ChosenClips(positions, total=len(clips), view=view))[0]
    if isinstance(batch, LoadFailure):
        raise DataError(batch.message)
    return batch
