"""Renders of Objaverse in the form in which Zero123++ is trained in public: a folder of pictures for each object."""

import json
import logging
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
    is empty.

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
        uids = self._uids(folder)
        first = [folder / uid / "000.png" for uid in uids]
        settings = (VERSION, folder, self.image_dir, self.val_fraction, self.max_megapixels)
        digest = fingerprint(settings, [file for file in first if file.is_file()])
        root = Path(self.cache_dir).expanduser() if self.cache_dir else cache_folder()
        return prepare_once(
            root / self.name / f"{folder.parent.name}-{digest}", lambda made: self._write(made, folder, uids)
        )

    def _folder(self) -> Path:
        if not self.path:
            raise UserError(f"data.path is not set: give the folder of {self.name}, data.path=... {ADVICE}")
        if not 0 < self.val_fraction < 1:
            raise UserError(f"data.source.val_fraction={self.val_fraction}: it must lie between 0 and 1")
        folder = Path(self.path).expanduser().resolve() / self.image_dir
        if not folder.is_dir():
            raise UserError(f"data.path={self.path}: no such folder ({folder}). {ADVICE}")
        return folder

    def _uids(self, folder: Path) -> list[str]:
        """Folders of objects, in the order of their names; entries that lead elsewhere are refused."""
        listed = folder.parent / "valid_paths.json"
        if not listed.is_file():
            return sorted(one.name for one in folder.iterdir() if one.is_dir())
        try:
            found = json.loads(listed.read_text(encoding="utf-8"))
        except (ValueError, OSError, RecursionError) as error:
            raise DataError(f"{listed} cannot be read as JSON ({error}).") from error
        groups = found.values() if isinstance(found, dict) else [found]
        uids = [uid for group in groups for uid in (group if isinstance(group, list) else [group])]
        bad = [uid for uid in uids if not isinstance(uid, str) or not (folder / uid).resolve().is_relative_to(folder)]
        if bad:
            raise DataError(f"{listed} names {shown(bad[0])}, which is no folder below {folder}.")
        return sorted(set(uids))

    def _write(self, made: Path, folder: Path, uids: list[str]) -> None:
        from rich.progress import track

        from vidlab.data.storage.shards import ShardWriter
        from vidlab.data.video import VideoInfo, encode

        held_out = set(
            sorted(uids, key=lambda uid: seed_of("val", uid))[: max(1, round(len(uids) * self.val_fraction))]
        )
        rejected: dict[str, str] = {}
        metadata = {"named": len(uids), "absent": 0, "rejected": rejected}
        with ShardWriter(made, metadata=metadata) as writer:
            for uid in track(uids, description=f"encoding {self.name}"):
                try:
                    views = self._views(folder / uid)
                except CorruptClipError as error:
                    rejected[shown(uid)] = str(error)
                    continue
                info = VideoInfo(VIEWS, views.shape[1], views.shape[2], FPS, VIEWS / FPS)
                video = encode(views, FPS, lossless=True)
                writer.add(uid, video, info, [""], "val" if uid in held_out else "train", self.name)
            for name, reason in islice(rejected.items(), LISTED):
                log.warning("data=%s: %s left out: %s", self.name, name, reason)
            if len(uids) - len(rejected) < 2:
                raise DataError(
                    f"data.path={self.path}: {len(uids)} objects are named, {len(uids) - len(rejected)} are usable, and 2 "
                    f"are needed (1 to train on, 1 held out). {ADVICE}"
                )

    def _views(self, folder: Path) -> NDArray[np.uint8]:
        from vidlab.data.video.pictures import read_picture

        try:
            views = [read_picture(folder / f"{number:03d}.png", self.max_megapixels) for number in range(VIEWS)]
        except DataError as error:
            raise CorruptClipError(str(error)) from error
        sizes = {view.shape for view in views}
        if len(sizes) > 1:
            raise CorruptClipError(f"its views are of different sizes: {', '.join(map(str, sorted(sizes)))}")
        return np.stack(views)
