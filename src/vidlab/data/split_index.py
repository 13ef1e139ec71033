"""Filters an index to the clips that can be trained on and held out; the others are counted and told."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace

from lightning.pytorch.utilities import rank_zero_info, rank_zero_only, rank_zero_warn

from vidlab.data.clip_transform import ClipTransform
from vidlab.data.names import shown
from vidlab.data.samplers.buckets import Bucketing
from vidlab.data.storage.index import ClipIndex
from vidlab.data.storage.index_checks import enlarged, odd_splits
from vidlab.errors import DataError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SplitIndex:
    """The usable clips of a data set.

    Args:
        train: clips to train on.
        val: held-out clips.
        hash: identity of the data set and the number of training clips, which together fix the order.
        total: clips of the data set, unusable ones included.
    """

    train: ClipIndex
    val: ClipIndex
    hash: str
    total: int

    @property
    def shown(self) -> ClipIndex:
        """Held-out clips, or training clips when none is held out."""
        return self.val if len(self.val) else self.train


def split_index(
    index: ClipIndex,
    name: str,
    view: ClipTransform,
    rule: Bucketing,
    val_clips: int,
    key_frame_stride: int | None = None,
) -> SplitIndex:
    """The usable clips of an index: those held out are cut as ``view`` says, those of training as ``rule`` says.

    With a ``key_frame_stride`` all are long enough for frames that far apart.

    Raises:
        DataError: none is long enough, or a split that is needed is empty.
    """
    long = index if rule.trains_short and val_clips == 0 else _long_enough(index, view, rule, key_frame_stride)
    train, val = (index if rule.trains_short else long).select("train"), long.select("val")
    if len(train) + len(val) < len(index) and (odd := odd_splits(index.splits())):
        rank_zero_warn(f"data={name}: {odd}")
    for split, rows, needed in (("train", train, 1), ("val", val, min(1, val_clips))):
        if len(rows) < needed:
            raise DataError(
                f"data={name}: none of the {len(long)} usable clips is in split {split!r}"
                + (", set data.val_clips=0 to train without validation" if split == "val" else "")
            )
    cut = val if rule.trains_short else long
    if small := enlarged(cut.numbers("height"), cut.numbers("width"), view.height, view.width):
        rank_zero_warn(small)
    rank_zero_only(log.info)("data=%s: %d training and %d held-out clips", name, len(train), len(val))
    if 0 < len(val) < val_clips:
        rank_zero_info(f"data.val_clips={val_clips}, but {len(val)} are held out: using all of them")
    rejected = len(index.metadata.get("rejected", {}))
    return SplitIndex(train, val, f"{index.hash}:{len(train)}", len(index) + rejected)


def _long_enough(index: ClipIndex, view: ClipTransform, rule: Bucketing, far: int | None) -> ClipIndex:
    """The clips with as many frames as the view spans, at the stride ``far`` where there is one."""
    stride_key = "frame_stride" if far is None else "key_frame_stride"
    view = replace(view, frame_stride=far or view.frame_stride)
    usable = index.select(min_frames=view.span)
    asked = f"data.frames={view.frames}, data.{stride_key}={view.frame_stride}: {view.span} frames needed"
    if len(usable) == 0:
        longest = int(index.numbers("frames").max(initial=0))
        possible = (longest - 1) // view.frame_stride + 1
        raise DataError(
            f"{asked} per clip, but the longest of {len(index)} clips has {longest}. "
            f"Set data.frames={possible} or lower"
            + (f", or a lower data.{stride_key}" if view.frame_stride > 1 else "")
        )
    if len(usable) < len(index):
        where = "left out of validation" if rule.trains_short else "left out"
        rank_zero_warn(f"{asked}: {len(index) - len(usable)} of {len(index)} clips are shorter and {where}")
    return usable


def refuse_too_many_corrupt(corrupt: Mapping[str, str], total: int, most: float | int, name: str) -> None:
    """Refuse data of which more cannot be read than ``most``: a share of all when below 1, else a number of clips.

    Raises:
        DataError: with the first three clips, and why.
    """
    if len(corrupt) <= (most * total if most < 1 else most):
        return
    first = "; ".join(shown(f"{key}: {reason}") for key, reason in list(corrupt.items())[:3])
    raise DataError(
        f"{len(corrupt)} of {total} clips of data={name} cannot be read, more than data.max_corrupt={most:g} allows "
        f"({first}). Mend or remove them, or raise data.max_corrupt"
    )
