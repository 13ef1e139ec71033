"""WebVid-10M, OpenVid-1M, UCF-101 and Open-Sora Plan's JSON lists as they are distributed."""

import csv
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidlab.data.catalogue import Catalogue, Entry
from vidlab.errors import DataError

OPENVID_SCORES = {
    "aesthetic score": "aesthetic",
    "motion score": "motion",
    "temporal consistency score": "temporal_consistency",
}
OPEN_SORA_PLAN_SCORES = {"aes": "aesthetic", "aesthetic": "aesthetic"}


def read_table(path: Path, columns: Iterable[str]) -> Iterator[Mapping[str, str]]:
    """Rows of a CSV file that has the columns.

    Raises:
        DataError: it lacks a column, or is not UTF-8.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = [column for column in columns if column not in (reader.fieldnames or ())]
            if missing:
                raise DataError(f"{path} lacks the columns {missing}; it has {list(reader.fieldnames or ())}")
            yield from reader
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error})") from None


@dataclass(frozen=True)
class WebVid(Catalogue):
    """WebVid-10M (Bain et al. 2021): a csv ``videoid, contentUrl, duration, page_dir, name`` beside the videos."""

    name: str = "webvid10m"

    def advice(self) -> str:
        """How the folder looks."""
        return "It holds the csv (results_10M_train.csv) and videos/<page_dir>/<videoid>.mp4."

    def annotated_by(self, folder: Path) -> list[Path]:
        """The csv."""
        return [self.find(folder, ["results_10M_train.csv", "results_2M_train.csv", "*.csv"])]

    def entries(self, folder: Path) -> Iterable[Entry]:
        """Every row."""
        (table,) = self.annotated_by(folder)
        for row in read_table(table, ("videoid", "page_dir", "name")):
            yield Entry(f"videos/{row['page_dir']}/{row['videoid']}.mp4", (" ".join(row["name"].split()),))


@dataclass(frozen=True)
class OpenVid(Catalogue):
    """OpenVid-1M (Nan et al. 2024): ``video, caption, aesthetic score, motion score, ...`` and the videos.

    Args:
        videos: the videos' folder, below ``path``.
        min_aesthetic, min_motion: least scores; None takes all.
    """

    name: str = "openvid1m"
    videos: str = "video"
    min_aesthetic: float | None = None
    min_motion: float | None = None

    def advice(self) -> str:
        """How the folder looks."""
        return "It holds OpenVid-1M.csv and the videos in the folder that data.source.videos names (video/)."

    def annotated_by(self, folder: Path) -> list[Path]:
        """The csv."""
        return [self.find(folder, ["OpenVid-1M.csv", "data/train/OpenVid-1M.csv", "*.csv"])]

    def entries(self, folder: Path) -> Iterable[Entry]:
        """Rows with the scores asked for."""
        (table,) = self.annotated_by(folder)
        for row in read_table(table, ("video", "caption")):
            if _at_least(row, "aesthetic score", self.min_aesthetic) and _at_least(
                row, "motion score", self.min_motion
            ):
                captions = (" ".join(row["caption"].split()),)
                yield Entry(f"{self.videos}/{row['video']}", captions, scores=scores_of(row, OPENVID_SCORES))


def scores_of(record: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, float]:
    """The scores of a record that are finite numbers, by the names they have here.

    Args:
        record: a row of a table, or an item of a JSON list.
        names: the name here of each name there.
    """
    scores = {}
    for there, here in names.items():
        try:
            score = float(record.get(there) or "nan")
        except (TypeError, ValueError):
            continue
        if math.isfinite(score):
            scores[here] = score
    return scores


def _at_least(row: Mapping[str, str], column: str, least: float | None) -> bool:
    return least is None or scores_of(row, {column: ""}).get("", -math.inf) >= least


@dataclass(frozen=True)
class UCF101(Catalogue):
    """UCF-101 (Soomro et al. 2012): UCF-101/<Class>/v_<Class>_gNN_cNN.avi and the official split lists.

    The caption is the class in words, "apply eye makeup". Clips of one group are cut from one recording.

    Args:
        fold: 1, 2 or 3: trainlist and testlist of that number; the test list is held out.
    """

    name: str = "ucf101"
    fold: int = 1

    def advice(self) -> str:
        """How the folder looks."""
        return "It holds UCF-101/<Class>/*.avi and ucfTrainTestlist/trainlist01.txt, testlist01.txt, ..."

    def annotated_by(self, folder: Path) -> list[Path]:
        """The two lists of the fold."""
        places = [f"{side}list{self.fold:02d}.txt" for side in ("train", "test")]
        return [self.find(folder, [f"ucfTrainTestlist/{place}", place]) for place in places]

    def entries(self, folder: Path) -> Iterable[Entry]:
        """Both lists; a line is ``Class/v_Class_g01_c01.avi`` with or without a class number."""
        for split, file in zip(("train", "val"), self.annotated_by(folder), strict=True):
            for line in file.read_text(encoding="utf-8").split("\n"):
                clip = line.split()[0] if line.strip() else ""
                if clip:
                    yield Entry(f"UCF-101/{clip}", (_in_words(clip.split("/")[0]),), _group(clip), split)


def _in_words(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()


def _group(clip: str) -> str:
    return clip.rpartition("_c")[0] or clip


@dataclass(frozen=True)
class OpenSoraPlanList(Catalogue):
    """Open-Sora Plan's lists: data.txt with lines ``root,annotation.json``, or one JSON list.

    An item has ``path`` relative to its root and ``cap``, a text or a list of texts, and may have an aesthetic score,
    ``aesthetic`` or ``aes``. A crop (``crop``) is refused: it
    would have to be made while decoding.
    """

    name: str = "open_sora_plan"

    def advice(self) -> str:
        """How the folder looks."""
        return "It holds data.txt with lines 'root,annotation.json', or one .json list with path and cap."

    def annotated_by(self, folder: Path) -> list[Path]:
        """data.txt and the lists it names."""
        first = self.find(folder, ["data.txt", "*.json"])
        return [first] if first.suffix == ".json" else [first, *(file for _, file in self._lists(folder, first))]

    def entries(self, folder: Path) -> Iterable[Entry]:
        """Items of every list."""
        first, *_ = self.annotated_by(folder)
        lists = [(folder, first)] if first.suffix == ".json" else self._lists(folder, first)
        for root, file in lists:
            for number, item in enumerate(_json_list(file)):
                yield _item_entry(item, root, folder, f"{file}, item {number}")

    def _lists(self, folder: Path, file: Path) -> list[tuple[Path, Path]]:
        lines = [line.split(",") for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        if any(len(line) != 2 for line in lines):
            raise DataError(f"{file}: every line is 'root,annotation.json'")
        return [(folder / root.strip(), folder / annotation.strip()) for root, annotation in lines]


def _json_list(file: Path) -> list[Any]:
    try:
        items = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read as JSON ({error})") from None
    if not isinstance(items, list):
        raise DataError(f"{file} is not a JSON list")
    return items


def _item_entry(item: Any, root: Path, folder: Path, place: str) -> Entry:
    if not isinstance(item, dict) or "path" not in item or "cap" not in item:
        raise DataError(f"{place} has no path or no cap")
    if item.get("crop"):
        raise DataError(f"{place} has a crop, which is not made here: cut the videos first, or remove the key")
    texts = item["cap"] if isinstance(item["cap"], list) else [item["cap"]]
    captions = tuple(" ".join(str(text).split()) for text in texts)
    path = root / item["path"]
    file = path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)
    return Entry(file, captions, scores=scores_of(item, OPEN_SORA_PLAN_SCORES))
