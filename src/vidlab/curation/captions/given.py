"""Captioners that write nothing: the captions a data set has, and sidecar files."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from typing_extensions import override

from vidlab.chat.journal import Usage
from vidlab.curation.captions.captioner import Caption, Captioner, Described, SourceClip
from vidlab.curation.captions.cleaning import cleaned
from vidlab.data.datasets.folder_captions import read_captions
from vidlab.data.tables.captions import captions_beside, captions_of
from vidlab.data.tables.files import TABLE_SUFFIXES
from vidlab.data.tables.json_list import read_json_list
from vidlab.data.tables.table_rows import BadItem
from vidlab.errors import CorruptClipError, UserError

NAMES = ("path", "file", "video", "key")
TEXTS = ("cap", "captions", "caption", "text")


@dataclass(frozen=True)
class DataCaptions(Captioner):
    """The captions that the data set has."""

    @property
    @override
    def source(self) -> str:
        return "data"

    @override
    def describe(self, clips: Iterable[SourceClip], folder: Path) -> Iterator[Described]:
        for clip in clips:
            yield Described(clip, [Caption(text, self.source) for text in clip.row.captions])

    @override
    def spent(self) -> Mapping[str, Usage]:
        return {}


@dataclass(frozen=True)
class SidecarCaptions(Captioner):
    """Captions from files beside the clips, or in one table.

    A folder has ``<key>.txt``, each non-empty line being a caption, or ``<key>.json`` with ``cap``, ``caption``,
    ``captions`` or ``text``, where the key is that of the clip, with or without its suffix. A table is a .csv or
    .parquet with a column file, video or path and a column caption or text, or a .json list of objects with
    ``path`` and ``cap``.

    Args:
        path: the folder or the table.
        name: what the captions are said to come from; None is the name of the folder or table.
        clean: take "This video shows ..." away.

    Raises:
        UserError: ``path`` is not set or not there.
    """

    path: str | None = None
    name: str | None = None
    clean: bool = False

    def __post_init__(self) -> None:
        if not self.path:
            raise UserError("captioner.path is not set: give a folder of <key>.txt or <key>.json, or a table.")
        if not Path(self.path).expanduser().exists():
            raise UserError(f"captioner.path={self.path}: there is no such folder or table.")

    @property
    @override
    def source(self) -> str:
        return self.name or Path(str(self.path)).expanduser().resolve().name

    @override
    def describe(self, clips: Iterable[SourceClip], folder: Path) -> Iterator[Described]:
        place = Path(str(self.path)).expanduser()
        table = None if place.is_dir() else table_captions(place)
        for clip in clips:
            try:
                texts = _in_folder(place, clip.row.key) if table is None else _in_table(table, clip.row.key)
            except CorruptClipError as error:
                yield Described(clip, [], str(error))
                continue
            yield Described(clip, [self._caption(text) for text in texts], "" if texts else "no caption in the sidecar")

    def _caption(self, text: str) -> Caption:
        short = cleaned(text) if self.clean else text
        return Caption(short, self.source, text if short != text else "")

    @override
    def spent(self) -> Mapping[str, Usage]:
        return {}


def _in_folder(folder: Path, key: str) -> Sequence[str]:
    """The captions of a clip in a folder of sidecar files."""
    for name in dict.fromkeys((key, str(Path(key).with_suffix("")))):
        for suffix in (".txt", ".json"):
            file = folder / f"{name}{suffix}"
            if ".." in Path(name).parts or not file.is_file():
                continue
            if suffix == ".txt":
                return captions_beside(file)
            try:
                content = json.loads(file.read_text(encoding="utf-8-sig"))
            except (ValueError, OSError, RecursionError):
                raise CorruptClipError(f"{file.name} is not readable JSON") from None
            return _texts(content) if isinstance(content, dict) else captions_of(content)
    return []


def _texts(content: Mapping[str, object]) -> list[str]:
    return next((captions_of(content[name]) for name in TEXTS if name in content), [])


def _in_table(table: Mapping[str, Sequence[str]], key: str) -> Sequence[str]:
    return table.get(key) or table.get(str(Path(key).with_suffix(""))) or []


def table_captions(file: Path) -> dict[str, list[str]]:
    """Captions by the name of the clip, with and without its suffix.

    Raises:
        UserError: another suffix.
        DataError: it cannot be read.
    """
    suffix = file.suffix.lower()
    if suffix == ".json":
        rows = [
            (str(row.cells[name]), _texts(row.cells))
            for row in read_json_list(file)
            if not isinstance(row, BadItem)
            for name in NAMES
            if row.cells.get(name)
        ]
    elif suffix in TABLE_SUFFIXES:
        rows = [row for row in read_captions(file) if not isinstance(row, BadItem)]
    else:
        raise UserError(f"captioner.path={file}: a table is .csv, .parquet or a .json list.")
    found: dict[str, list[str]] = {}
    for name, texts in rows:
        found.setdefault(name, []).extend(texts)
    for name, texts in list(found.items()):
        found.setdefault(str(Path(name).with_suffix("")), texts)
    return found
