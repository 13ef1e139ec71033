"""Reading and writing weights in the form Open-Sora Plan v1.3 publishes them.

A release is a folder with ``config.json`` and either one ``diffusion_pytorch_model.safetensors`` or shards
``diffusion_pytorch_model-00001-of-00002.safetensors`` beside an index that says which shard holds which tensor.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vidlab.backbones.open_sora_plan import CONTROL_NAMES, OpenSoraPlan
from vidlab.errors import UserError
from vidlab.layers.layouts import Full3D, GroupSkip, SingleSkip

STEM = "diffusion_pytorch_model"
SINGLE = f"{STEM}.safetensors"
INDEX = f"{SINGLE}.index.json"
CONFIG = "config.json"
SHARD_BYTES = 10 * 10**9
LISTED = 5
# Fields of config.json that weights do not depend on: what the class was called, and how far positions are squeezed.
NOT_ARCHITECTURE = ("_class_name", "interpolation_scale")

Names = tuple[str, ...]


def read_release(folder: str | Path) -> dict[str, Tensor]:
    """Every tensor of a release, by its published name, on the CPU.

    Args:
        folder: of the release, or one file of weights.

    Raises:
        UserError: a missing or damaged file, a shard outside the folder, or shards that hold something else than the
            index says.
    """
    folder = Path(folder)
    if folder.is_file():
        return _load(folder)
    index = folder / INDEX
    if not index.is_file():
        if not (folder / SINGLE).is_file():
            raise UserError(f"{folder} holds no weights: neither {SINGLE} nor {INDEX} with its shards is there.")
        return _load(folder / SINGLE)
    place: dict[str, str] = _json(index).get("weight_map", {})
    state: dict[str, Tensor] = {}
    for shard in sorted(set(place.values())):
        if Path(shard).name != shard:
            raise UserError(f"{index} names the shard {shard}, which is not a file of its own folder.")
        if not (folder / shard).is_file():
            raise UserError(f"{folder} is incomplete: {shard} of {INDEX} is missing. Fetch the release again.")
        state |= _load(folder / shard)
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
        save_file({key: value.detach().contiguous() for key, value in shard.items()}, folder / name, {"format": "pt"})
    if len(shards) > 1:
        place = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
        total = sum(value.nbytes for value in state.values())
        _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": place})
    if config is not None:
        _write_json(folder / CONFIG, config)


def release_config(model: OpenSoraPlan) -> dict[str, Any]:
    """The fields of a published ``config.json`` that fix the architecture."""
    frames, rows, columns = model.rope_scale
    layouts = [block.layout for block in model.transformer_blocks]
    skips = sorted({layout.k for layout in layouts if isinstance(layout, SingleSkip | GroupSkip)})
    return {
        "_class_name": "OpenSoraInpaint_v1_3" if model.control_channels else "OpenSoraT2V_v1_3",
        "num_layers": len(layouts),
        "num_attention_heads": model.heads,
        "attention_head_dim": model.width // model.heads,
        "cross_attention_dim": model.width,
        "in_channels": model.latent_channels,
        "out_channels": model.latent_channels,
        "caption_channels": model.text_width,
        "patch_size_t": model.patch[0],
        "patch_size": model.patch[1],
        "sparse1d": any(not isinstance(layout, Full3D) for layout in layouts),
        "sparse_n": skips[0] if skips else 1,
        "interpolation_scale_t": frames,
        "interpolation_scale_h": rows,
        "interpolation_scale_w": columns,
    }


def export_release(model: OpenSoraPlan, folder: str | Path, max_shard_bytes: int = SHARD_BYTES) -> None:
    """Write a model as a release, ``config.json`` included.

    Raises:
        UserError: as ``write_release``.
    """
    write_release(model.state_dict(), folder, max_shard_bytes, release_config(model))


def load_release(model: OpenSoraPlan, folder: str | Path) -> None:
    """Load a release into a model of exactly its architecture.

    Raises:
        UserError: a file, ``config.json``, a name or a shape that does not fit; the model is then unchanged.
    """
    check_config(model, folder)
    state = read_release(folder)
    check_state(model, state, str(folder))
    with torch.no_grad():
        model.load_state_dict(state, assign=any(parameter.is_meta for parameter in model.parameters()))


def load_text_to_video(model: OpenSoraPlan, state: Mapping[str, Tensor]) -> tuple[Names, Names, Names, Names]:
    """Start an image-conditioned model from weights of its text-to-video parent; it then answers exactly as that does.

    The embedding of the masked video copies that of the latents, as in the original; the mask's stays fresh, and the
    two linears behind them stay at zero.

    Returns:
        Names of the model's tensors that were (taken, adapted, left fresh), and of those of ``state`` left unused.

    Raises:
        UserError: weights that lack something else than the controls, have more than the model, or other shapes.
    """
    own, masked = model.state_dict(), CONTROL_NAMES[0]
    fresh = tuple(key for key in own if key.startswith(CONTROL_NAMES) and key not in state)
    adapted = tuple(key for key in fresh if key.startswith(f"{masked}.0.proj."))
    given = dict(state) | {key: state[key.replace(f"{masked}.0", "pos_embed")] for key in adapted if key in own}
    fresh = tuple(key for key in fresh if key not in adapted)
    check_state(model, given | {key: own[key] for key in fresh}, "the text-to-video weights")
    with torch.no_grad():
        model.load_state_dict(given, strict=False)
    return tuple(key for key in own if key in state), adapted, fresh, ()


def check_state(model: OpenSoraPlan, state: Mapping[str, Tensor], source: str) -> None:
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


def check_config(model: OpenSoraPlan, folder: str | Path) -> None:
    """Refuse a release whose ``config.json``, where it has one, describes another architecture.

    Raises:
        UserError: naming the fields that differ.
    """
    file = Path(folder) / CONFIG
    if not file.is_file():
        return
    published, own = _json(file), release_config(model)
    differing = [
        key for key in own if key in published and published[key] != own[key] and not key.startswith(NOT_ARCHITECTURE)
    ]
    if differing:
        found = ", ".join(f"{key} is {published[key]} there and {own[key]} here" for key in differing)
        raise UserError(f"{file} describes another model than model.backbone: {found}.")


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


def _load(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except SafetensorError as error:
        raise UserError(f"{file} cannot be read ({error}). Fetch the release again.") from error


def _json(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise UserError(f"{file} is not JSON ({error}). Fetch the release again.") from error


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n")
