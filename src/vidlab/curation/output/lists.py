"""Writes what a curation knows of all clips, and lists of those kept in published formats."""

import csv
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

from vidlab.curation.cache_writer import whole_file
from vidlab.curation.curate import Curated
from vidlab.curation.engine.records import Clip, SourceVideo
from vidlab.curation.engine.store import clip_schema, table_clips
from vidlab.curation.engine.work import sources_of
from vidlab.data.storage.parquet import PAGES, seal
from vidlab.files import cells

CLIPS, OPEN_SORA_PLAN, PANDA = "clips.parquet", "open_sora_plan.json", "panda.csv"
PANDA_COLUMNS = ("videoID", "url", "timestamp", "caption", "matching_score")


def write_lists(done: Curated, caption: str | None = None) -> None:
    """Write ``clips.parquet`` (all clips), and, of those kept, ``open_sora_plan.json`` and ``panda.csv``.

    The lists name the source videos with the frames and the crop of each clip; they are written where sources are
    files of their own, and left out where a source lies within a shard, which these formats cannot say.

    Args:
        done: the curation.
        caption: of clips that have none, in the lists; None leaves them out, as the shards do.
    """
    import pyarrow.parquet as pq

    with whole_file(done.root / CLIPS) as temporary:
        writer = pq.ParquetWriter(temporary, clip_schema(), **PAGES)
        for table in done.tables():
            writer.write_table(table)
        seal(temporary, writer)
    sources = sources_of(done.partitions)
    if all(source.offset is None for source in sources.values()):
        _write_open_sora_plan(done, sources, caption)
        _write_panda(done, sources, caption)


def _captioned(done: Curated, caption: str | None) -> Iterator[Clip]:
    """The clips that are kept and have a caption, if only this one."""
    given = () if caption is None else (caption,)
    for table in done.tables():
        for clip in table_clips(table):
            if clip.is_in and (clip.captions or given):
                yield replace(clip, captions=clip.captions or given)


def _write_open_sora_plan(done: Curated, sources: Mapping[str, SourceVideo], caption: str | None) -> None:
    """A JSON list of path, cap, num_frames, fps, resolution, cut [first, end) and crop [left, right, top, bottom]."""
    with whole_file(done.root / OPEN_SORA_PLAN) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write("[")
        for number, clip in enumerate(_captioned(done, caption)):
            file.write(",\n" if number else "\n")
            json.dump(_open_sora_plan_item(clip, Path(sources[clip.source].file), done.root), file)
        file.write("\n]\n")


def _open_sora_plan_item(clip: Clip, file: Path, root: Path) -> dict[str, Any]:
    item: dict[str, Any] = {
        "path": os.path.relpath(file, root),
        "cap": list(clip.captions),
        "num_frames": clip.frames,
        "fps": clip.fps,
        "resolution": {"height": clip.height, "width": clip.width},
        "cut": [clip.start, clip.end],
    }
    if clip.crop is not None:
        top, left, height, width = clip.crop
        item["crop"] = [left, left + width, top, top + height]
    return item | ({"aesthetic": clip.scores["aesthetic"]} if "aesthetic" in clip.scores else {})


def _write_panda(done: Curated, sources: Mapping[str, SourceVideo], caption: str | None) -> None:
    """One row per source video; lists are Python literals, times ``H:MM:SS.mmm``, the matching score is not known."""
    with whole_file(done.root / PANDA) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(PANDA_COLUMNS)
        for source, own in groupby(_captioned(done, caption), lambda clip: clip.source):
            clips = list(own)
            times = [[_time(clip.start / clip.fps), _time(clip.end / clip.fps)] for clip in clips]
            captions = [clip.captions[0] for clip in clips]
            url = os.path.relpath(sources[source].file, done.root)
            table.writerow(cells([source, url, repr(times), repr(captions), ""]))


def _time(seconds: float) -> str:
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest / 1000:06.3f}"
