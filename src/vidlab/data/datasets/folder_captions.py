"""Captions for a folder of videos, from text files beside them and from one table."""

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_warn

from vidlab.data.names import FolderPaths, composed, file_below, is_file, is_possible, shown, walk_files
from vidlab.data.tables.captions import captions_beside, captions_of, unique
from vidlab.data.tables.files import open_table
from vidlab.data.tables.table_rows import BadItem, make_each
from vidlab.errors import CorruptClipError, DataError

FILE_COLUMNS = ("file", "video", "path")
CAPTION_COLUMNS = ("caption", "text")


@dataclass(frozen=True)
class FoundCaptions:
    """The captions of some videos.

    Args:
        captions: of each video that has any.
        unread: videos whose text file cannot be read, and why.
        bad_rows: rows of the table that cannot be used.
        folder: that the videos lie in.
    """

    captions: Mapping[Path, Sequence[str]]
    unread: Mapping[Path, str]
    bad_rows: Sequence[BadItem]
    folder: Path

    @property
    def rejected(self) -> dict[str, str]:
        """Why each text and each row cannot be used, by the name of the video and the place of the row."""
        texts = {shown(video.relative_to(self.folder).as_posix()): why for video, why in self.unread.items()}
        return {**{row.name: row.reason for row in self.bad_rows}, **texts}


def gather_captions(
    folder: Path, videos: Sequence[Path], table: Path | None, given: str | Path | None = None
) -> FoundCaptions:
    """The captions of each video that has any, those of the table first.

    Args:
        folder: resolved.
        videos: below it.
        table: one with columns for the file and the caption, or None.
        given: the folder as it was named, perhaps through symbolic links.

    Raises:
        DataError: when the table has not the columns it needs, no row that can be used, or names none of the videos.
    """
    captions: dict[Path, list[str]] = {}
    bad: list[BadItem] = []
    if table is not None:
        read = list(read_captions(table))
        bad = [row for row in read if isinstance(row, BadItem)]
        rows = [row for row in read if not isinstance(row, BadItem)]
        if bad and not rows:
            raise DataError(f"{table} {bad[0].reason} ({bad[0].name}; none of {len(bad)} rows can be used)")
        captions = _by_video(folder, VideoNames(folder, videos, given), table, rows)
    unread: dict[Path, str] = {}
    texts = set[Path]()
    for video in videos:
        beside = text_beside(video)
        if beside is None:
            continue
        texts.add(beside)
        try:
            captions.setdefault(video, []).extend(captions_beside(beside))
        except CorruptClipError as error:
            unread[video] = str(error)
            captions.pop(video)
    if texts:
        _name_texts_alone(folder, texts)
    return FoundCaptions({video: unique(texts) for video, texts in captions.items()}, unread, bad, folder)


def _name_texts_alone(folder: Path, read: Set[Path]) -> None:
    """Say how many text files are of no video, which may have been lost."""
    alone = [text for text in walk_files(folder) if text.suffix.lower() == ".txt" and text not in read]
    if alone:
        first = shown(alone[0].relative_to(folder).as_posix())
        rank_zero_warn(f"{folder}: {len(alone)} text files have no video of their name beside them, first {first}")


def text_beside(video: Path) -> Path | None:
    """The text file of the same name, its accents written in either form; None when there is none."""
    name = file_below(video.parent, video.with_suffix(".txt").name)
    return None if name is None else video.parent / name


def _by_video(
    folder: Path, names: "VideoNames", table: Path, rows: Sequence[tuple[str, list[str]]]
) -> dict[Path, list[str]]:
    captions: dict[Path, list[str]] = {}
    unknown, nameless = [], 0
    for file, texts in rows:
        video = names.video(file)
        if video is not None:
            captions.setdefault(video, []).extend(texts)
        elif not file:
            nameless += bool(texts)
        elif texts:
            unknown.append(file)
    if unknown and not any(captions.values()):
        raise DataError(
            f"{table} names none of the {len(names.videos)} videos under {folder}: it says '{shown(unknown[0])}', "
            f"the first video is '{shown(names.videos[0].relative_to(folder).as_posix())}'"
        )
    if unknown:
        rank_zero_warn(
            f"{table}: {len(unknown)} rows name no video under {folder}, first '{shown(unknown[0])}'; a path that "
            "leads out of it names none, nor does a bare name that several videos have"
        )
    if nameless:
        rank_zero_warn(f"{table}: {nameless} rows have a caption and name no file")
    return captions


def read_captions(table: Path) -> Iterable[tuple[str, list[str]] | BadItem]:
    """(file, captions) of every row of a CSV or Parquet table, and the rows that cannot be used.

    Raises:
        DataError: when it cannot be read or lacks a column; names the columns it has.
    """
    content = open_table(table)
    columns = caption_columns(content.columns)
    if isinstance(columns, str):
        raise DataError(f"{table} {columns}; its columns are {', '.join(map(shown, content.columns)) or 'none'}")
    file, caption = columns
    return make_each(content.rows(columns), lambda row: (_file_of(row[file]), captions_of(row[caption])))


def caption_columns(present: Sequence[str]) -> tuple[str, str] | str:
    """The columns of the file and of the caption, or which is missing."""
    found = []
    for wanted in (FILE_COLUMNS, CAPTION_COLUMNS):
        match = [column for column in present if column.strip().lower() in wanted]
        if not match:
            return f"has no column {' or '.join(wanted)}"
        found.append(match[0])
    return found[0], found[1]


def _file_of(value: object) -> str:
    names = captions_of(value) if not isinstance(value, str) else [value.strip()]
    if len(names) > 1 or not all(map(is_possible, names)):
        raise CorruptClipError("has a file name that no file can have")
    return names[0] if names else ""


class VideoNames:
    """What a table may call each video; a name that fits two videos means neither.

    Args:
        folder: resolved.
        videos: below it.
        given: the folder as it was named, perhaps through symbolic links.
    """

    def __init__(self, folder: Path, videos: Sequence[Path], given: str | Path | None = None) -> None:
        self.videos = videos
        self._paths = FolderPaths(folder, given)
        self._names = _names_of(folder, videos)

    def video(self, file: str) -> Path | None:
        """The video that a table's entry means; None where it means none, or leads out of the folder."""
        for spelled in (file, file.replace("\\", "/")):
            inside = self._paths.relative(spelled)
            if inside is None:
                continue
            found = self._names.get(inside) or self._names_composed.get(composed(inside))
            if found is None and is_file(self._paths.folder / inside):  # through a link that was not followed
                found = self._real.get((self._paths.folder / inside).resolve())
            if found is not None:
                return found
        return None

    @cached_property
    def _names_composed(self) -> dict[str, Path]:
        called: dict[str, set[Path]] = {}
        for name, video in self._names.items():
            called.setdefault(composed(name), set()).add(video)
        return {name: fitting.pop() for name, fitting in called.items() if len(fitting) == 1}

    @cached_property
    def _real(self) -> dict[Path, Path]:
        return {video.resolve(): video for video in reversed(self.videos)}


def _names_of(folder: Path, videos: Sequence[Path]) -> dict[str, Path]:
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
