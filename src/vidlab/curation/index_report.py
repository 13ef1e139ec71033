"""The report of an index: clips by split and size, and what was left out and why."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vidlab.data.names import shown
from vidlab.data.remarks import sentences
from vidlab.data.storage.clip_row import NO_SPLIT, SPLITS
from vidlab.data.storage.index import INDEX_NAME, ClipIndex

SHOWN = 5  # reasons, each with an example
# What is counted of the samples of tar shards.
SAMPLES = {"without_video": "without a video", "with_further_videos": "with further videos that no text describes"}


def report_text(index: ClipIndex, name: str, folder: Path) -> str:
    """Where the index is, its clips by split and size, and what was left out and why."""
    splits = Counter(index.column("split"))
    shards = len(set(index.column("shard")))
    lines = [
        str(folder / INDEX_NAME),
        f"  data={name}: {len(index)} clips in {shards} files below {index.root}",
        "  splits: " + ", ".join(f"{clips} {shown(split)}" for split, clips in sorted(splits.items())),
    ]
    for quantity in ("frames", "height", "width", "fps"):
        values = index.numbers(quantity)
        least, middle, most = np.min(values), np.median(values), np.max(values)
        lines.append(f"  {quantity}: {least:g} to {most:g}, half of them {middle:g} or less")
    lines.append(f"  duration: {np.sum(index.numbers('duration')) / 3600:.2f} hours in all")
    others = sum(clips for split, clips in splits.items() if split not in SPLITS)
    if others:
        lines.append(f"  not used: {others} clips of a split {NO_SPLIT}")
    lines += [f"  note: {remark}" for remark in sentences(index.metadata)]
    return "\n".join([*lines, *left_out(index.metadata)])


def left_out(metadata: Mapping[str, Any]) -> list[str]:
    """Files that the data set names and the index does not hold, by reason, from what the index's writer recorded."""
    absent, silent = (_count(metadata, name) for name in ("absent", "without_caption"))
    lines = [f"  absent: {absent} of the {_count(metadata, 'named')} videos named are not there"] if absent else []
    of_all = f" of {_count(metadata, 'videos')} videos" if "videos" in metadata else ""
    lines += [f"  without a caption: {silent}{of_all}"] if silent else []
    for name, said in SAMPLES.items():
        count = _count(metadata, name)
        lines += [f"  {said}: {count} samples"] if count else []
    rejected: dict[str, str] = dict(metadata.get("rejected", {}))
    reasons = Counter(rejected.values())
    lines.append(f"  rejected: {len(rejected) or 'none'}")
    for reason, count in reasons.most_common(SHOWN):
        first = next(file for file, why in rejected.items() if why == reason)
        lines.append(f"    {count} because: {shown(reason)} (first {shown(first)})")
    rest = len(reasons) - SHOWN
    return [*lines, f"    and {rest} reasons more"] if rest > 0 else lines


def _count(metadata: Mapping[str, Any], name: str) -> int:
    """A number of the metadata; whoever wrote the index may have put anything there."""
    value = metadata.get(name)
    return value if isinstance(value, int) else 0
