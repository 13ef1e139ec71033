"""File names that others wrote: found through links, compared as people read them, printed safely."""

import logging
import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Literal

from vidlab.errors import UserError

log = logging.getLogger(__name__)
RENAME = "rename it, or all at once with convmv -f latin1 -t utf8 -r --notest FOLDER"


def shown(text: object) -> str:
    r"""Untrusted text as a message may print it.

    Control characters and bytes that are not UTF-8 appear as escapes (``\x1b``, ``\xe9``), so that they neither reach
    a terminal nor stop a log.
    """
    text = str(text)
    try:
        readable = os.fsencode(text).decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half of a surrogate pair, which no file name has
        readable = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in readable)


def is_utf8(text: str) -> bool:
    """False for a file name of other bytes, and for text with half of a surrogate pair: neither can be stored."""
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def is_possible(name: str) -> bool:
    """Whether a file can have this name."""
    try:
        return b"\0" not in os.fsencode(name)
    except UnicodeEncodeError:
        return False


def reason_of(error: BaseException, name: str = "") -> str:
    """Why something of one item failed, for a list of such reasons: one line, safe to print.

    Args:
        error: of any type; the type is named where the text alone does not tell.
        name: of the item, which the error may begin with.
    """
    text = str(error).removeprefix(f"{name}: ")
    if not isinstance(error, UserError):
        text = f"{type(error).__name__}: {text}"
    return shown(text if len(text) <= 300 else f"{text[:300]}...")


def composed(name: str) -> str:
    """The name with accents as one character each (NFC); macOS writes them as two (NFD)."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def file_below(folder: Path, name: str) -> str | None:
    """The name of a file below a folder as it is stored there, its accents written as one character each or as two.

    Args:
        folder: where to look.
        name: relative to it.

    Returns:
        None when there is no such file.
    """
    candidates = [name]
    forms: tuple[Literal["NFC", "NFD"], ...] = () if name.isascii() else ("NFC", "NFD")
    for form in forms:
        last = unicodedata.normalize(form, PurePosixPath(name).name)
        candidates += [unicodedata.normalize(form, name), str(PurePosixPath(name).with_name(last))]
    return next((candidate for candidate in dict.fromkeys(candidates) if is_file(folder / candidate)), None)


def is_file(path: Path) -> bool:
    """Whether there is such a file; names that no file can have, and files that may not be seen, are none."""
    try:
        return path.is_file()
    except OSError:
        return False


def walk_files(folder: Path) -> Iterator[Path]:
    """Every file below ``folder``, folders behind symbolic links included; hidden files and folders are passed over.

    A folder that is reached twice, through a link to a folder above it or to one beside it, is read once: where it
    really is, if that is below ``folder``. The order is that of the names among what no link leads to, then what
    links lead to.
    """
    seen: set[tuple[int, int]] = set()
    waiting = [folder]
    while waiting:
        links: list[Path] = []
        for top in waiting:
            yield from _walk(top, seen, links)
        waiting = sorted(links)


def _walk(top: Path, seen: set[tuple[int, int]], links: list[Path]) -> Iterator[Path]:
    """Files below a folder without following links; those to folders are appended to ``links``."""
    for here, folders, files in os.walk(top, onerror=_unreadable):
        state = Path(here).stat()
        if (state.st_dev, state.st_ino) in seen:
            folders.clear()
            continue
        seen.add((state.st_dev, state.st_ino))
        visible = sorted(name for name in folders if not name.startswith("."))
        linked = {name for name in visible if Path(here, name).is_symlink()}
        links.extend(Path(here, name) for name in linked)
        folders[:] = [name for name in visible if name not in linked]
        yield from (Path(here, name) for name in sorted(files) if not name.startswith("."))


def _unreadable(error: OSError) -> None:
    log.warning("%s cannot be read (%s): what is in it is left out", shown(error.filename), error.strerror)


class FolderPaths:
    """Where the entries of a list lie below a data set's folder; entries that lead out of it are refused.

    Args:
        folder: resolved.
        given: the folder as it was named, perhaps through symbolic links.
    """

    def __init__(self, folder: Path, given: str | Path | None = None) -> None:
        self.folder = folder
        self._tops = [str(folder)]
        if given is not None:
            self._tops.append(os.path.abspath(Path(given).expanduser()))  # noqa: PTH100 links stay as they are
        self._inside: dict[str, str | None] = {}

    def relative(self, entry: str | Path) -> str | None:
        """The entry relative to the folder, without ``.`` and ``..``; None when it leads out of the folder.

        Absolute entries may go through any symbolic link that leads to the folder, and relative ones through links
        that lie in it.
        """
        if not is_possible(str(entry)):
            return None
        path = os.path.normpath(os.path.join(self.folder, entry))  # noqa: PTH118 normpath needs no file
        for top in self._tops:
            if path.startswith(f"{top.rstrip('/')}/"):
                return path[len(top.rstrip("/")) + 1 :]
        if not str(entry).startswith("/"):
            return None
        head, _, name = path.rpartition("/")
        inside = self._through_links(head)
        return None if inside is None else f"{inside}/{name}".lstrip("/")

    def _through_links(self, path: str) -> str | None:
        """A folder relative to the data set's, when one of the folders above it, or it itself, is that one."""
        if path not in self._inside:
            head, _, name = path.rpartition("/")
            if os.path.realpath(path or "/") == str(self.folder):
                found: str | None = ""
            elif not path:
                found = None
            else:
                above = self._through_links(head)
                found = None if above is None else f"{above}/{name}".lstrip("/")
            self._inside[path] = found
        return self._inside[path]
