"""The data set that captioning makes: an index of the same clips with other captions, and where each came from."""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from vidlab.curation.captions.captioner import Caption, Described, SourceClip
from vidlab.curation.captions.statistics import LengthStatistics, length_statistics
from vidlab.data.datasets.folder import VIDEO_SUFFIXES
from vidlab.data.names import shown
from vidlab.data.storage.clip_row import ClipRow
from vidlab.data.storage.index import ClipIndex
from vidlab.data.storage.index_writer import IndexWriter
from vidlab.data.video import DecodeLimits
from vidlab.errors import DataError
from vidlab.files import write_json, written_aside

CAPTIONS = "captions.jsonl"
STATISTICS = "statistics.json"
ANNOTATION = "annotation.json"


@dataclass(frozen=True)
class CaptionedData:
    """What was written.

    Args:
        folder: with the index, ``captions.jsonl``, ``statistics.json`` and perhaps ``annotation.json``.
        clips: that have captions.
        rejected: why the others have none, by key.
        statistics: of the captions of each source.
        annotation: the list in Open-Sora Plan's format; None where clips are no files of their own.
    """

    folder: Path
    clips: int
    rejected: Mapping[str, str]
    statistics: list[LengthStatistics]
    annotation: Path | None


def source_clips(index: ClipIndex, limits: DecodeLimits) -> Iterator[SourceClip]:
    """The clips of an index, in order."""
    for position in range(len(index)):
        yield SourceClip(index.row(position), index.root, limits)


def write_captions(
    index: ClipIndex, name: str, described: Iterable[Described], folder: Path, keep: bool
) -> CaptionedData:
    """Write the data set whose clips have these captions, in the order of the index; it appears when it is complete.

    Args:
        index: the clips.
        name: of the data set they are from.
        described: captions of the clips, in any order.
        folder: where to.
        keep: the captions that the clips have stay, before the new ones.

    Raises:
        DataError: no clip has a caption.
    """
    earlier = earlier_captions(index) if keep else {}
    found = {one.clip.row.key: one for one in described}
    kept: list[tuple[ClipRow, list[Caption]]] = []
    rejected: dict[str, str] = {}
    for position in range(len(index)):
        row = index.row(position)
        one = found.get(row.key)
        old = earlier.get(row.key) or ([Caption(text, "data") for text in row.captions] if keep else [])
        captions = _unique([*old, *(one.captions if one else [])])
        if captions:
            kept.append((replace(row, captions=tuple(caption.text for caption in captions)), captions))
        else:
            rejected[shown(row.key)] = one.reason if one else "it was not described"
    if not kept:
        raise DataError(f"data={name}: no clip has a caption: {next(iter(rejected.values()), 'it has no clips')}")
    folder.mkdir(parents=True, exist_ok=True)
    statistics = length_statistics(captions for _, captions in kept)
    _write_lines(folder / CAPTIONS, kept)
    write_json(folder / STATISTICS, [asdict(one) for one in statistics])
    annotation = _write_annotation(folder / ANNOTATION, [row for row, _ in kept])
    metadata = {"captions_of": name, "sources": [one.source for one in statistics], "rejected": rejected}
    with IndexWriter(folder, metadata, index.root) as writer:
        for row, _ in kept:
            writer.add(row)
    return CaptionedData(folder, len(kept), rejected, statistics, annotation)


def earlier_captions(index: ClipIndex) -> dict[str, list[Caption]]:
    """The captions that captioning wrote beside an index, with their sources; empty for other data sets.

    Raises:
        DataError: the file is damaged.
    """
    file = index.path.parent / CAPTIONS
    if not file.is_file():
        return {}
    found = {}
    try:
        for line in file.read_bytes().decode().split("\n"):  # a caption may hold other line ends of Unicode
            if line:
                record = json.loads(line)
                found[record["key"]] = [Caption(**caption) for caption in record["captions"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{file} is damaged ({error}). Move it away; captions then have no source.") from error
    return found


def _unique(captions: Iterable[Caption]) -> list[Caption]:
    """Each text once; the first source of it stands."""
    by_text: dict[str, Caption] = {}
    for caption in captions:
        by_text.setdefault(caption.text, caption)
    return list(by_text.values())


def _write_lines(file: Path, kept: Iterable[tuple[ClipRow, list[Caption]]]) -> None:
    with written_aside(file) as aside, aside.open("w", encoding="utf-8") as lines:
        for row, captions in kept:
            record = {"key": row.key, "captions": [asdict(caption) for caption in captions]}
            lines.write(json.dumps(record, ensure_ascii=False) + "\n")


def _write_annotation(file: Path, rows: list[ClipRow]) -> Path | None:
    """Open-Sora Plan's list, paths relative to the data set's folder; None where clips lie in shards."""
    if not all(row.offset == 0 and Path(row.shard).suffix.lower() in VIDEO_SUFFIXES for row in rows):
        with suppress(FileNotFoundError):
            file.unlink()
        return None
    write_json(file, [_item(row) for row in rows])
    return file


def _item(row: ClipRow) -> dict[str, Any]:
    item: dict[str, Any] = {"path": row.shard, "cap": list(row.captions), "num_frames": row.frames, "fps": row.fps}
    item["resolution"] = {"height": row.height, "width": row.width}
    if row.first_frame is not None:
        item["cut"] = [row.first_frame, row.first_frame + row.frames]
    if row.crop is not None:
        top, left = row.crop
        item["crop"] = [left, left + row.width, top, top + row.height]
    return item | dict(row.scores)
