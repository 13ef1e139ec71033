"""What an index holds, in words."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vidlab.data.bucketed import column
from vidlab.data.index import INDEX_NAME, ClipIndex

SHOWN = 5  # reasons, each with an example


def report_text(index: ClipIndex, name: str, folder: Path) -> str:
    """Where the index is, its clips by split and size, and what was left out and why."""
    splits = Counter(index.column("split"))
    shards = len(set(index.column("shard")))
    lines = [
        str(folder / INDEX_NAME),
        f"  data={name}: {len(index)} clips in {shards} files below {index.root}",
        "  splits: " + ", ".join(f"{clips} {split}" for split, clips in sorted(splits.items())),
    ]
    for quantity in ("frames", "height", "width", "fps"):
        values = column(index, quantity)
        least, middle, most = np.min(values), np.median(values), np.max(values)
        lines.append(f"  {quantity}: {least:g} to {most:g}, half of them {middle:g} or less")
    lines.append(f"  duration: {np.sum(column(index, 'duration')) / 3600:.2f} hours in all")
    return "\n".join([*lines, *left_out(index.metadata)])


def left_out(metadata: Mapping[str, Any]) -> list[str]:
    """Files that the data set names and the index does not hold, by reason, from what the index's writer recorded."""
    absent = int(metadata.get("absent", 0))
    lines = [f"  absent: {absent} of the {metadata.get('named')} videos named are not there"] if absent else []
    silent = int(metadata.get("without_caption", 0))
    lines += [f"  without a caption: {silent} of {metadata.get('videos')} videos"] if silent else []
    rejected: dict[str, str] = dict(metadata.get("rejected", {}))
    reasons = Counter(rejected.values())
    lines.append(f"  rejected: {len(rejected) or 'none'}")
    for reason, count in reasons.most_common(SHOWN):
        first = next(file for file, why in rejected.items() if why == reason)
        lines.append(f"    {count} because: {reason} (first {first})")
    rest = len(reasons) - SHOWN
    return [*lines, f"    and {rest} reasons more"] if rest > 0 else lines
