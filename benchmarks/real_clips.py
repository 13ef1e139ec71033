"""Curation on real clips as they are: how many cuts each detector finds, and which text is cropped away.

python benchmarks/real_clips.py cuts FOLDER     cuts of each file, by detector
python benchmarks/real_clips.py text FOLDER     boxes of text of each file, and the crop
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np

from record import record
from vidlab.curation.engine.engines import one_thread
from vidlab.curation.engine.records import Clip
from vidlab.curation.engine.stage import Measure
from vidlab.curation.engine.video_file import VideoFile
from vidlab.curation.sources import source_videos
from vidlab.curation.stages.perceptual import SERIES as DISTANCES
from vidlab.curation.stages.perceptual import FrameDistances, JumpCuts
from vidlab.curation.stages.scenes import SERIES as CUTS
from vidlab.curation.stages.scenes import ContentCuts, TransNetCuts
from vidlab.curation.stages.slicing import Open
from vidlab.curation.stages.text import BOXES, EdgeCrop, TextBoxes
from vidlab.curation.stages.text import SERIES as TEXT
from vidlab.data.datasets.folder import FolderSource

Detector = Callable[[VideoFile, Clip], list[int]]


def lpips_cuts(video: VideoFile, clip: Clip) -> list[int]:
    """The first frames of all shots but the first, by LPIPS and Open-Sora Plan's rule."""
    (found,) = FrameDistances().measure(video, [clip])
    return [at + 1 for at in JumpCuts().cuts(np.array(found.series[DISTANCES]))]


def by(stage: Measure) -> Detector:
    """The same by a stage that measures the series ``cuts``."""

    def detect(video: VideoFile, clip: Clip) -> list[int]:
        (found,) = stage.measure(video, [clip])
        return [int(at) for at in found.series[CUTS]]

    return detect


DETECTORS: dict[str, Detector] = {
    "lpips": lpips_cuts,
    "scenedetect": by(ContentCuts()),
    "transnetv2": by(TransNetCuts()),
}


def cuts(video: VideoFile, clip: Clip) -> list[dict[str, object]]:
    found = {name: detect(video, clip) for name, detect in DETECTORS.items()}
    for name, places in found.items():
        print(clip.source, name, len(places), places if len(places) < 30 else "", flush=True)
    return [{"file": clip.source, "frames": clip.frames, **{name: len(places) for name, places in found.items()}}]


def text(video: VideoFile, clip: Clip) -> list[dict[str, object]]:
    (found,) = TextBoxes().measure(video, [clip])
    (kept,) = EdgeCrop().decide(clip.measured(found), "ocr_crop")
    numbers = found.series[TEXT]
    for at in range(0, len(numbers), 4):
        print("  box " + " ".join(f"{number:.2f}" for number in numbers[at : at + 4]))
    row = {"file": clip.source, "boxes": int(found.scores[BOXES]), "frame": f"{clip.width}x{clip.height}"}
    row |= dict(zip(("top", "left", "height", "width"), kept.area, strict=True))
    print(row, flush=True)
    return [row]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("cuts", "text"))
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    rows = []
    with one_thread():
        for source in source_videos(FolderSource(str(given.folder))):
            video = VideoFile(source)
            rows += {"cuts": cuts, "text": text}[given.what](video, Open().open(video))
    print(record(f"curation_real_{given.what}", rows))


if __name__ == "__main__":
    main()
