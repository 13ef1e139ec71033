"""Files of autoencoder weights: finding one, reading safetensors and checkpoints, comparing names and shapes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vidlab.errors import UserError
from vidlab.tensors import read_plain_data, read_tensors, refuse_non_finite, refuse_other_shapes

CONFIG = "config.json"
SAFETENSORS, BIN = "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"
AGAIN = "Fetch it again, or export the run again."
OURS = "autoencoder."  # where a checkpoint of vidlab keeps its autoencoder
LISTED = 5


def find_weights(place: Path) -> Path:
    """The file of weights that a path names: itself, or the one in a folder.

    Raises:
        UserError: there is none, or more than one checkpoint.
    """
    if place.is_file():
        return place
    if not place.is_dir():
        raise UserError(f"autoencoder.path={place}: no such file or folder.")
    published = next((place / name for name in (SAFETENSORS, BIN) if (place / name).is_file()), None)
    if published is not None:
        return published
    checkpoints = sorted(place.glob("*.ckpt"))
    if len(checkpoints) == 1:
        return checkpoints[0]
    if checkpoints:
        names = ", ".join(file.name for file in checkpoints[:LISTED])
        raise UserError(f"autoencoder.path={place} holds {len(checkpoints)} checkpoints ({names}); name one.")
    raise UserError(f"autoencoder.path={place} holds no weights: neither {SAFETENSORS} nor a .ckpt file.")


def read_weights(file: Path) -> tuple[dict[str, Tensor], str]:
    """Tensors by their published names, and which kind of weights they are: ``published``, ``averaged`` or ``raw``.

    Raises:
        UserError: it is damaged, of another kind, or holds more than tensors and plain data.
    """
    if file.suffix == ".safetensors":
        return read_tensors(file, AGAIN), "published"
    content = read_plain_data(file, AGAIN)
    if not isinstance(content, dict):
        raise UserError(f"{file} does not hold weights by name.")
    return _weights_in(content)


def _weights_in(content: Mapping[str, Any]) -> tuple[dict[str, Tensor], str]:
    """The autoencoder's tensors in a checkpoint; averaged ones where it has them."""
    raw: Any = content.get("state_dict", content)
    raw = raw.get("gen_model", raw)
    if any(name.startswith(OURS) for name in raw):
        average = content.get("ema") or {}
        whole = {**raw, **average}
        found = {name.removeprefix(OURS): value for name, value in whole.items() if name.startswith(OURS)}
        return found, "averaged" if average else "raw"
    average = content.get("ema_state_dict") or {}
    chosen = average or raw
    return {name.removeprefix("module."): value for name, value in chosen.items()}, "averaged" if average else "raw"


def check_weights(state: Mapping[str, Any], own: Mapping[str, Tensor], source: str) -> None:
    """Refuse weights that are not exactly a network's, by name and shape, or that are not finite.

    Raises:
        UserError: naming the first that differ.
    """
    missing = [name for name in own if name not in state]
    unexpected = [name for name in state if name not in own]
    wrong = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": wrong}
    found = [f"{len(names)} tensors are {kind} ({', '.join(names[:LISTED])}{', ...' if len(names) > LISTED else ''})"
             for kind, names in kinds.items() if names]  # fmt: skip
    if found:
        raise UserError(
            f"{source} does not fit the autoencoder: {'; '.join(found)}. Give the sizes it was trained with "
            "(autoencoder.width and so on; a run's are in its config.yaml)."
        )
    refuse_other_shapes(state, own, source, AGAIN)
    refuse_non_finite(state, source, AGAIN)


@torch.no_grad()
def put_weights(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Fill a network with weights of its names and shapes; one without memory gets these tensors themselves."""
    own = model.state_dict()
    converted = {name: value.to(own[name].dtype) for name, value in state.items()}
    model.load_state_dict(converted, assign=any(value.is_meta for value in own.values()))


def load_by_name(model: nn.Module, path: str | Path) -> None:
    """Fill a network with weights of exactly its names, out of a checkpoint or a ``.safetensors`` file.

    Raises:
        UserError: they are missing, damaged or another network's; the network is then unchanged.
    """
    file = find_weights(Path(path).expanduser())
    state, _ = read_weights(file)
    check_weights(state, model.state_dict(), str(file))
    put_weights(model, state)
