"""Weights of frozen feature networks out of a pinned asset or a local file, read without running code."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

from filelock import FileLock
from torch import Tensor

from vidlab.assets import MANIFESTS, Asset, cache_folder, fetch, read_manifest, sha256_of
from vidlab.errors import UserError
from vidlab.files import remove_leftovers
from vidlab.perceptual.hdf5 import read_hdf5
from vidlab.perceptual.unpickle import read_pickle, read_torchscript
from vidlab.tensors import read_plain_data, read_tensors, refuse_non_finite, save_tensors

_PIN = "asset:"
_Reader = Callable[[Path], dict[str, Tensor]]


def _read_state_dict(path: Path) -> dict[str, Tensor]:
    content = read_plain_data(path, "Fetch it again, or give a .safetensors file instead.")
    named = content.items() if isinstance(content, dict) else ()
    return {name: value for name, value in named if isinstance(value, Tensor)}


_READERS: dict[str, _Reader] = {
    ".ckpt": read_pickle,
    ".pt": read_torchscript,
    ".pth": _read_state_dict,
    ".h5": read_hdf5,
}


def load_weights(source: str) -> dict[str, Tensor]:
    """The named tensors of a frozen network.

    Args:
        source: ``asset:NAME`` for a pinned file of ``vidlab.assets``, or a local file: ``.safetensors``, or the
            file as published (``.ckpt``, a pickle of arrays; ``.pt``, a TorchScript archive; ``.pth``, a dictionary
            of tensors by ``torch.save``; ``.h5``, Keras' HDF5). A published file is converted once and the
            ``.safetensors`` kept in the cache under its SHA-256.

    Raises:
        AssetError: the asset is unknown or could not be fetched.
        UserError: there is no such file, its kind is unknown, or it holds anything but arrays.
    """
    path = _find(source)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix not in _READERS:
        raise UserError(f"weights={source}: the file must end in .safetensors, {', '.join(_READERS)}.")
    folder = cache_folder() / "perceptual"
    folder.mkdir(parents=True, exist_ok=True)
    converted = folder / f"{sha256_of(path)}.safetensors"
    with FileLock(f"{converted}.lock"):
        if not converted.is_file():
            _convert(path, converted)
    return _read_safetensors(converted)


def take(weights: dict[str, Tensor], name: str, shape: tuple[int, ...], source: str) -> Tensor:
    """One tensor, in float32 and of the expected shape.

    Raises:
        UserError: it is missing or its shape is another.
    """
    if name not in weights:
        raise UserError(f"weights={source}: {name} is missing; these are the weights of another network.")
    found = weights[name].float()
    if tuple(found.shape) != shape:
        raise UserError(f"weights={source}: {name} has shape {tuple(found.shape)}, expected {shape}.")
    refuse_non_finite({name: found}, f"weights={source}", "Delete the file and run again.")
    return found


@cache
def weights_digest(source: str) -> str:
    """SHA-256 of the file that ``load_weights`` reads; a pinned one is not fetched for it.

    Raises:
        UserError: the pinned file is unknown, or there is no such file.
    """
    return _pinned(source).sha256 if source.startswith(_PIN) else sha256_of(_local(source))


def _find(source: str) -> Path:
    return fetch(_pinned(source)) if source.startswith(_PIN) else _local(source)


def _pinned(source: str) -> Asset:
    name, known = source.removeprefix(_PIN), read_manifest(MANIFESTS[0])
    if name not in known:
        raise UserError(f"weights={source} is not a pinned file; known: {', '.join(sorted(known))}.")
    return known[name]


def _local(source: str) -> Path:
    path = Path(source).expanduser()
    if not path.is_file():
        raise UserError(
            f"weights={source}: there is no such file ({path.absolute()}). Give a .safetensors file, or "
            "asset:NAME for a pinned one (`python -m vidlab.assets` lists them)."
        )
    return path


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    return read_tensors(path, "Delete it and run again.")


def _convert(path: Path, target: Path) -> None:
    remove_leftovers(target.parent)
    save_tensors(_READERS[path.suffix](path), target)
