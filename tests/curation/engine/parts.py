"""Small videos and cheap stages for tests of the engine."""

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vidlab.curation.curate import Curated, Settings, curate
from vidlab.curation.engine.engines import Engine, Serial
from vidlab.curation.engine.records import Clip, Measurement, SourceVideo
from vidlab.curation.engine.stage import Measure
from vidlab.curation.engine.video_file import VideoFile
from vidlab.curation.output.shards import ShardExport
from vidlab.curation.recipe import recipe
from vidlab.curation.stages.filters import Range
from vidlab.curation.stages.slicing import Slice
from vidlab.data.video import encode

FPS = 4


def make_videos(folder: Path, count: int, frames: int = 8, side: int = 16) -> list[SourceVideo]:
    """``count`` videos of one grey each: number n is 20 n bright."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for number in range(count):
        file = folder / f"{number:02d}.mp4"
        file.write_bytes(encode(np.full((frames, side, side, 3), 20 * number, np.uint8), FPS, lossless=True))
        made.append(SourceVideo(file.name, str(file), captions=(f"grey {number}",), state="1"))
    return made


@dataclass(frozen=True)
class Brightness(Measure):
    """Mean of the frames, 0 to 255. It writes down what it read, and can be slow or deadly."""

    log: str | None = None
    name: str = "brightness"
    seconds: float = 0.0
    deadly: str = ""

    not_in_version = ("log", "seconds", "deadly")

    @property
    def provides(self) -> tuple[str, ...]:
        return (self.name,)

    def measure(self, video: VideoFile, clips: Sequence[Clip]) -> Sequence[Measurement]:
        if video.source.name == self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.log:
            with Path(self.log).open("a") as file:
                file.writelines(f"{self.name} {video.source.name} {clip.start}\n" for clip in clips)
        time.sleep(self.seconds)
        sums: dict[str, list[float]] = {}
        for clip, _, frames in video.small_frames(clips, 8):
            sums.setdefault(clip.id, []).extend(frames.mean((1, 2, 3)).tolist())
        return [Measurement({self.name: float(np.mean(sums[clip.id]))}) for clip in clips]


@dataclass
class Quiet:
    """Progress that nobody sees; it counts."""

    partitions: int = 0
    sources: int = 0
    begun: list[tuple[str, int, int]] = field(default_factory=list)

    def begin(self, title: str, total: int, done: int) -> None:
        self.begun.append((title, total, done))

    def source(self) -> None:
        self.sources += 1

    def partition(self, funnel: object) -> None:
        self.partitions += 1


def run(
    root: Path,
    sources: Sequence[SourceVideo],
    engine: Engine | None = None,
    export: ShardExport | None = None,
    per_partition: int = 2,
    **steps: object,
) -> Curated:
    """A curation of one second slices with the brightness of each, unless ``steps`` says otherwise."""
    given = steps or {"slice": Slice(1.0), "brightness": {"measure": Brightness(), "keep": Range("brightness", 30)}}
    settings = Settings(root, engine or Serial(), per_partition, 1, export)
    return curate(recipe("test", **given), sources, settings, Quiet())


def content(root: Path) -> dict[str, bytes]:
    """Every file of a curation but its lock, by path."""
    files = (path for path in sorted(root.rglob("*")) if path.is_file() and path.name != "writer.lock")
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}
