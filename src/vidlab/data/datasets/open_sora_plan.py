"""Open-Sora Plan's lists (Lin et al. 2024) as they are distributed."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from typing_extensions import override

from vidlab.data.datasets.annotated import AnnotatedVideos
from vidlab.data.datasets.annotation import Annotation, Area, scores_of
from vidlab.data.names import is_file, shown
from vidlab.data.tables.captions import captions_of
from vidlab.data.tables.json_list import read_json_list
from vidlab.data.tables.table_rows import BadItem, TableRow, make_each, read_lines
from vidlab.errors import CorruptClipError, DataError

SCORES = {"aes": "aesthetic", "aesthetic": "aesthetic"}


@dataclass(frozen=True)
class OpenSoraPlanList(AnnotatedVideos):
    """Open-Sora Plan's lists: data.txt with lines ``root,annotation.json``, or one JSON list.

    An item has ``path`` relative to its root and ``cap``, a text or a list of texts, and may have

    - an aesthetic score, ``aesthetic`` or ``aes``;
    - ``cut``, ``[first, end]``: the caption is about these frames, ``end`` excluded;
    - ``num_frames``: how many frames the clip has, counted from the first of ``cut``, or from 0. It goes before the end
      of ``cut``, as in Open-Sora Plan's own reader;
    - ``crop``, ``[left, right, top, bottom]`` in pixels of the upright frame: the clip is this part of it.

    Two items with other frames or another crop of one file are two clips, ``file.mp4#76-100`` by name, on one side of
    the split. Frames that a video does not have are not missed, but reported.
    """

    name: str = "open_sora_plan"

    @override
    def advice(self) -> str:
        return "It holds data.txt with lines 'root,annotation.json', or one .json list with path and cap."

    @override
    def annotated_by(self, folder: Path) -> list[Path]:
        first = self.find(folder, ["data.txt", "*.json"])
        return [first] if first.suffix == ".json" else [first, *(file for _, file in _lists(folder, first))]

    @override
    def entries(self, folder: Path) -> Iterable[Annotation | BadItem]:
        first, *_ = self.annotated_by(folder)
        for root, file in [(folder, first)] if first.suffix == ".json" else _lists(folder, first):
            yield from make_each(read_json_list(file), partial(_entry, root=root))


def _lists(folder: Path, file: Path) -> Iterator[tuple[Path, Path]]:
    """The root and the annotation of each line of data.txt.

    Raises:
        DataError: a line is not of this form, or its annotation is not there.
    """
    for line in read_lines(file):
        parts = line.cells["line"].split(",") if isinstance(line, TableRow) else []
        place = line.place if isinstance(line, TableRow) else line.name
        if len(parts) != 2:
            raise DataError(f"{file.parent / place}: every line is 'root,annotation.json'")
        root, annotation = (folder / part.strip() for part in parts)
        if not is_file(annotation):
            raise DataError(f"{file.parent / place}: there is no file {shown(annotation)}")
        yield root, annotation


def _entry(item: Mapping[str, Any], root: Path) -> Annotation:
    path = item.get("path")
    if not isinstance(path, str) or not path or "cap" not in item:
        raise CorruptClipError("has no path or no cap")
    file = str(root / path)
    first, count = _frames(item)
    return Annotation(
        file,
        tuple(captions_of(item["cap"])),
        scores=scores_of(item, SCORES),
        first_frame=first,
        num_frames=count,
        area=_area(item.get("crop")),
    )


def _frames(item: Mapping[str, Any]) -> tuple[int, int | None]:
    """The first frame of an item, and how many there are from there on; None is to the end."""
    cut, count = item.get("cut"), _whole(item.get("num_frames"), "num_frames")
    if cut is None or (isinstance(cut, list) and not cut):
        first, end = 0, None
    elif isinstance(cut, list) and len(cut) <= 2:
        first, end = _whole(cut[0], "cut") or 0, _whole(cut[1], "cut") if len(cut) == 2 else None
    else:
        raise CorruptClipError(f"has the cut {shown(cut)[:60]}, which is not [first, end]")
    if count is None and end is not None:
        count = end - first
    if count is not None and count < 1:
        raise CorruptClipError(f"has no frames: cut {cut}, num_frames {item.get('num_frames')}")
    return first, count


def _area(crop: Any) -> Area:
    """The crop of an item, ``[left, right, top, bottom]``."""
    if crop is None or (isinstance(crop, list) and not crop):
        return Area()
    if not isinstance(crop, list) or len(crop) != 4:
        raise CorruptClipError(f"has the crop {shown(crop)[:60]}, which is not [left, right, top, bottom]")
    left, right, top, bottom = (_whole(place, "crop") for place in crop)
    return Area(top or 0, bottom, left or 0, right)


def _whole(value: Any, name: str) -> int | None:
    """A whole number from 0 on; None for None and NaN."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0 or value != int(value):
        raise CorruptClipError(f"has a {name} of {shown(value)[:60]}, which is not a whole number from 0 on")
    return int(value)
