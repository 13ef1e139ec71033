"""A folder of videos with captions beside them, used where it is: nothing is copied."""

import csv
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from vidlab.assets import cache_folder
from vidlab.data.clip_row import ClipRow
from vidlab.data.source import prepare_once
from vidlab.data.splits import GatheredRows
from vidlab.data.video import probe
from vidlab.errors import CorruptClipError, DataError, UserError

VIDEO_SUFFIXES = (".mp4", ".webm", ".mov", ".avi", ".mkv", ".gif")
TABLE_SUFFIXES = (".csv", ".parquet")
FILE_COLUMNS = ("file", "video", "path")
CAPTION_COLUMNS = ("caption", "text")

# Raise when the index of an unchanged folder would come out different.
VERSION = 1


@dataclass(frozen=True)
class FolderSource:
    """Every video under a folder that has a caption.

    Videos are found at any depth (.mp4 .webm .mov .avi .mkv .gif); hidden files and folders are passed over.
    Captions come from ``clip.txt`` beside ``clip.mp4``, each non-empty line being one caption, or from one
    table at the top of the folder with a column ``file``, ``video`` or ``path`` and a column ``caption`` or
    ``text``; several rows for one video are several captions, and a table's captions go before a text file's.
    A table names a video by its path under the folder, with or without suffix, or by its bare file name when
    only one video has it.

    The videos are read in place; only an index is written to the cache, under a hash of all names, sizes and
    change times. Which clips are held out depends on their names alone, so adding clips moves none from one
    side to the other, save that both sides get at least one clip.

    Args:
        path: the folder.
        cache_dir: where the index is kept; None is the vidlab cache.
        val_fraction: share of clips held out for validation, between 0 and 1.
        captions: the table's path, relative to ``path``; None looks for the only .csv or .parquet at its top.
        name: name of the data set in logs.

    Raises:
        UserError: when ``path`` or ``captions`` does not name what it should.
        DataError: when the folder has no usable videos, or fewer than 2.
    """

    path: str | None
    cache_dir: str | None = None
    val_fraction: float = 0.1
    captions: str | None = None
    name: str = "folder"

    def prepare(self) -> Path:
        """The folder of the index; the videos are probed on first use and whenever one changed."""
        folder = self._folder()
        videos = find_videos(folder)
        if not videos:
            raise DataError(f"data.path={folder}: no video found (looked for {' '.join(VIDEO_SUFFIXES)})")
        table = self._table(folder)
        beside = [video.with_suffix(".txt") for video in videos]
        files = [*videos, *(file for file in beside if file.is_file()), *([table] if table else [])]
        digest = blake2b(digest_size=8)
        for part in (VERSION, folder, self.val_fraction):
            digest.update(f"{part}\n".encode())
        for file in files:
            state = file.stat()
            digest.update(f"{file}\n{state.st_size}\n{state.st_mtime_ns}\n".encode())
        cache = Path(self.cache_dir).expanduser() if self.cache_dir else cache_folder()
        target = cache / "folder" / f"{folder.name}-{digest.hexdigest()}"
        return prepare_once(target, lambda made: self._build(made, folder, videos, table))

    def _folder(self) -> Path:
        if not 0 < self.val_fraction < 1:
            raise UserError(f"data.source.val_fraction={self.val_fraction}: it must lie between 0 and 1")
        if not self.path:
            raise UserError("data.path is not set: give a folder of videos, data.path=/my/videos")
        folder = Path(self.path).expanduser().resolve()
        if not folder.exists():
            raise UserError(f"data.path={self.path}: no such folder ({folder})")
        if not folder.is_dir():
            raise UserError(f"data.path={self.path}: this is a file; give the folder that holds the videos")
        return folder

    def _table(self, folder: Path) -> Path | None:
        if self.captions is None:
            tables = sorted(file for file in folder.iterdir() if file.suffix.lower() in TABLE_SUFFIXES)
            if len(tables) > 1:
                names = ", ".join(table.name for table in tables)
                raise UserError(f"data.path={folder} holds several tables ({names}): name one, captions=...")
            return tables[0] if tables else None
        table = folder / self.captions
        if not table.is_file() or table.suffix.lower() not in TABLE_SUFFIXES:
            raise UserError(f"data.source.captions={self.captions}: no .csv or .parquet file at {table}")
        return table

    def _build(self, made: Path, folder: Path, videos: list[Path], table: Path | None) -> None:
        from rich.progress import track

        captions = gather_captions(folder, videos, table)
        rejected: dict[str, str] = {}
        captioned = [video for video in videos if captions.get(video)]
        without = len(videos) - len(captioned)
        with GatheredRows(made, self.val_fraction) as rows:
            for video in track(captioned, description=f"Reading {folder.name}", transient=True):
                key = video.relative_to(folder).as_posix()
                try:
                    rows.add(_row(key, video, captions[video]))
                except CorruptClipError as error:
                    rejected[key] = str(error).removeprefix(f"{key}: ")
            for key, reason in list(rejected.items())[:10]:
                rank_zero_warn(f"data.path={folder}: {key} left out: {reason}")
            if without:
                rank_zero_warn(f"data.path={folder}: {without} of {len(videos)} videos have no caption: left out")
            if rows.count < 2:
                raise DataError(_too_few(folder, rows.first, rejected, without))
            rank_zero_info(f"data.path={folder}: {rows.count} clips indexed, {len(rejected)} unreadable")
            metadata = {"videos": len(videos), "without_caption": without, "rejected": rejected}
            rows.write_index(metadata, root=folder)


def find_videos(folder: Path) -> list[Path]:
    """Every video file under ``folder``, sorted; hidden files and folders are passed over."""
    found = (path for path in folder.rglob("*") if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file())
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def gather_captions(folder: Path, videos: list[Path], table: Path | None) -> dict[Path, list[str]]:
    """The captions of each video that has any, those of the table first.

    Raises:
        DataError: when the table has not the columns it needs, or names none of the videos.
    """
    captions: dict[Path, list[str]] = {}
    if table is not None:
        entries, names = read_captions(table), _names_of(folder, videos)
        unknown = []
        for file, caption in entries:
            video = names.get(_normal(folder, file))
            if video is None:
                unknown.append(file)
            else:
                captions.setdefault(video, []).append(caption)
        if entries and not captions:
            raise DataError(
                f"{table} names none of the {len(videos)} videos under {folder}: it says {entries[0][0]!r}, "
                f"the first video is {videos[0].relative_to(folder).as_posix()!r}"
            )
        if unknown:
            rank_zero_warn(f"{table}: {len(unknown)} rows name no video under {folder}, first {unknown[0]!r}")
    for video in videos:
        beside = video.with_suffix(".txt")
        if beside.is_file():
            lines = [" ".join(line.split()) for line in _text(beside).splitlines()]
            captions.setdefault(video, []).extend(line for line in lines if line)
    return {video: list(dict.fromkeys(texts)) for video, texts in captions.items()}


def read_captions(table: Path) -> list[tuple[str, str]]:
    """(file, caption) of every row of a CSV or Parquet table that has both.

    Raises:
        DataError: when it cannot be read or lacks a column; names the columns it has.
    """
    rows: Iterable[Mapping[str, Any]]
    if table.suffix.lower() == ".csv":
        reader = csv.DictReader(_text(table).splitlines(keepends=True))
        rows, present = reader, list(reader.fieldnames or ())
    else:
        import pyarrow.parquet as pq

        try:
            content = pq.read_table(table)
        except (OSError, ValueError) as error:
            raise DataError(f"{table} is not a readable Parquet file ({error})") from error
        rows, present = content.to_pylist(), list(content.column_names)
    columns = []
    for wanted in (FILE_COLUMNS, CAPTION_COLUMNS):
        match = [column for column in present if column.strip().lower() in wanted]
        if not match:
            raise DataError(
                f"{table} has no column {' or '.join(wanted)}; its columns are {', '.join(present) or 'none'}"
            )
        columns.append(match[0])
    pairs = ((str(row[columns[0]] or ""), " ".join(str(row[columns[1]] or "").split())) for row in rows)
    return [(file, caption) for file, caption in pairs if file and caption]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text; save it as UTF-8") from error


def _normal(folder: Path, file: str) -> str:
    path = Path(file.strip().replace("\\", "/"))
    return (path.relative_to(folder) if path.is_relative_to(folder) else path).as_posix()


def _names_of(folder: Path, videos: list[Path]) -> dict[str, Path]:
    """What a table may call each video; a name that fits two videos means neither."""
    names: dict[str, Path] = {}
    forms = (
        lambda path: path.as_posix(),
        lambda path: path.with_suffix("").as_posix(),
        lambda path: path.name,
        lambda path: path.stem,
    )
    for form in forms:
        called: dict[str, list[Path]] = {}
        for video in videos:
            called.setdefault(form(video.relative_to(folder)), []).append(video)
        for name, fitting in called.items():
            if len(fitting) == 1:
                names.setdefault(name, fitting[0])
    return names


def _row(key: str, video: Path, captions: list[str]) -> ClipRow:
    return ClipRow(
        key=key,
        shard=key,
        offset=0,
        size=video.stat().st_size,
        captions=tuple(captions),
        split="",
        source=key,
        factors=None,
        **asdict(probe(video, key)),
    )


def _too_few(folder: Path, only: ClipRow | None, rejected: Mapping[str, str], without: int) -> str:
    """What to tell someone whose folder holds fewer than two usable clips."""
    start = f"data.path={folder}: "
    if only is None and not rejected:
        return start + (
            f"none of the {without} videos has a caption; put it into clip.txt beside clip.mp4, or into a "
            "table (.csv or .parquet) at the top of the folder with the columns file and caption"
        )
    bad = "".join(f"; {key}: {reason}" for key, reason in list(rejected.items())[:3])
    count = "no video is" if only is None else f"only {only.key} is"
    return f"{start}{count} usable, and 2 are needed (1 to train on, 1 held out). No caption: {without}{bad}"
