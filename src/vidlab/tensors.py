"""Tensors by name: written as safetensors with checksums, read back verified, and compared with those of a model."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

from vidlab.digests import DamagedError, check_archive
from vidlab.errors import UserError, first_line
from vidlab.files import written_aside
from vidlab.parallel.shards import local

SUMS = "checksums"
"""The entry of a safetensors header that holds the checksum of each tensor."""
MARK = {"checked": "crc32"}
"""Beside them, so that a damaged name of theirs does not make a file one without checksums."""
COLUMNS = 509  # their sums stay in the fastest cache; times 8 bytes, no divisor or multiple of a page


def save_tensors(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Write a safetensors file with a checksum of each tensor in its header; it appears whole or not at all."""
    from safetensors.torch import save_file

    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    sums = json.dumps({name: tensor_checksum(name, tensor) for name, tensor in whole.items()})
    with written_aside(file) as unfinished:
        unfinished.touch()
        mode = unfinished.stat().st_mode  # of any file of this user; save_file makes one that others cannot read
        save_file(whole, unfinished, {"format": "pt", **MARK, SUMS: sums})
        unfinished.chmod(mode)


def read_plain_data(file: Path, remedy: str) -> Any:
    """What a file of ``torch.save`` holds, its checksums compared first; no code in it is run.

    Args:
        file: of weights.
        remedy: what to do about a damaged file, a sentence that ends the message.

    Raises:
        UserError: it is damaged, of another kind, or holds more than tensors and plain data.
    """
    try:
        check_archive(file)
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes of another kind raise whatever the unpickler stumbles over
        reason = first_line(error)
        raise UserError(
            f"{file} cannot be read as weights: it is damaged, of another kind, or holds more than tensors and plain "
            f"data, which vidlab never loads ({reason}). {remedy}"
        ) from None


def refuse_pickled(file: Path, setting: str) -> None:
    """Refuse a file of weights that is not a ``.safetensors`` file.

    Args:
        file: with its suffix.
        setting: that named it, ``key=value``.

    Raises:
        UserError: it is of another kind.
    """
    if file.suffix != ".safetensors":
        raise UserError(f"{setting}: pickled weights are not read. Give a .safetensors file.")


def read_tensors(
    file: Path, remedy: str, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """Every tensor of a safetensors file, one by one, so that a smaller ``dtype`` takes no more memory than it needs.

    Args:
        file: with or without checksums.
        remedy: what to do about a damaged file, a sentence that ends the message.
        dtype: what to convert to; None keeps what is stored.
        device: where the tensors go.

    Raises:
        UserError: it is damaged, cut off, or of another kind.
    """
    from safetensors import SafetensorError

    try:
        return {name: tensor.to(device, dtype) for name, tensor in _verified(file)}
    except (SafetensorError, ValueError, OSError) as error:
        raise UserError(f"{file} cannot be read, it is damaged or no safetensors file ({error}). {remedy}") from None


def _verified(file: Path) -> Iterator[tuple[str, Tensor]]:
    from safetensors import safe_open

    with safe_open(file, "pt") as stored:
        names = set(stored.keys())
        metadata = stored.metadata() or {}
        sums: Any = json.loads(metadata.get(SUMS, "null"))
        if sums is None and MARK.items() & metadata.items():
            raise DamagedError("its checksums are not there")
        if sums is not None and (not isinstance(sums, dict) or set(sums) != names):
            raise DamagedError("its tensors are not those that were written")
        for name in stored.keys():  # noqa: SIM118  not a dict
            tensor = stored.get_tensor(name)
            if sums is not None and sums[name] != tensor_checksum(name, tensor):
                raise DamagedError(f"the tensor {name} is not the one that was written")
            yield name, tensor


def tensor_checksum(name: str, tensor: Tensor) -> int:
    """Checksum of a tensor's bytes with its name, type and shape, at the speed of memory.

    The 64-bit words are added up in columns, and what comes out goes into a CRC-32. All damage is found but several
    errors whose sum in one column is 0; a column is no divisor of a page, so pages that were swapped are found too.
    """
    start = crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
    data = tensor.contiguous().flatten().view(torch.uint8).numpy()
    whole = len(data) // (8 * COLUMNS) * 8 * COLUMNS
    sums = np.add.reduce(data[:whole].view("<u8").reshape(-1, COLUMNS), axis=0)
    return crc32(data[whole:].tobytes(), crc32(sums.astype("<u8").tobytes(), start))


def misfits(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """Names that one of both lacks, or whose tensors differ in shape."""
    names = dict.fromkeys((*expected, *found))
    return [name for name in names if name not in found or name not in expected
            or found[name].shape != expected[name].shape]  # fmt: skip


def shape_text(tensors: Mapping[str, Tensor], name: str) -> str:
    """The shape of a tensor for a message, ``absent`` where there is none."""
    return str(tuple(tensors[name].shape)) if name in tensors else "absent"


def refuse_other_shapes(found: Mapping[str, Any], expected: Mapping[str, Tensor], source: str, remedy: str) -> None:
    """Refuse tensors of which one is no tensor, or has another shape or kind than that of its name; extra ones too.

    Args:
        found: what was read; it may lack names.
        expected: the tensors that are to be filled.
        source: where they come from, for the message.
        remedy: a sentence that ends it.

    Raises:
        UserError: naming the first, with both shapes.
    """
    for name, value in found.items():
        own = expected.get(name)
        if not isinstance(value, Tensor):
            raise UserError(f"{source}: {name} is of the type {type(value).__name__}, not a tensor. {remedy}")
        if own is None:
            raise UserError(f"{source}: {name} {tuple(value.shape)} is no tensor of this model. {remedy}")
        if value.shape != own.shape or value.is_floating_point() != own.is_floating_point() or value.is_complex():
            raise UserError(
                f"{source}: {name} has shape {tuple(value.shape)} and type {value.dtype}, the model's has "
                f"{tuple(own.shape)} and {own.dtype}. {remedy}"
            )


def refuse_non_finite(tensors: Mapping[str, Tensor], source: str, remedy: str) -> None:
    """Refuse numbers that are not finite.

    Raises:
        UserError: naming the first tensor that has one.
    """
    for name, tensor in tensors.items():
        if not is_finite(tensor):
            raise UserError(f"{source}: {name} {tuple(tensor.shape)} holds numbers that are not finite. {remedy}")


def is_finite(tensor: Tensor) -> bool:
    """Whether all numbers are; NaN passes through the least and the greatest, so no mask is made."""
    if not tensor.is_floating_point() or tensor.numel() == 0 or tensor.is_meta:
        return True
    tensor = local(tensor)
    if tensor.numel() == 0:  # a shard of few rows
        return True
    numbers = tensor.float() if tensor.element_size() == 1 else tensor  # float8 has no comparison
    return all(bool(bound.isfinite()) for bound in numbers.aminmax())
