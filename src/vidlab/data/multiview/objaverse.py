"""Renders of Objaverse in the form in which Zero123++ is trained in public: a folder of pictures for each object."""

import json
import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vidlab.data.datasets.base import fingerprint, prepare_once
from vidlab.data.multiview.cameras import VIEWS
from vidlab.data.multiview.source import FPS
from vidlab.data.names import shown
from vidlab.errors import CorruptClipError, DataError, UserError
from vidlab.randomness import seed_of

log = logging.getLogger(__name__)
VERSION = 1
PLAIN = "an object"  # the caption where no category is known
PICTURES = tuple(f"{number:03d}.png" for number in range(VIEWS))
IN_KEYS = re.compile(r"[./]")
LISTED = 5
ADVICE = (
    "It holds rendering_zero123plus/<uid>/000.png (the given view) to 006.png (the six views of Zero123++) and, if "
    "only some objects are to be used, valid_paths.json with their uids."
)


@dataclass(frozen=True)
class ObjaverseViews:
    """Objects as clips of seven views, read from pictures with or without transparency, which is shown over white.

    ``valid_paths.json`` is a list of folders, or a mapping of categories to such lists (InstantMesh's training code
    reads the latter); without it all folders are taken. Pictures are encoded without loss to shards in the cache, once.
    Objects whose pictures are missing, unreadable or of different sizes are named, counted and left out. The caption
    is the object's category, as of Objaverse-LVIS, or "an object".

    Args:
        path: the data set's folder.
        image_dir: the folder of the objects, below ``path``.
        val_fraction: share of objects held out by name, at least one.
        cache_dir: where the shards go; None is vidlab's cache folder.
        name: in logs and messages.
        max_megapixels: millions of pixels that a picture may have.

    Raises:
        UserError: a path that is not set or does not exist.
        DataError: a list that cannot be read, or fewer than 2 usable objects.
    """

    path: str | None
    image_dir: str = "rendering_zero123plus"
    val_fraction: float = 0.02
    cache_dir: str | None = None
    name: str = "objaverse_views"
    max_megapixels: float = 64

    def prepare(self) -> Path:
        """The folder with shards and index, written on first use. Safe in several processes."""
        from vidlab.assets import cache_folder

        folder = self._folder()
        captions = self._captions(folder)
        first = [folder / uid / "000.png" for uid in captions]
        settings = VERSION, folder, *captions.items(), self.val_fraction, self.max_megapixels
        digest = fingerprint(settings, [file for file in first if file.is_file()])
        made = cache_folder(self.cache_dir) / self.name / f"{folder.parent.name}-{digest}"
        return prepare_once(made, lambda made: self._write(made, folder, captions))

    def _folder(self) -> Path:
        if not self.path:
            raise UserError(f"data.path is not set: give the folder of {self.name}, data.path=... {ADVICE}")
        if not 0 < self.val_fraction < 1:
            raise UserError(f"data.source.val_fraction={self.val_fraction}: it must lie between 0 and 1")
        folder = Path(self.path).expanduser().resolve() / self.image_dir
        if not folder.is_dir():
            raise UserError(f"data.path={self.path}: no such folder ({folder}). {ADVICE}")
        return folder

    def _captions(self, folder: Path) -> dict[str, str]:
        """The caption of each object by its folder's name; names that lead elsewhere are refused."""
        listed = folder.parent / "valid_paths.json"
        if not listed.is_file():
            return dict.fromkeys(sorted(one.name for one in folder.iterdir() if one.is_dir()), PLAIN)
        try:
            found = json.loads(listed.read_text(encoding="utf-8"))
        except (ValueError, OSError, RecursionError) as error:
            raise DataError(f"{listed} cannot be read as JSON ({error}).") from error
        groups = found if isinstance(found, dict) else {PLAIN: found}
        if not all(isinstance(group, list) for group in groups.values()):
            raise DataError(f"{listed} must be a list of folders, or a mapping of categories to such lists.")
        captions: dict[str, str] = {}
        for word, uid in ((word, uid) for word, group in groups.items() for uid in group):
            if not isinstance(uid, str) or not (folder / uid).resolve().is_relative_to(folder):
                raise DataError(f"{listed} names {shown(uid)}, which is no folder below {folder}.")
            captions.setdefault(uid, word.replace("_", " ").strip() or PLAIN)
        return dict(sorted(captions.items()))

    def _write(self, made: Path, folder: Path, captions: Mapping[str, str]) -> None:
        from rich.progress import track

        from vidlab.data.storage.shards import ShardWriter
        from vidlab.data.video import VideoInfo, encode

        held_out = self._held_out(folder, captions)
        rejected: dict[str, str] = {}
        with ShardWriter(made, metadata={"named": len(captions), "absent": 0, "rejected": rejected}) as writer:
            for uid, caption in track(captions.items(), description=f"encoding {self.name}"):
                try:
                    views = self._views(folder / uid)
                except CorruptClipError as error:
                    rejected[shown(uid)] = str(error)
                    continue
                info = VideoInfo(VIEWS, views.shape[1], views.shape[2], FPS, VIEWS / FPS)
                split = "val" if uid in held_out else "train"
                writer.add(IN_KEYS.sub("_", uid), encode(views, FPS, lossless=True), info, [caption], split, self.name)
            for name, reason in islice(rejected.items(), LISTED):
                log.warning("data=%s: %s left out: %s", self.name, name, reason)
            usable = len(captions) - len(rejected)
            if usable < 2:
                raise DataError(
                    f"data.path={self.path}: {len(captions)} objects are named, {usable} are usable, and 2 are needed "
                    f"(1 to train on, 1 held out). {ADVICE}"
                )

    def _held_out(self, folder: Path, uids: Iterable[str]) -> set[str]:
        """The share of the complete objects whose names hash lowest."""
        complete = [uid for uid in uids if all((folder / uid / name).is_file() for name in PICTURES)]
        complete.sort(key=lambda uid: seed_of("val", uid))
        return set(complete[: max(1, round(len(complete) * self.val_fraction))])

    def _views(self, folder: Path) -> NDArray[np.uint8]:
        from vidlab.data.video.pictures import read_picture

        try:
            views = [read_picture(folder / name, self.max_megapixels) for name in PICTURES]
        except DataError as error:
            raise CorruptClipError(str(error)) from error
        sizes = {view.shape for view in views}
        if len(sizes) > 1:
            raise CorruptClipError(f"its views are of different sizes: {', '.join(map(str, sorted(sizes)))}")
        return np.stack(views)
