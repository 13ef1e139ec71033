"""Finds text in frames, and crops subtitles at the edges away."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import numpy as np
from typing_extensions import override

from vidlab.curation.engine.records import Clip, Crop, Measurement
from vidlab.curation.engine.stage import Decision, Measure
from vidlab.curation.engine.video_file import VideoFile
from vidlab.errors import MissingPackageError, UserError

SERIES, BOXES = "text", "text_boxes"
SIDES = ("top", "bottom", "left", "right")


class Box(NamedTuple):
    """A box of text, in shares of the height and the width."""

    top: float
    left: float
    bottom: float
    right: float


@dataclass(frozen=True)
class TextBoxes(Measure):
    """Boxes around text in one frame a second, as the series ``text``: top, left, bottom, right of each, in shares.

    Open-Sora Plan (section 4.2, step 3) used EasyOCR; here it is RapidOCR with PP-OCR's networks (PaddleOCR), which
    come in its package and are faster on a CPU. A box counts when its text is read with some confidence.

    Args:
        seconds: between two frames that are looked at, the first of the clip among them.
        short_side: pixels to which frames are reduced.
        confidence: of the recognized text, 0 to 1; None takes every box without reading it.

    Raises:
        UserError: a setting is out of range.
    """

    seconds: float = 1.0
    short_side: int = 480
    confidence: float | None = 0.5

    def __post_init__(self) -> None:
        if not self.seconds > 0 or self.short_side < 32:
            raise UserError(f"seconds={self.seconds}, short_side={self.short_side}: above 0, and at least 32 pixels.")

    @property
    @override
    def provides(self) -> tuple[str, ...]:
        return SERIES, BOXES

    @override
    def weights(self) -> Sequence[str]:
        return [_package()]

    @override
    def check(self, key: str) -> None:
        if not _package():
            raise MissingPackageError(
                f"{key} reads text with RapidOCR, which is not installed: pip install -e '.[curation]', or leave the "
                f"step out with {key.partition('.measure')[0]}=null."
            )

    @override
    def measure(self, video: VideoFile, clips: Sequence[Clip]) -> Sequence[Measurement]:
        reader = text_reader()
        found: dict[str, list[float]] = {clip.id: [] for clip in clips}
        every = max(1, round(self.seconds * clips[0].fps))
        for clip, _, frames in video.small_frames(clips, self.short_side, every):
            for frame in frames:
                for box in reader(frame, self.confidence):
                    found[clip.id].extend(box)
        return [Measurement({BOXES: len(found[c.id]) / 4}, {SERIES: tuple(found[c.id])}) for c in clips]


def _package() -> str:
    """RapidOCR with its version, which pins the networks in it; empty where it is not installed."""
    try:
        return f"rapidocr {version('rapidocr')}"
    except PackageNotFoundError:
        return ""


@cache
def text_reader() -> Callable[[np.ndarray, float | None], Iterator[Box]]:
    """Reads the boxes of text in a uint8 (H, W, 3) RGB frame; the networks are loaded once per process."""
    from rapidocr import RapidOCR

    threads = {f"EngineConfig.onnxruntime.{kind}_op_num_threads": 1 for kind in ("intra", "inter")}
    # frames come at the size at which they are to be read: the detector shall not enlarge them
    size = {"Det.limit_type": "max", "Det.limit_side_len": 2000}
    engine: Any = RapidOCR(params={"Global.log_level": "critical", **threads, **size})

    def read(frame: np.ndarray, confidence: float | None) -> Iterator[Box]:
        height, width = frame.shape[:2]
        found = engine(np.ascontiguousarray(frame[..., ::-1]), use_cls=False, use_rec=confidence is not None)
        if found.boxes is None:
            return
        scores = getattr(found, "scores", None) if confidence is not None else None
        for number, corners in enumerate(np.asarray(found.boxes, dtype=float)):
            if confidence is None or (scores is not None and scores[number] >= confidence):
                (left, top), (right, bottom) = corners.min(0), corners.max(0)
                yield Box(*(float(v) for v in (top / height, left / width, bottom / height, right / width)))

    return read


@dataclass(frozen=True)
class EdgeCrop(Decision):
    """Crops text away that lies within a share of a side; text in the middle stays, and no clip is rejected.

    A box within the range of two sides, in a corner, goes with the side that costs less of the area. The crop has even
    sides.

    Args:
        most: share of the height or the width that may go at a side; the paper: 0.2.

    Raises:
        UserError: it is out of range.
    """

    most: float = 0.2

    def __post_init__(self) -> None:
        if not 0 < self.most < 0.5:
            raise UserError(f"most={self.most}: it must lie between 0 and 0.5.")

    @override
    def decide(self, clip: Clip, step: str) -> Sequence[Clip]:
        numbers = clip.series[SERIES]
        boxes = [Box(*numbers[at : at + 4]) for at in range(0, len(numbers), 4)]
        crop = cropped_area(clip.area, self.margins(boxes))
        kept = clip.part(clip.start, clip.end, drop=SERIES)
        return [kept if crop == clip.area else replace(kept, crop=crop)]

    def margins(self, boxes: Sequence[Box]) -> dict[str, float]:
        """The share that goes at each side."""
        margins = dict.fromkeys(SIDES, 0.0)
        options = [(box, self.options(box)) for box in boxes]
        # boxes with one way out first; what they crop may take others with them
        for _, ways in sorted(options, key=lambda one: (len(one[1]), one[0])):
            if ways and not any(margins[side] >= share for side, share in ways.items()):
                side = min(ways, key=lambda name: (ways[name] - margins[name], name))
                margins[side] = ways[side]
        return margins

    def options(self, box: Box) -> dict[str, float]:
        """The sides at which a box can be cropped away, and the share that goes."""
        needed = {"top": box.bottom, "bottom": 1 - box.top, "left": box.right, "right": 1 - box.left}
        return {side: share for side, share in needed.items() if share <= self.most}


def cropped_area(area: Crop, margins: dict[str, float]) -> Crop:
    """What is left of an area; the area itself where nothing goes."""
    if not any(margins.values()):
        return area
    top, bottom = int(np.ceil(margins["top"] * area.height)), int(np.ceil(margins["bottom"] * area.height))
    left, right = int(np.ceil(margins["left"] * area.width)), int(np.ceil(margins["right"] * area.width))
    height, width = area.height - top - bottom, area.width - left - right
    return Crop(area.top + top, area.left + left, height - height % 2, width - width % 2)
