"""WF-VAE weights in the forms they are published in: reading, checking against the network, writing.

Open-Sora Plan v1.3 publishes a folder ``vae`` with ``config.json`` and ``diffusion_pytorch_model.safetensors``; the
WF-VAE repository writes ``.ckpt`` files in which averaged weights stand beside the raw ones, with or without a
``config.json``. Both store the wavelet kernels too, as these are parameters there; here they are compared and left.
"""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vidlab.autoencoders.weight_files import CONFIG, SAFETENSORS, check_weights, find_weights, read_weights
from vidlab.autoencoders.wfvae.kernels import are_released, check_kernels, wavelet_kernels
from vidlab.autoencoders.wfvae.published_config import (
    SETTINGS,
    Loadable,
    check_config,
    config_of,
    per_channel_numbers,
    settings_of,
)
from vidlab.digests import sealed
from vidlab.errors import UserError
from vidlab.hub import read_json
from vidlab.layers.wavelets import EXACT, RELEASED
from vidlab.tensors import save_tensors

log = logging.getLogger(__name__)

SCALES = ("latent_scale", "latent_shift")
# By which published latents are multiplied where config.json does not say.
RELEASED_SCALE = 0.18215
DEFAULT_SCALES = {"latent_scale": (RELEASED_SCALE, "scale"), "latent_shift": (0.0, "shift")}


@dataclass(frozen=True)
class Loaded:
    """What was read.

    Args:
        source: the file.
        kind: ``published``, ``averaged`` or ``raw`` weights.
        tensors: how many were taken; all the model has.
        wavelets: how many wavelet kernels were in the file and agree with the model's.
    """

    source: str
    kind: str
    tensors: int
    wavelets: int


def load_weights(model: Loadable, path: str | Path) -> Loaded:
    """Fill a model with weights of exactly its architecture; ``config.json`` beside them is compared first.

    Latent scale and shift are taken from the configuration or the checkpoint, where one has them.

    Args:
        model: as the weights need it.
        path: a folder with weights, a ``.safetensors`` file, or a ``.ckpt`` file of the WF-VAE repository or of vidlab.

    Raises:
        UserError: a file that is missing, damaged or holds more than tensors and plain data, another architecture,
            other names or shapes, or other wavelets; the model is then unchanged.
    """
    file = find_weights(Path(path).expanduser())
    config_file = file.parent / CONFIG
    config = read_json(config_file) if config_file.is_file() else None
    if config is not None:
        check_config(model, config, str(config_file))
    scales = {name: per_channel_numbers((config or {}).get(name), model.channels) for name in ("scale", "shift")}
    state, kind = read_weights(file)
    kernels = {name: state.pop(name) for name in wavelet_kernels(EXACT) if name in state}
    check_kernels(kernels, model.compat, str(file))
    state = {name: _own_scale(model, name) for name in SCALES} | state
    own = model.state_dict()
    check_weights(state, own, str(file))
    for name, value in scales.items():
        if value is not None:
            state[f"latent_{name}"] = model.per_channel(value, name)
    with torch.no_grad():
        state = {name: value.to(own[name].dtype) for name, value in state.items()}
        model.load_state_dict(state, assign=any(value.is_meta for value in own.values()))
    model.trained = True
    found = Loaded(str(file), kind, len(state) - len(SCALES), len(kernels))
    log.info("%s: %d tensors of %s weights, all that the autoencoder has; %d wavelet kernels agree",
             found.source, found.tensors, found.kind, found.wavelets)  # fmt: skip
    return found


def _own_scale(model: Loadable, name: str) -> Tensor:
    """What a model without weights has, which may be without memory."""
    value = model.get_buffer(name)
    return model.per_channel(*DEFAULT_SCALES[name]) if value.is_meta else value


def stored_settings(folder: Path) -> dict[str, Any]:
    """The arguments of ``WFVAE`` that a published folder was made with: its ``config.json`` and its wavelets.

    Raises:
        UserError: it has no ``config.json``, is of a variant that is not built here, or its weights cannot be read.
    """
    file = folder / CONFIG
    if not file.is_file():
        raise UserError(f"{folder} is not a published autoencoder: it has no {CONFIG}.")
    found = settings_of(read_json(file), str(file))
    state, _ = read_weights(find_weights(folder))
    return found | {"compat": are_released(state)}


def stored_sizes(folder: Path) -> dict[str, Any]:
    """Those of ``stored_settings`` that the weights fix; {} for a folder without ``config.json``."""
    if not (folder / CONFIG).is_file():
        return {}
    sizes = {"compat", *SETTINGS.values()} - {"dropout"}
    return {name: value for name, value in stored_settings(folder).items() if name in sizes}


def export_weights(model: Loadable, folder: str | Path) -> None:
    """Write ``config.json`` and ``diffusion_pytorch_model.safetensors``, wavelet kernels included.

    Raises:
        UserError: the folder already holds weights.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / SAFETENSORS).exists():
        raise UserError(f"{folder} already holds {SAFETENSORS}; choose another folder.")
    state = {name: value for name, value in model.state_dict().items() if name not in SCALES}
    state |= wavelet_kernels(RELEASED if model.compat else EXACT)
    save_tensors(state, folder / SAFETENSORS)
    (folder / CONFIG).write_text(json.dumps(sealed(config_of(model)), indent=2) + "\n")
