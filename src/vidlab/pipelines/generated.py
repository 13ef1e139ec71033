"""Videos that were made, for people, for notebooks and for metrics."""

import html
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np
from jaxtyping import UInt8

from vidlab.data.video.contact_sheets import (
    contact_sheet,
    grid_mp4,
    tile,
    upscale_nearest,
    write_gif,
    write_lossless_mp4,
    write_playable_mp4,
    write_png,
)
from vidlab.errors import UserError
from vidlab.files import write_json, write_text

SUFFIXES = (".mp4", ".gif")
# Pixels of the short side below which a video is shown enlarged: of one, and of each in a grid.
SHOWN, SHOWN_IN_GRID = 256, 128


@dataclass(frozen=True)
class GeneratedVideo:
    """One video and what it was made from.

    Args:
        prompt: its text.
        number: of the videos of that prompt, from 0.
        frames: (T, H, W, 3), uint8.
        fps: frames per second at which it is shown.
        original: the prompt that a refiner expanded to ``prompt``; None where there was no refiner.
        refiner: which one.
    """

    prompt: str
    number: int
    frames: UInt8[np.ndarray, "T H W 3"] = field(repr=False)
    fps: float = 8.0
    original: str | None = None
    refiner: str = ""

    @property
    def label(self) -> str:
        """What stands beside the video: its prompt, and before it the one that was typed."""
        return self.prompt if self.original is None else f"{self.original} -> {self.prompt}"

    def save(self, path: str | Path) -> Path:
        """Write an mp4 that plays everywhere, or a gif; small videos are enlarged without smoothing.

        Raises:
            UserError: another suffix.
        """
        return _write(self.frames, Path(path), self.fps, SHOWN)

    def _repr_html_(self) -> str:
        return _tag(self.frames, self.fps, SHOWN, self.label)


@dataclass(frozen=True)
class GeneratedVideos(Sequence[GeneratedVideo]):
    """All videos of a call, in the order of the prompts; shows itself in a notebook, side by side."""

    videos: tuple[GeneratedVideo, ...]

    @overload
    def __getitem__(self, index: int) -> GeneratedVideo: ...
    @overload
    def __getitem__(self, index: slice) -> "GeneratedVideos": ...
    def __getitem__(self, index: int | slice) -> "GeneratedVideo | GeneratedVideos":
        """One video by number, or a part of them."""
        return GeneratedVideos(self.videos[index]) if isinstance(index, slice) else self.videos[index]

    def __len__(self) -> int:
        return len(self.videos)

    def __iter__(self) -> Iterator[GeneratedVideo]:
        return iter(self.videos)

    @property
    def frames(self) -> UInt8[np.ndarray, "T H W 3"]:
        """The frames of a single video; of several, side by side in one picture."""
        if len(self) == 1:
            return self.videos[0].frames
        return tile(np.stack([video.frames for video in self.videos]))

    def save(self, path: str | Path) -> Path:
        """Write one mp4 or gif, several videos side by side; or, where ``path`` has no suffix, a folder of all forms.

        Raises:
            UserError: another suffix.
        """
        path = Path(path)
        if not path.suffix:
            write(self, path, self.videos[0].fps)
            return path
        if len(self) == 1:
            return self.videos[0].save(path)
        return _write(self.frames, path, self.videos[0].fps, SHOWN_IN_GRID)

    def _repr_html_(self) -> str:
        prompts = dict.fromkeys(video.label for video in self.videos)
        shown = SHOWN if len(self) == 1 else SHOWN_IN_GRID
        return _tag(self.frames, self.videos[0].fps, shown, "; ".join(prompts))


def _write(frames: UInt8[np.ndarray, "T H W 3"], path: Path, fps: float, shown: int) -> Path:
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(
            f"{path}: videos are saved as {' or '.join(SUFFIXES)}, or as a folder by a name without suffix."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() == ".gif":
        write_gif(path, upscale_nearest(frames, shown), fps)
    else:
        write_playable_mp4(path, frames, fps)
    return path


def _tag(frames: UInt8[np.ndarray, "T H W 3"], fps: float, shown: int, title: str) -> str:
    """An image of HTML that moves."""
    import base64

    with tempfile.TemporaryDirectory() as folder:
        content = _write(frames, Path(folder) / "video.gif", fps, shown).read_bytes()
    data = base64.b64encode(content).decode()
    return f'<img title="{html.escape(title, quote=True)}" src="data:image/gif;base64,{data}">'


def write(samples: Sequence[GeneratedVideo], folder: Path, fps: float) -> None:
    """Write, for people, a contact sheet, a grid and every video as gif and mp4; for metrics, lossless originals.

    ``originals`` is a folder of videos with caption files, so it is also a data set (``data=folder``). Where a refiner
    expanded the prompts, ``prompts.json`` has both, and a ``.json`` beside each original video too.
    """
    originals = folder / "originals"
    originals.mkdir(parents=True, exist_ok=True)
    for index, sample in enumerate(samples):  # first: the rest can be made from them
        write_text(originals / f"{index:03d}.txt", sample.prompt + "\n")
        if sample.original is not None:
            write_json(originals / f"{index:03d}.json", _prompts(sample))
        write_lossless_mp4(originals / f"{index:03d}.mp4", sample.frames, fps)
    if any(sample.original is not None for sample in samples):
        write_json(folder / "prompts.json", [_prompts(sample) | {"number": sample.number} for sample in samples])
    videos = np.stack([sample.frames for sample in samples])
    write_png(folder / "sheet.png", contact_sheet(videos, labels=[sample.label for sample in samples]))
    grid_mp4(folder / "grid.mp4", videos, fps)
    write_gif(folder / "grid.gif", tile(upscale_nearest(videos, SHOWN_IN_GRID)), fps)
    for index, sample in enumerate(samples):
        for suffix in SUFFIXES:
            _write(sample.frames, folder / f"{index:03d}{suffix}", fps, SHOWN)


def _prompts(sample: GeneratedVideo) -> dict[str, Any]:
    """Both prompts of a video, as typed and as the model read it."""
    return {"prompt": sample.original or sample.prompt, "refined": sample.prompt, "refiner": sample.refiner}
