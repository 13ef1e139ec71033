"""The interface of data sets: a source makes a folder of shards with an index, once, and names it ever after."""

from collections.abc import Callable, Iterable
from hashlib import blake2b
from pathlib import Path
from typing import Protocol, runtime_checkable

from filelock import FileLock

from vidlab.data.names import shown
from vidlab.data.storage.index import INDEX_NAME
from vidlab.errors import DataError


@runtime_checkable
class ClipSource(Protocol):
    """Makes a data set on first use.

    ``prepare`` returns a folder with an index. It is cached under a hash of everything that changes the data,
    is safe when several processes call it together, and shows a progress bar while it works.
    """

    name: str

    def prepare(self) -> Path:
        """The data set's folder, made now when it does not exist yet."""
        ...


def fingerprint(parts: Iterable[object], files: Iterable[Path]) -> str:
    """A hash of settings and of the names, sizes and change times of files.

    Raises:
        DataError: a file is gone.
    """
    digest = blake2b(digest_size=8)
    for part in parts:
        digest.update(f"{part}\n".encode("utf-8", "surrogateescape"))
    for file in files:
        try:
            state = file.stat()
        except OSError as error:
            raise DataError(f"{shown(file)} cannot be read ({error.strerror})") from None
        digest.update(f"{file}\n{state.st_size}\n{state.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def prepare_once(folder: Path, build: Callable[[Path], None]) -> Path:
    """Run ``build(folder)`` unless ``folder`` has an index; other processes wait for the one that builds.

    ``build`` writes the index last (``ShardWriter`` and ``write_index`` do), so an interrupted build runs
    again.
    """
    if not (folder / INDEX_NAME).is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not (folder / INDEX_NAME).is_file():
                folder.mkdir(exist_ok=True)
                build(folder)
    return folder
