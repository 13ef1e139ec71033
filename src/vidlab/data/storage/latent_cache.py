"""Encoded clips on disk: latents and text features in tar shards, read by index; a stale cache is refused.

``cache.json`` names everything the content depends on, ``000000.tar`` and so on hold the clips in WebDataset's form,
and ``index.parquet`` says where each is. Of one view of one clip a shard holds ``NUMBER.json`` and

- ``NUMBER.latent.npy``, uint16 (1 or 2, C, t, h, w): the bits of bfloat16 numbers, the mean of the latents and, where
  the autoencoder has one, the logarithm of their variance;
- ``NUMBER.tokens.npy``, uint16 (S, D), ``NUMBER.mask.npy``, bool (S,), ``NUMBER.pooled.npy``, uint16 (D,), where the
  text encoder is frozen.

``cache.json``, the index and each record carry checksums, the index and the records those of the arrays too. Caches of
earlier versions have none and are read as they are.
"""

import io
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import BFloat16
from torch import Tensor

from vidlab.data.names import reason_of, shown
from vidlab.data.storage.index import INDEX_NAME, ClipIndex
from vidlab.data.storage.parquet import open_parquet
from vidlab.data.storage.shards import read_member
from vidlab.data.storage.tar_headers import Damage, headers_of
from vidlab.digests import DamagedError, checksum, sealed, unsealed
from vidlab.errors import CorruptClipError, DataError, UserError
from vidlab.tensors import is_finite

log = logging.getLogger(__name__)

HEADER_NAME = "cache.json"
# Raise when files written before can no longer be read, or would come out different.
FORMAT = 1
TEXT_PARTS = {"tokens.npy": ("<u2", 2), "mask.npy": ("|b1", 1), "pooled.npy": ("<u2", 1)}
LATENT_PART = {"latent.npy": ("<u2", 5)}
ALLOWED = {**LATENT_PART, **TEXT_PARTS}
COLUMNS = (
    *("key", "view", "position", "shard", "offset", "size", "frames", "height", "width", "stride"),
    *("crop_top", "crop_left", "caption", "error", "crc"),
)
OLDER = frozenset(COLUMNS) - {"crc"}  # columns of caches without checksums
DELETE = "Delete it and run the same curate.py command again, which makes it of the shards"
AGAIN = "Encode again with python curate.py stage=encode and the words of this run, or set them back"


@dataclass(frozen=True)
class CachedClip:
    """The latents and text features of one view of a clip.

    Args:
        moments: bfloat16 (1 or 2, C, t, h, w): mean and, where there is one, log-variance.
        text: tokens (S, D), mask (S,) and pooled (D,) by name; None where captions are not encoded.
        size: (frames, height, width) in pixels.
        stride: source frames from one frame to the next.
        crop: (top, left) in pixels after scaling.
        caption: place of the caption in the index.
    """

    moments: BFloat16[Tensor, "M C t h w"]
    text: Mapping[str, Tensor] | None
    size: tuple[int, int, int]
    stride: int
    crop: tuple[int, int]
    caption: int


@dataclass(frozen=True)
class CacheHeader:
    """The header of a cache: what it was made of.

    Args:
        key: everything that its content depends on, by dotted name.
        views: views per clip; 0 is the middle one alone.
        clips: clips of the index, readable or not.
        clips_per_shard: views of clips in each shard.
    """

    key: Mapping[str, Any]
    views: int
    clips: int
    clips_per_shard: int

    @property
    def total(self) -> int:
        """Views of all clips together."""
        return max(1, self.views) * self.clips

    @property
    def shards(self) -> int:
        """Shard files of the finished cache."""
        return -(-self.total // self.clips_per_shard)

    def clips_in(self, shard: int) -> int:
        """Views in a shard."""
        return min(self.clips_per_shard, self.total - shard * self.clips_per_shard)

    @classmethod
    def read(cls, folder: Path | str) -> "CacheHeader":
        """The header of a folder.

        Raises:
            UserError: the folder is no cache, or one of another version of vidlab.
        """
        path = Path(folder).expanduser() / HEADER_NAME
        try:
            content = unsealed(json.loads(path.read_text("utf-8")))
            found = cls(dict(content["key"]), *(int(content[name]) for name in ("views", "clips", "clips_per_shard")))
        except DamagedError as error:
            raise UserError(
                f"{path} is damaged: {error}. Or make the cache again, in another folder, with python curate.py "
                "stage=encode and the words of this run"
            ) from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
            raise UserError(
                f"data.cache={folder}: there is no readable {HEADER_NAME}. Make a cache with python curate.py "
                "stage=encode and the words of this run; it prints its folder"
            ) from None
        if found.key.get("format") != FORMAT:
            raise UserError(
                f"data.cache={folder} has format {found.key.get('format')}, this vidlab reads {FORMAT}. {AGAIN}"
            )
        return found

    def text(self) -> str:
        """The content of ``cache.json``."""
        return json.dumps(sealed(asdict(self)), indent=2, sort_keys=True) + "\n"


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """``NAME: A in the cache, B in this run`` for each part of a key that differs."""
    return [
        f"{name}: {there.get(name, 'absent')} in the cache, {here.get(name, 'absent')} in this run"
        for name in sorted({*there, *here})
        if there.get(name, "absent") != here.get(name, "absent")
    ]


def refuse_stale(folder: Path | str, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Compare keys.

    Raises:
        UserError: they differ, with the parts that do.
    """
    found = differences(there, here)
    if found:
        raise UserError(f"data.cache={folder} is stale. {'; '.join(found)}. {AGAIN}")


def matching_cache(folder: Path | str, key: Mapping[str, Any]) -> "ClipCache":
    """The cache in ``folder``, if it is of the clips and views that the data's part of a key tells.

    Raises:
        UserError: there is none, it is not finished, or it is stale.
    """
    cache = ClipCache(folder)
    there = {name: value for name, value in cache.header.key.items() if name in key or name.startswith("data.")}
    refuse_stale(folder, there, key)
    return cache


class ClipCache:
    """A finished cache of latents, opened for reading.

    Args:
        folder: where it is.

    Raises:
        UserError: no cache, or one that is not finished.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder).expanduser()
        self.header = CacheHeader.read(folder)
        path = self.folder / INDEX_NAME
        if not path.is_file():
            raise UserError(
                f"data.cache={folder} is not finished: there is no {INDEX_NAME}. Run the same curate.py command again; "
                "it continues where it stopped"
            )
        try:
            with open_parquet(path) as file:
                self.table = file.read().combine_chunks()
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{path} cannot be read ({reason}). {DELETE}") from error
        self.columns = [name for name in COLUMNS if name in self.table.column_names]
        if not set(self.columns) >= OLDER or self.table.num_rows != self.header.total:
            raise UserError(f"{path} is not the index of this cache. {DELETE}")
        self._shapes: dict[tuple[int, ...], dict[str, tuple[int, ...]]] = {}
        if "crc" not in self.columns:
            log.warning("data.cache=%s is of an earlier version and has no checksums: damage of its files may go "
                        "unnoticed. Encode again into another folder to have them", folder)  # fmt: skip

    def check_clips(self, index: ClipIndex, shapes: Mapping[str, np.ndarray], kept: np.ndarray) -> None:
        """Refuse a cache of clips cut in other shapes; that they are the same clips, the key says.

        Args:
            index: the clips of this run.
            shapes: frames, height, width and stride of each clip in this run, each (clips,).
            kept: bool (clips,), False for clips that this run does not train on.

        Raises:
            UserError: naming the first clip that differs.
        """
        clips = self.table.slice(0, len(index))
        readable = kept & clips.column("error").is_null().to_numpy()
        for name, here in shapes.items():
            there = clips.column(name).to_numpy()
            differing = np.flatnonzero(readable & (there != here))
            if len(differing):
                first = int(differing[0])
                raise UserError(
                    f"data.cache={self.folder} is stale. {name} of clip {index.row(first).key}: {there[first]} in the "
                    f"cache, {here[first]} in this run, and so for {len(differing)} clips (data.bucketing, "
                    f"data.batch_size and the number of processes choose it). {AGAIN}"
                )

    def read(self, position: int, view: int) -> CachedClip:
        """One view of the clip at ``position`` of the index.

        Raises:
            CorruptClipError: the clip could not be decoded when the cache was made.
            DataError: the cache is damaged.
        """
        place = view * self.header.clips + position
        row = {name: self.table.column(name)[place].as_py() for name in self.columns}
        if row["error"] is not None:
            raise CorruptClipError(shown(row["error"]))
        try:
            parts = read_parts(read_member(self.folder, row["shard"], row["offset"], row["size"]), row.get("crc"))
            self._refuse_other_shape(row, parts)
        except Exception as error:  # whatever untrusted files and numbers make of it
            reason = shown(error) if isinstance(error, UserError | ValueError) else reason_of(error)
            raise DataError(
                f"data.cache: {self.folder}/{shown(row['shard'])} is damaged at clip {shown(row['key'])} "
                f"({reason}). Delete this file and {INDEX_NAME} beside it, and run the same curate.py "
                "command again"
            ) from None
        return CachedClip(
            moments=parts.pop("latent"),
            text=parts or None,
            size=(row["frames"], row["height"], row["width"]),
            stride=row["stride"],
            crop=(row["crop_top"], row["crop_left"]),
            caption=row["caption"],
        )

    def _refuse_other_shape(self, row: Mapping[str, Any], parts: Mapping[str, Tensor]) -> None:
        """Refuse arrays that are not like those of other clips of the same size, which are stacked with them."""
        sizes = ("frames", "height", "width")
        for name in (*sizes, "stride", "crop_top", "crop_left", "caption"):
            if not isinstance(row[name], int) or row[name] < 0:
                raise ValueError(f"the index says {name}={row[name]}")
        if "mask" in parts and len(parts["mask"]) != len(parts["tokens"]):
            raise ValueError(f"it has {len(parts['tokens'])} tokens and a mask of {len(parts['mask'])}")
        # captions differ in length, the first axis of tokens and mask
        own = ("tokens", "mask")
        shape = {name: tuple(part.shape[1:] if name in own else part.shape) for name, part in parts.items()}
        first = self._shapes.setdefault(tuple(row[name] for name in sizes), shape)
        if shape != first:
            raise ValueError(f"its arrays have shapes {shape}, those of another clip of its size {first}")


def read_parts(content: bytes, crc: int | None = None) -> dict[str, Tensor]:
    """The arrays of one clip by name (latent, tokens, mask, pooled), out of a part of a tar file.

    Args:
        content: the bytes of that part.
        crc: checksum of the arrays' files one after the other; None where nobody has taken it.

    Raises:
        ValueError: an array of another kind than a cache has, or none; other bytes than were written; numbers that are
            not finite; no tar file. Nothing is unpickled.
    """
    parts: dict[str, Tensor] = {}
    files: list[memoryview] = []
    for member in headers_of(io.BytesIO(content), len(content)):
        if isinstance(member, Damage):
            if member.offset < len(content):  # where it ends, the tar goes on with other clips
                raise ValueError(f"byte {member.offset}: {member.reason}")
            continue
        name = member.name.partition(".")[2]
        if name in ALLOWED:
            stored, axes = ALLOWED[name]
            files.append(memoryview(content)[member.offset : member.offset + member.size])
            array = array_from(bytes(files[-1]), stored, axes)
            parts[name.removesuffix(".npy")] = array if stored == "|b1" else array.view(torch.bfloat16)
    text = {name.removesuffix(".npy") for name in TEXT_PARTS} & set(parts)
    if "latent" not in parts or (text and len(text) < len(TEXT_PARTS)):
        raise ValueError(f"it has {sorted(parts)}")
    if crc is not None and checksum(files) != crc:
        raise DamagedError("its arrays are not those that were written")
    for name, array in parts.items():
        if crc is None and not is_finite(array):  # what has a checksum was finite when it was written
            raise ValueError(f"its {name} holds numbers that are not finite")
    return parts


def array_from(content: bytes, stored: str, axes: int) -> Tensor:
    """The array of a .npy file of one known type and number of axes; reads no other, so no pickled objects.

    Raises:
        ValueError: of another type or size, or cut off.
    """
    file = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(file)
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    except Exception as error:  # numpy reads the header as a Python literal and lets its errors through
        raise ValueError(f"no array ({str(error)[:80]})") from None
    if version != (1, 0):
        raise ValueError(f"an array of version {version}")
    data = content[file.tell() :]
    if dtype != np.dtype(stored) or fortran or len(shape) != axes:
        raise ValueError(f"an array of type {dtype} and shape {shape}, expected {stored} with {axes} axes")
    if int(np.prod(shape, dtype=object)) * dtype.itemsize != len(data):
        raise ValueError(f"{len(data)} bytes for shape {shape}")
    return torch.from_numpy(np.frombuffer(bytearray(data), dtype).reshape(shape))


def array_bytes(array: Tensor) -> bytes:
    """A bfloat16 or bool tensor as the content of a .npy file, bfloat16 as the uint16 of its bits."""
    array = array.detach().cpu().contiguous()
    numbers = array.view(torch.uint16).numpy() if array.dtype == torch.bfloat16 else array.numpy()
    file = io.BytesIO()
    np.lib.format.write_array(file, np.ascontiguousarray(numbers), version=(1, 0), allow_pickle=False)
    return file.getvalue()
