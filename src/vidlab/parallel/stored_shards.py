"""Tensors that several processes wrote, each its own rows, read back whole or in part.

A sharded checkpoint is a file with all that is no shard, such as ``last.ckpt``, and a folder beside it with the shards,
such as ``last.shards-3``. The file names the folder and says, as plain data, where the rows of each tensor lie. The
folder is one of ``torch.distributed.checkpoint`` (DCP), whose tools read it too. Its ``.metadata`` is for them: it is a
pickle, and is never read here.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vidlab.digests import DamagedError, check_archive_bytes
from vidlab.errors import UserError, first_line

SHARDS = "shards"
"""The entry of a checkpoint that says where its shards lie."""
MARK = ".shards-"
"""In the names of folders of shards: between the name of the checkpoint and a number."""


@dataclass(frozen=True)
class Part:
    """Some rows of a tensor, saved by ``torch.save`` within a file.

    Args:
        rows: how many, those after the rows of the part before.
        file: its name in the folder of shards.
        offset: where in the file they begin, in bytes.
        length: bytes.
    """

    rows: int
    file: str
    offset: int
    length: int


@dataclass(frozen=True)
class StoredTensor:
    """A tensor on the disk.

    Args:
        folder: of its shards.
        shape: of all of it, one dimension or more.
        dtype: of its numbers.
        parts: its rows, in order.

    Raises:
        DamagedError: the parts do not make up the tensor, or lie elsewhere than in the folder.
    """

    folder: Path
    shape: tuple[int, ...]
    dtype: torch.dtype
    parts: tuple[Part, ...]

    def __post_init__(self) -> None:
        row = torch.Size(self.shape[1:]).numel() * self.dtype.itemsize
        for part in self.parts:
            if Path(part.file).name != part.file or min(part.offset, part.length, part.rows - 1) < 0:
                raise DamagedError(f"{part.file!r} is no file of shards")
            if part.rows * row > part.length:
                raise DamagedError(f"{part.file} is too small for the rows it is to hold")
        if not self.shape or min(self.shape) < 0 or sum(part.rows for part in self.parts) != self.shape[0]:
            raise DamagedError(f"the rows of a tensor {self.shape} are not all there")

    def whole(self) -> Tensor:
        """All of it, on the CPU."""
        return self.rows(0, self.shape[0])

    def rows(self, first: int, last: int) -> Tensor:
        """The rows from ``first`` up to ``last``, without it, on the CPU; no others stay in memory.

        Raises:
            UserError: files are missing, damaged, or hold anything but these rows.
        """
        found, start = [torch.empty(0, *self.shape[1:], dtype=self.dtype)], 0
        for part in self.parts:
            if start < last and first < start + part.rows:
                rows = self._read(part)
                wanted = rows[max(first - start, 0) : last - start]
                found.append(wanted if len(wanted) == len(rows) else wanted.clone())
            start += part.rows
        return found[-1] if len(found) < 3 else torch.cat(found)

    def _read(self, part: Part) -> Tensor:
        path = self.folder / part.file
        try:
            if part.offset + part.length > path.stat().st_size:
                raise DamagedError("it is cut off")
            with path.open("rb") as file:
                file.seek(part.offset)
                content = file.read(part.length)
            check_archive_bytes(content)
            rows = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            if not isinstance(rows, Tensor) or (rows.shape, rows.dtype) != ((part.rows, *self.shape[1:]), self.dtype):
                raise DamagedError("it holds other rows than those that were written")
        except FileNotFoundError:
            raise UserError(
                f"There is no {path}, which holds a part of a checkpoint: a sharded checkpoint is a file and the "
                f"folder {self.folder.name} beside it. Copy both; or, where its run goes on training, which has "
                "replaced them by now, try again."
            ) from None
        except Exception as error:  # bytes of another kind raise whatever the unpickler stumbles over
            reason = first_line(error)
            raise UserError(
                f"{path} cannot be read as shards of a checkpoint, it is damaged: {reason}. Try best.ckpt or last.ckpt "
                f"beside {self.folder.name}."
            ) from None
        return rows


def put_together(state: dict[str, Any], path: Path, read: Callable[[StoredTensor], Any]) -> None:
    """Put what ``read`` makes of each stored tensor at its place in a checkpoint.

    Args:
        state: the content of a checkpoint's file; one that is not sharded stays as it is.
        path: that file.
        read: such as ``StoredTensor.whole``.

    Raises:
        DamagedError: what it says of its shards makes no sense.
        UserError: the shards are not there, or damaged.
    """
    record = state.pop(SHARDS, None)
    if record is None:
        return
    try:
        folder = folder_of(record)
        places = [(tuple(one["place"]), _stored(one, path.parent / folder)) for one in record["tensors"]]
        holders = [_holder(state, place) for place, _ in places]
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise DamagedError(f"what it says of its shards makes no sense ({error})") from None
    for holder, (place, stored) in zip(holders, places, strict=True):
        holder[place[-1]] = read(stored)


def folder_of(record: Mapping[str, Any]) -> str:
    """The name of the folder that a checkpoint's entry of shards names.

    Raises:
        DamagedError: it lies elsewhere than beside the checkpoint.
    """
    name = record["folder"]
    if not isinstance(name, str) or Path(name).name != name or MARK not in name:
        raise DamagedError(f"{name!r} is no folder of shards beside it")
    return name


def _stored(record: Mapping[str, Any], folder: Path) -> StoredTensor:
    dtype = getattr(torch, str(record["dtype"]))
    if not isinstance(dtype, torch.dtype):
        raise DamagedError(f"{record['dtype']} is no type of numbers")
    parts = tuple(Part(int(rows), str(file), int(at), int(length)) for rows, file, at, length in record["parts"])
    return StoredTensor(folder, tuple(map(int, record["shape"])), dtype, parts)


def recorded(place: Sequence[Any], stored: StoredTensor) -> dict[str, Any]:
    """A stored tensor and its place in the checkpoint, as plain data."""
    parts = [[part.rows, part.file, part.offset, part.length] for part in stored.parts]
    dtype = str(stored.dtype).removeprefix("torch.")
    return {"place": list(place), "dtype": dtype, "shape": list(stored.shape), "parts": parts}


def _holder(state: Any, place: Sequence[Any]) -> Any:
    for key in place[:-1]:
        state = state[key]
    if state[place[-1]] is not None:
        raise DamagedError(f"there is something else at {place}")
    return state
