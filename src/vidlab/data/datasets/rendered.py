"""Data sets that are rendered here: where their shards lie, and how they are written."""

import json
from collections.abc import Callable, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vidlab.assets import cache_folder
from vidlab.data.video import VideoInfo, encode
from vidlab.factors import Factors


class Rendered(NamedTuple):
    """A clip: uint8 RGB (T, H, W, 3), its caption, and its factors where they are known."""

    frames: NDArray[np.uint8]
    caption: str
    factors: Factors | None = None


def rendered_folder(name: str, settings: Mapping[str, Any], cache_dir: str | Path | None) -> Path:
    """The folder of a data set, whose name changes with everything that changes a clip.

    Args:
        name: begins it.
        settings: all that changes a clip, as JSON values.
        cache_dir: where it lies; None is vidlab's cache folder.
    """
    digest = blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=6).hexdigest()
    return cache_folder(cache_dir) / f"{name}-{digest}"


def write_rendered(
    folder: Path,
    name: str,
    settings: Mapping[str, Any],
    info: VideoInfo,
    clips: Mapping[str, int],
    render: Callable[[int, str], Rendered],
    title: str | None = None,
) -> None:
    """Render all clips of a data set, with a progress bar, into shards with an index.

    Args:
        folder: of ``rendered_folder``.
        name: of the data set.
        settings: as there; they are kept with the index.
        info: of every clip.
        clips: how many each split has.
        render: makes the clip of a number in a split.
        title: beside the progress bar; None is the name.
    """
    from rich.progress import track

    from vidlab.data.storage.shards import ShardWriter

    jobs = [(split, number) for split, count in clips.items() for number in range(count)]
    with ShardWriter(folder, metadata=settings) as writer:
        for split, number in track(jobs, description=f"rendering {title or name}"):
            clip = render(number, split)
            video = encode(clip.frames, info.fps, lossless=True)
            writer.add(f"{split}-{number:07d}", video, info, [clip.caption], split, name, clip.factors)
