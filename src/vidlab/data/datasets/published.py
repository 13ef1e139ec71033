"""WebVid-10M, OpenVid-1M and UCF-101 as they are distributed; Open-Sora Plan's lists are in ``open_sora_plan``."""

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from typing_extensions import override

from vidlab.data.datasets.annotated import AnnotatedVideos
from vidlab.data.datasets.annotation import Annotation, scores_of
from vidlab.data.datasets.open_sora_plan import OpenSoraPlanList
from vidlab.data.names import is_file
from vidlab.data.tables.captions import captions_of
from vidlab.data.tables.csv_table import read_table
from vidlab.data.tables.table_rows import BadItem, make_each, read_lines
from vidlab.errors import CorruptClipError, DataError

log = logging.getLogger(__name__)

__all__ = ["UCF101", "OpenSoraPlanList", "OpenVid", "WebVid"]

CLASS_LISTS = ("ucfTrainTestlist/classInd.txt", "classInd.txt")
OPENVID_SCORES = {
    "aesthetic score": "aesthetic",
    "motion score": "motion",
    "temporal consistency score": "temporal_consistency",
}


@dataclass(frozen=True)
class WebVid(AnnotatedVideos):
    """WebVid-10M (Bain et al. 2021): a csv ``videoid, contentUrl, duration, page_dir, name`` beside the videos."""

    name: str = "webvid10m"

    @override
    def advice(self) -> str:
        return "It holds the csv (results_10M_train.csv) and videos/<page_dir>/<videoid>.mp4."

    @override
    def annotated_by(self, folder: Path) -> list[Path]:
        return [self.find(folder, ["results_10M_train.csv", "results_2M_train.csv", "*.csv"])]

    @override
    def entries(self, folder: Path) -> Iterable[Annotation | BadItem]:
        (table,) = self.annotated_by(folder)
        yield from make_each(read_table(table, ("videoid", "page_dir", "name")), _webvid_entry)


def _webvid_entry(row: Mapping[str, str]) -> Annotation:
    return Annotation(f"videos/{row['page_dir']}/{row['videoid']}.mp4", tuple(captions_of(row["name"])))


@dataclass(frozen=True)
class OpenVid(AnnotatedVideos):
    """OpenVid-1M (Nan et al. 2024): ``video, caption, aesthetic score, motion score, ...`` and the videos.

    Args:
        videos: the videos' folder, below ``path``.
        min_aesthetic, min_motion: least scores; None takes all.
    """

    name: str = "openvid1m"
    videos: str = "video"
    min_aesthetic: float | None = None
    min_motion: float | None = None

    @override
    def advice(self) -> str:
        return "It holds OpenVid-1M.csv and the videos in the folder that data.source.videos names (video/)."

    @override
    def annotated_by(self, folder: Path) -> list[Path]:
        return [self.find(folder, ["OpenVid-1M.csv", "data/train/OpenVid-1M.csv", "*.csv"])]

    @override
    def entries(self, folder: Path) -> Iterable[Annotation | BadItem]:
        (table,) = self.annotated_by(folder)
        low = 0

        def made(row: Mapping[str, str]) -> Annotation | None:
            nonlocal low
            entry = self._entry(row)
            low += entry is None
            return entry

        yield from make_each(read_table(table, ("video", "caption")), made)
        if low:
            log.warning(
                "data=%s: %d rows of %s are left out: with a score below those asked for", self.name, low, table
            )

    def _entry(self, row: Mapping[str, str]) -> Annotation | None:
        scores = scores_of(row, OPENVID_SCORES)
        for name, least in (("aesthetic", self.min_aesthetic), ("motion", self.min_motion)):
            if least is not None and name not in scores:
                raise CorruptClipError(f"has no {name} score, and data.source.min_{name}={least} asks for one")
            if least is not None and scores[name] < least:
                return None
        captions = tuple(captions_of(row["caption"]))
        return Annotation(f"{self.videos}/{row['video']}", captions, scores=scores)


@dataclass(frozen=True)
class UCF101(AnnotatedVideos):
    """UCF-101 (Soomro et al. 2012): UCF-101/<Class>/v_<Class>_gNN_cNN.avi and the official split lists.

    The caption is the class in words, "apply eye makeup". Clips of one group are cut from one recording. The order of
    the classes is that of ``classInd.txt``, where it is there ("1 ApplyEyeMakeup"), else that of their names.

    Args:
        fold: 1, 2 or 3: trainlist and testlist of that number; the test list is held out.
    """

    name: str = "ucf101"
    fold: int = 1

    @override
    def advice(self) -> str:
        return "It holds UCF-101/<Class>/*.avi and ucfTrainTestlist/trainlist01.txt, testlist01.txt, ..."

    @override
    def annotated_by(self, folder: Path) -> list[Path]:
        places = [f"{side}list{self.fold:02d}.txt" for side in ("train", "test")]
        return [self.find(folder, [f"ucfTrainTestlist/{place}", place]) for place in places]

    @override
    def class_names(self) -> tuple[str, ...]:
        folder = self._folder()
        listed = next((file for place in CLASS_LISTS if is_file(file := folder / place)), None)
        if listed is not None:
            return tuple(_in_words(name) for name in _class_list(listed))
        entries = [entry for entry in self.entries(folder) if isinstance(entry, Annotation)]
        return tuple(sorted({caption for entry in entries for caption in entry.captions}))

    @override
    def entries(self, folder: Path) -> Iterable[Annotation | BadItem]:
        # a line is Class/v_Class_g01_c01.avi, with a class number in the training lists
        for split, file in zip(("train", "val"), self.annotated_by(folder), strict=True):
            yield from make_each(read_lines(file), partial(_ucf_entry, split=split))


def _ucf_entry(row: Mapping[str, str], split: str) -> Annotation:
    clip = row["line"].split()[0]
    return Annotation(f"UCF-101/{clip}", (_in_words(clip.split("/")[0]),), _group(clip), split)


def _class_list(file: Path) -> list[str]:
    """Names by their numbers, from lines such as "1 ApplyEyeMakeup"."""
    lines = [row.cells["line"].split() for row in read_lines(file) if not isinstance(row, BadItem)]
    if not lines or any(len(words) != 2 or not words[0].isdecimal() for words in lines):
        raise DataError(f"{file}: each line must be a number and a class, such as '1 ApplyEyeMakeup'.")
    return [name for _, name in sorted(lines, key=lambda words: int(words[0]))]


def _in_words(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()


def _group(clip: str) -> str:
    return clip.rpartition("_c")[0] or clip
