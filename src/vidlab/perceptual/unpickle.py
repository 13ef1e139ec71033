"""Arrays out of untrusted pickles and TorchScript archives, without running any of their code.

A pickle may name any function of any module and call it. The reader here knows a handful of names, each of which
stands for a small class or function of this module; any other name ends the reading. So what a file can do is
build dictionaries, lists, numbers, strings and the arrays below, and nothing else.
"""

import math
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vidlab.errors import UserError

_DTYPES = {"f2": 2, "f4": 4, "f8": 8, "i1": 1, "i2": 2, "i4": 4, "i8": 8, "u1": 1, "b1": 1}
_STORAGES = {"FloatStorage": "<f4", "HalfStorage": "<f2", "DoubleStorage": "<f8", "LongStorage": "<i8"}
# Members of an archive are read one at a time; no array of these networks comes near this size in bytes.
_LARGEST = 1 << 30
_LARGEST_TABLE = 1 << 26  # the table of tensors, which holds names and shapes
_DEEPEST = 64  # modules within modules


class UnsafePickleError(UserError):
    """A file of weights holds something other than arrays; nothing of it was run."""


class _DType:
    """Stands for ``numpy.dtype``: a kind, a size and a byte order of a plain number."""

    def __init__(self, name: str, *_: object) -> None:
        if name not in _DTYPES:
            raise UnsafePickleError(f"an array of type {str(name)[:20]!r} is not a plain array of numbers")
        self.name, self.order = name, "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = ">" if state[1] == ">" else "<"


class _Array:
    """Stands for ``numpy.ndarray`` until its state has been checked."""

    value: np.ndarray[Any, Any]

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, is_fortran, data = state
        plain = isinstance(dtype, _DType) and isinstance(data, bytes)
        if not plain or not all(isinstance(n, int) and n >= 0 for n in shape):
            raise UnsafePickleError("an array is malformed")
        if math.prod(shape) * _DTYPES[dtype.name] != len(data):
            raise UnsafePickleError(f"an array of shape {shape} does not hold {len(data)} bytes")
        flat = np.frombuffer(data, dtype=dtype.order + dtype.name)
        self.value = flat.reshape(shape, order="F" if is_fortran else "C")


class _Name:
    """What a known name of a pickle becomes: it can be called, and its state cannot be set."""

    __slots__ = ("make",)

    def __init__(self, make: Callable[..., Any]) -> None:
        self.make = make

    def __call__(self, *arguments: Any) -> Any:
        return self.make(*arguments)

    def __setstate__(self, state: object) -> None:
        raise UnsafePickleError("it sets the state of a name")


def _empty_array(*_: object) -> _Array:
    return _Array()


def _jax_array(_: object, __: object, state: tuple[Any, ...], ___: object = None) -> _Array:
    array = _Array()
    array.__setstate__(state)
    return array


def _frozen_dict(content: Mapping[str, Any] | None = None) -> dict[str, Any]:
    return dict(content or {})


def _scalar(dtype: _DType, data: bytes) -> float:
    return float(np.frombuffer(data, dtype=dtype.order + dtype.name)[0])


_ARRAY_NAMES: dict[tuple[str, str], _Name] = {
    ("numpy", "dtype"): _Name(_DType),
    ("numpy", "ndarray"): _Name(_empty_array),
    ("jax._src.array", "_reconstruct_array"): _Name(_jax_array),
    ("jax._src.device_array", "reconstruct_device_array"): _Name(_jax_array),
    ("flax.core.frozen_dict", "FrozenDict"): _Name(_frozen_dict),
}
for _core in ("numpy.core", "numpy._core"):
    _ARRAY_NAMES[(f"{_core}.multiarray", "_reconstruct")] = _Name(_empty_array)
    _ARRAY_NAMES[(f"{_core}.multiarray", "scalar")] = _Name(_scalar)


class _Unpickler(pickle.Unpickler):
    """Knows the given names only."""

    def __init__(self, stream: Any, names: Mapping[tuple[str, str], _Name]) -> None:
        super().__init__(stream)
        self.names = names

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.names:
            raise UnsafePickleError(f"it asks for {module}.{name}, which is none of the names arrays need")
        return self.names[module, name]


def read_pickle(path: Path) -> dict[str, Tensor]:
    """The arrays of a pickled, nested dictionary of NumPy or JAX arrays, by their keys joined with ``/``.

    Raises:
        UnsafePickleError: the file holds anything else. Nothing it names is imported or called.
    """
    with path.open("rb") as stream:
        return _load(path, _Unpickler(stream, _ARRAY_NAMES), "/")


def read_number_lists(path: Path) -> dict[str, list[float]]:
    """Lists of numbers by name out of a pickle.

    Raises:
        UnsafePickleError: the file holds anything else. Nothing it names is imported or called.
    """
    with path.open("rb") as stream:
        try:
            found = _Unpickler(stream, {}).load()
        except UnsafePickleError as error:
            raise UnsafePickleError(f"{path} was not read: {error}.") from error
        except Exception as error:  # a damaged pickle fails in whatever operation the damage leads to
            raise UnsafePickleError(f"{path} is damaged: {type(error).__name__}: {error}") from error
    lists = found.values() if isinstance(found, dict) else [None]
    if not all(isinstance(one, list) and all(isinstance(n, float | int) for n in one) for one in lists):
        raise UnsafePickleError(f"{path} holds anything but lists of numbers")
    return found


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """The tensors of a TorchScript archive by attribute path joined with ``.``; its code is not read.

    Raises:
        UnsafePickleError: the file is no such archive, or its table of tensors holds anything else.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            found = [name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
            if len(found) != 1:
                raise UnsafePickleError(f"{path}: this is not a TorchScript archive (no data.pkl)")
            if archive.getinfo(found[0]).file_size > _LARGEST_TABLE:
                raise UnsafePickleError(f"{path}: its table of tensors is larger than that of any network")
            with archive.open(found[0]) as stream:
                return _load(path, _ScriptUnpickler(stream, archive, found[0].partition("/")[0]), ".")
    except UnsafePickleError:
        raise
    except Exception as error:  # a damaged archive fails in whatever operation the damage leads to
        raise UnsafePickleError(f"{path}: this is not a TorchScript archive: {error}") from error


class _Module(dict[str, Any]):
    """Stands for every class of a TorchScript archive: its attributes by name."""

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.update(state)


def _strided(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object) -> Any:
    if not isinstance(storage, np.ndarray) or offset != 0 or math.prod(size) != storage.size:
        raise UnsafePickleError("a tensor does not cover its storage")
    dense = tuple(math.prod(size[axis + 1 :]) for axis in range(len(size)))
    if tuple(stride) != dense:
        raise UnsafePickleError("a tensor is not contiguous")
    return storage.reshape(size)


class _ScriptUnpickler(_Unpickler):
    """Reads ``data.pkl`` of a TorchScript archive, with storages taken from the archive's ``data`` folder."""

    def __init__(self, stream: Any, archive: zipfile.ZipFile, top: str) -> None:
        names: dict[tuple[str, str], _Name] = {
            ("torch._utils", "_rebuild_tensor_v2"): _Name(_strided),
            ("collections", "OrderedDict"): _Name(_frozen_dict),
            ("torch.jit._pickle", "build_intlist"): _Name(list),
            **{("torch", name): _Name(dict) for name in _STORAGES},
        }
        super().__init__(stream, names)
        self.archive, self.top = archive, top
        self.types = {names[("torch", name)]: dtype for name, dtype in _STORAGES.items()}

    def find_class(self, module: str, name: str) -> Any:
        """Classes defined by the archive itself become dictionaries."""
        return _Module if module.startswith("__torch__.") else super().find_class(module, name)

    def persistent_load(self, pid: Any) -> Any:
        """One storage of the archive."""
        _, kind, key, _, count = pid
        member = self.archive.getinfo(f"{self.top}/data/{key}")
        dtype = np.dtype(self.types[kind])
        if member.file_size > _LARGEST or member.file_size != count * dtype.itemsize:
            raise UnsafePickleError(f"{member.filename} does not hold {count} numbers")
        return np.frombuffer(self.archive.read(member), dtype)


def _load(path: Path, reader: _Unpickler, separator: str) -> dict[str, Tensor]:
    try:
        return _flat(reader.load(), separator)
    except UnsafePickleError as error:
        raise UnsafePickleError(f"{path} was not read: {error}. Give a .safetensors file instead.") from error
    # A damaged pickle fails in whatever operation the damage leads to.
    except Exception as error:
        raise UnsafePickleError(f"{path} is damaged: {type(error).__name__}: {error}") from error


def _flat(content: Any, separator: str, prefix: str = "", depth: int = 0) -> dict[str, Tensor]:
    """Nested dictionaries of arrays as one; other leaves (flags, sizes) are left out."""
    if depth > _DEEPEST:
        raise UnsafePickleError(f"it is nested deeper than {_DEEPEST} levels")
    found: dict[str, Tensor] = {}
    for name, value in content.items() if isinstance(content, Mapping) else ():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping):
            found |= _flat(value, separator, key + separator, depth + 1)
        elif isinstance(value, _Array | np.ndarray):
            array = value.value if isinstance(value, _Array) else value
            native = array.astype(array.dtype.newbyteorder("="))
            found[key] = torch.from_numpy(np.ascontiguousarray(native))
    return found
