"""Rendered solids seen by seven cameras, encoded to shards on first use."""

from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

import numpy as np
from numpy.typing import NDArray

from vidlab.data.moving_shapes.source import LEAST_SIDE, clip_number
from vidlab.data.multiview.cameras import VIEWS
from vidlab.data.multiview.objects import ELEVATIONS, draw_object
from vidlab.errors import UserError
from vidlab.randomness import seed_of

RENDERER_VERSION = 1
"""Part of the cache folder's name: raise it with every change of the pixels or the captions."""
FPS = 1.0  # of the files; views have no speed


@dataclass(frozen=True)
class MultiviewSolids:
    """Clips of seven views: the given one, then the six of Zero123++, of one or two solids on a white background.

    The given view is from azimuth 0 and an elevation between 0 and 30 degrees, the others are from the cameras in
    ``vidlab.data.multiview.cameras``. Objects are cubes, prisms, pyramids, cylinders, cones and octahedra with colored
    faces, drawn by (seed, split, index).

    Args:
        height, width: pixels, at least 16.
        train_clips: objects of the "train" split, at least 1.
        val_clips: objects of the "val" split, may be 0.
        seed: of everything drawn.
        cache_dir: where the shards go; None is vidlab's cache folder.

    Raises:
        UserError: naming the setting that is out of range.
    """

    height: int = 32
    width: int = 32
    train_clips: int = 4096
    val_clips: int = 256
    seed: int = 0
    cache_dir: str | Path | None = None
    name: str = "multiview_solids"

    def __post_init__(self) -> None:
        least = {"height": LEAST_SIDE, "width": LEAST_SIDE, "source.train_clips": 1, "source.val_clips": 0}
        for name, minimum in least.items():
            value = getattr(self, name.removeprefix("source."))
            if value < minimum:
                raise UserError(f"data.{name}={value}: must be at least {minimum}.")

    def render(self, index: int, split: str = "train") -> tuple[NDArray[np.uint8], str]:
        """The views of an object, uint8 RGB (7, H, W, 3), and its caption, without touching the disk.

        Args:
            index: which object of the split, from 0, below 2^40.
            split: "train" or "val".

        Raises:
            UserError: there is no such split.
            IndexError: the split has no such object.
        """
        rng = Random(seed_of(self.seed, "multiview_solids", clip_number(self.name, index, split)))
        shown, elevation = draw_object(rng), rng.uniform(*ELEVATIONS)
        return shown.views(elevation, self.height, self.width), shown.caption

    def prepare(self) -> Path:
        """The folder with shards and index; renders all objects if it is not there yet. Safe in several processes."""
        from vidlab.data.datasets.base import prepare_once
        from vidlab.data.datasets.rendered import rendered_folder

        return prepare_once(rendered_folder(self.name, self._settings, self.cache_dir), self._write)

    @property
    def _settings(self) -> dict[str, object]:
        return asdict(self) | {"cache_dir": None, "renderer": RENDERER_VERSION}

    def _write(self, folder: Path) -> None:
        from vidlab.data.datasets.rendered import Rendered, write_rendered
        from vidlab.data.video import VideoInfo

        info = VideoInfo(VIEWS, self.height, self.width, FPS, VIEWS / FPS)
        clips = {"train": self.train_clips, "val": self.val_clips}
        render = self.render
        write_rendered(folder, self.name, self._settings, info, clips, lambda n, split: Rendered(*render(n, split)))
