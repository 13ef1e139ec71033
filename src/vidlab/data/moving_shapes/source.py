"""The moving-shapes data set: a pure function of (settings, split, index), encoded to shards on first use."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

from vidlab.data.moving_shapes.captions import write_caption
from vidlab.data.moving_shapes.factors import describe
from vidlab.data.moving_shapes.render import Frames, render_scene
from vidlab.data.moving_shapes.sampling import sample_scene
from vidlab.data.moving_shapes.scene import Canvas
from vidlab.errors import UserError
from vidlab.factors import Factors
from vidlab.randomness import seed_of

RENDERER_VERSION = 5
"""Part of the cache folder's name: raise it with every change of the pixels, the factors or the captions."""

DIFFICULTIES = ("plain", "rich")
LEAST_FRAMES = 4  # a bounce needs frames on both sides, and a pan may not jump a tile
LEAST_SIDE = 16
FIRST_INDEX = {"train": 0, "val": 1 << 40}


@dataclass(frozen=True)
class RenderedClip:
    """A clip with all that is known of it; frames are uint8 RGB (T, H, W, 3)."""

    frames: Frames
    caption: str
    factors: Factors


@dataclass(frozen=True)
class MovingShapes:
    """Clips of colored shapes that move, grow, turn, bounce and pass before one another.

    "plain" shows one object on a plain background with a fixed camera. "rich" adds striped, checkered and
    gradient backgrounds, a second object, occlusion, and a camera that pans or zooms. Lengths and speeds are
    fractions of the short side and of the clip, so other frame counts and sizes show the same scenes. The
    validation clips come from their own range of indices and are never trained on.

    Args:
        frames: frames per clip, at least 4.
        height: pixels, at least 16.
        width: pixels, at least 16; neither side more than 4 times the other.
        fps: frames per second written to the files.
        difficulty: "plain" or "rich".
        train_clips: size of the "train" split, at least 1.
        val_clips: size of the "val" split, may be 0.
        seed: of everything drawn.
        cache_dir: where the shards go; None is vidlab's cache folder.

    Raises:
        UserError: naming the setting that is out of range.
    """

    frames: int = 8
    height: int = 32
    width: int = 32
    fps: float = 8
    difficulty: str = "plain"
    train_clips: int = 4096
    val_clips: int = 256
    seed: int = 0
    cache_dir: str | Path | None = None
    name: str = "moving_shapes"

    def __post_init__(self) -> None:
        if self.difficulty not in DIFFICULTIES:
            raise UserError(f"data.difficulty={self.difficulty}: choose one of {', '.join(DIFFICULTIES)}.")
        _at_least("frames", self.frames, LEAST_FRAMES, "fewer frames cannot show a bounce or a turn")
        _at_least("height", self.height, LEAST_SIDE, "smaller shapes cannot be told apart")
        _at_least("width", self.width, LEAST_SIDE, "smaller shapes cannot be told apart")
        _at_least("source.train_clips", self.train_clips, 1, "there is nothing to train on")
        _at_least("source.val_clips", self.val_clips, 0, "it is a number of clips")
        if max(self.height, self.width) > 4 * min(self.height, self.width):
            raise UserError(
                f"data.height={self.height} data.width={self.width}: neither may be over 4 times the other."
            )
        if not self.fps > 0:
            raise UserError(f"data.source.fps={self.fps}: must be above 0.")

    def render(self, index: int, split: str = "train") -> RenderedClip:
        """Make one clip, without touching the disk.

        Args:
            index: which clip of the split, from 0; there is no upper bound but the split's own range of 2^40.
            split: "train" or "val".

        Raises:
            UserError: there is no such split.
            IndexError: the split has no such clip.
        """
        number = clip_number(self.name, index, split)
        canvas = Canvas(self.frames, self.height, self.width)
        sample = sample_scene(self._rng(number, "scene"), canvas, self.difficulty)
        factors = describe(sample.scene, sample.occlusion)
        caption = write_caption(self._rng(number, "caption"), factors)
        return RenderedClip(render_scene(sample.scene), caption.text, replace(factors, named=caption.named))

    def prepare(self) -> Path:
        """The folder with shards and index; renders and encodes all clips if it is not there yet.

        Safe when several processes ask at once: one works, the others wait for it.
        """
        from vidlab.data.datasets.base import prepare_once

        return prepare_once(self.folder, self._write)

    @property
    def folder(self) -> Path:
        """Where the shards of these settings live; the name changes with everything that changes a clip."""
        from vidlab.data.datasets.rendered import rendered_folder

        return rendered_folder(f"moving_shapes-{self.difficulty}", self._settings, self.cache_dir)

    @property
    def _settings(self) -> dict[str, Any]:
        """All that changes a clip, as JSON values."""
        return asdict(self) | {"cache_dir": None, "renderer": RENDERER_VERSION}

    def _write(self, folder: Path) -> None:
        from vidlab.data.datasets.rendered import Rendered, write_rendered
        from vidlab.data.video import VideoInfo

        def render(number: int, split: str) -> Rendered:
            clip = self.render(number, split)
            return Rendered(clip.frames, clip.caption, clip.factors)

        info = VideoInfo(self.frames, self.height, self.width, float(self.fps), self.frames / self.fps)
        clips, title = {"train": self.train_clips, "val": self.val_clips}, f"{self.name} ({self.difficulty})"
        write_rendered(folder, self.name, self._settings, info, clips, render, title)

    def _rng(self, number: int, purpose: str) -> Random:
        return Random(seed_of(self.seed, "moving_shapes", number, purpose))


def clip_number(name: str, index: int, split: str) -> int:
    """The number of a clip among those of both splits of a rendered data set, which no two clips share.

    Args:
        name: of the data set, for the message.
        index: from 0 within the split, below 2^40.
        split: "train" or "val".

    Raises:
        UserError: there is no such split.
        IndexError: the split has no such clip.
    """
    if split not in FIRST_INDEX:
        raise UserError(f"split={split}: {name} has {' and '.join(FIRST_INDEX)}.")
    if not 0 <= index < FIRST_INDEX["val"]:
        raise IndexError(f"clip index {index} is outside [0, 2^40)")
    return FIRST_INDEX[split] + index


def _at_least(name: str, value: int, least: int, reason: str) -> None:
    if value < least:
        raise UserError(f"data.{name}={value}: must be at least {least}; {reason}.")
