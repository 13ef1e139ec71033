"""Reading and writing weights in the form Open-Sora Plan v1.3 publishes them.

A release is a folder with ``config.json`` and either one ``diffusion_pytorch_model.safetensors`` or shards
``diffusion_pytorch_model-00001-of-00002.safetensors`` beside an index that says which shard holds which tensor.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vidlab.backbones.open_sora_plan_config import (
    CONFIG,
    ReleasedArchitecture,
    check_config,
    other_layouts,
    release_config,
)
from vidlab.digests import sealed
from vidlab.errors import UserError
from vidlab.hub import read_json
from vidlab.tensors import read_tensors, refuse_non_finite, save_tensors

STEM = "diffusion_pytorch_model"
SINGLE = f"{STEM}.safetensors"
INDEX = f"{SINGLE}.index.json"
SHARD_BYTES = 10 * 10**9
LISTED = 5
LONGEST_NAME = 255  # bytes
AGAIN = "Fetch the release again, or export the run again."


def read_release(
    folder: str | Path, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """Every tensor of a release, by its published name.

    Tensors are read one by one, so that with a smaller ``dtype`` no more memory is taken than the result needs.

    Args:
        folder: of the release, or one file of weights.
        dtype: what to convert to; None keeps what is stored.
        device: where the tensors go.

    Raises:
        UserError: a missing or damaged file, a shard outside the folder, or shards that hold something else than the
            index says.
    """
    folder = Path(folder)
    if folder.is_file():
        return _load(folder, dtype, device)
    index = folder / INDEX
    if not index.is_file():
        if not (folder / SINGLE).is_file():
            raise UserError(f"{folder} holds no weights: neither {SINGLE} nor {INDEX} with its shards is there.")
        return _load(folder / SINGLE, dtype, device)
    place: dict[str, str] = read_json(index).get("weight_map", {})
    if not isinstance(place, dict) or not place or not all(isinstance(shard, str) for shard in place.values()):
        raise UserError(f"{index}: weight_map does not say which shard holds which tensor. Fetch the release again.")
    state: dict[str, Tensor] = {}
    for shard in sorted(set(place.values())):
        if Path(shard).name != shard or not shard.isprintable() or not 0 < len(shard.encode()) <= LONGEST_NAME:
            raise UserError(f"{index} names the shard {shard!r:.80}, which is not a file of its own folder.")
        if not (folder / shard).is_file():
            raise UserError(f"{folder} is incomplete: {shard} of {INDEX} is missing. Fetch the release again.")
        state |= _load(folder / shard, dtype, device)
    _compare_names(state, place, str(index))
    return state


def write_release(
    state: Mapping[str, Tensor],
    folder: str | Path,
    max_shard_bytes: int = SHARD_BYTES,
    config: Mapping[str, Any] | None = None,
) -> None:
    """Write tensors as one file, or as shards with an index where they are more than ``max_shard_bytes``.

    Args:
        state: tensors by name.
        folder: made if it is not there.
        max_shard_bytes: no shard is larger, unless one tensor alone is.
        config: written as ``config.json``; see ``release_config``.

    Raises:
        UserError: the folder already holds weights, or ``max_shard_bytes`` is below 1.
    """
    folder = Path(folder)
    if max_shard_bytes < 1:
        raise UserError(f"max_shard_bytes={max_shard_bytes} must be at least 1.")
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.glob(f"{STEM}*")):
        raise UserError(f"{folder} already holds weights; choose another folder, or remove {STEM}* there.")
    shards = list(_shards(state, max_shard_bytes))
    names = [SINGLE] if len(shards) == 1 else [
        f"{STEM}-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)
    ]  # fmt: skip
    for name, shard in zip(names, shards, strict=True):
        save_tensors(shard, folder / name)
    if len(shards) > 1:
        place = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
        total = sum(value.nbytes for value in state.values())
        _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": place})
    if config is not None:
        _write_json(folder / CONFIG, sealed(config))


def export_release(model: ReleasedArchitecture, folder: str | Path, max_shard_bytes: int = SHARD_BYTES) -> None:
    """Write a model as a release, ``config.json`` included.

    Raises:
        UserError: as ``write_release``.
    """
    write_release(model.state_dict(), folder, max_shard_bytes, release_config(model))


def load_release(
    model: ReleasedArchitecture,
    folder: str | Path,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> None:
    """Load a release into a model of exactly its architecture; ``dtype`` and ``device`` as in ``read_release``.

    Raises:
        UserError: a file, ``config.json``, a layer's layout, a name or a shape that does not fit; the model is then
            unchanged.
    """
    check_config(model, folder)
    differing = other_layouts(model, folder)
    if differing is not None:
        raise UserError(f"model.backbone.layouts: {differing}. Set model.backbone.layouts to those of the release.")
    state = read_release(folder, dtype, device)
    check_state(model, state, str(folder))
    with torch.no_grad():
        model.load_state_dict(state, assign=any(parameter.is_meta for parameter in model.parameters()))


def check_state(model: ReleasedArchitecture, state: Mapping[str, Tensor], source: str) -> None:
    """Refuse weights whose names or shapes are not the model's.

    Raises:
        UserError: with how many differ, and the first of them.
    """
    own = model.state_dict()
    _compare_names(state, own, source)
    wrong = [key for key in own if own[key].shape != state[key].shape]
    if wrong:
        examples = (f"{key} {tuple(state[key].shape)} instead of {tuple(own[key].shape)}" for key in wrong[:LISTED])
        raise UserError(
            f"{source}: {len(wrong)} tensors have another shape than the model's, such as {'; '.join(examples)}. Set "
            "model.backbone to the sizes of the release."
        )


def _compare_names(state: Mapping[str, Tensor], expected: Mapping[str, Any], source: str) -> None:
    missing = [key for key in expected if key not in state]
    unexpected = [key for key in state if key not in expected]
    if missing or unexpected:
        found = [
            f"{len(keys)} tensors are {kind} ({', '.join(keys[:LISTED])}{', ...' if len(keys) > LISTED else ''})"
            for kind, keys in (("missing", missing), ("unexpected", unexpected)) if keys
        ]  # fmt: skip
        raise UserError(f"{source} does not fit: {' and '.join(found)}.")


def _shards(state: Mapping[str, Tensor], limit: int) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    size = 0
    for key, value in state.items():
        if shard and size + value.nbytes > limit:
            yield shard
            shard, size = {}, 0
        shard[key] = value
        size += value.nbytes
    yield shard


def _load(file: Path, dtype: torch.dtype | None, device: torch.device | str) -> dict[str, Tensor]:
    state = read_tensors(file, AGAIN, dtype, device)
    refuse_non_finite(state, str(file), AGAIN)
    return state


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n")
