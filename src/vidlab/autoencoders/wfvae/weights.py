"""Reading and writing WF-VAE weights in the forms they are published in.

Open-Sora Plan v1.3 publishes a folder ``vae`` with ``config.json`` and ``diffusion_pytorch_model.safetensors``; the
WF-VAE repository writes ``.ckpt`` files in which averaged weights stand beside the raw ones, with or without a
``config.json``. Both store the wavelet kernels too, as these are parameters there; here they are compared and left.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from vidlab.autoencoders.wfvae.coders import CoderSizes
from vidlab.digests import check_archive, sealed
from vidlab.errors import UserError
from vidlab.hub import read_json
from vidlab.layers.wavelets import EXACT, RELEASED
from vidlab.tensors import read_tensors, refuse_non_finite, refuse_other_shapes, save_tensors

log = logging.getLogger(__name__)

CONFIG = "config.json"
SAFETENSORS = "diffusion_pytorch_model.safetensors"
LISTED = 5
AGAIN = "Fetch it again, or export the run again."
SPACE_TIME = "encoder.wavelet_transform_in.h_conv.conv.weight"  # one of the kernels whose gain differs
OURS = "autoencoder."  # where a checkpoint of vidlab keeps its autoencoder
SCALES = ("latent_scale", "latent_shift")
# By which published latents are multiplied where config.json does not say.
RELEASED_SCALE = 0.18215
DEFAULT_SCALES = {"latent_scale": (RELEASED_SCALE, "scale"), "latent_shift": (0.0, "shift")}
# Fields of config.json of which only one value is built here. The misspelling is the publishers'.
FIXED = {
    "norm_type": "layernorm",
    "t_interpolation": "trilinear",
    "l1_dowmsample_block": "Downsample",
    "l1_downsample_wavelet": "HaarWaveletTransform2D",
    "l2_dowmsample_block": "Spatial2xTime2x3DDownsample",
    "l2_downsample_wavelet": "HaarWaveletTransform3D",
    "l1_upsample_block": "Upsample",
    "l1_upsample_wavelet": "InverseHaarWaveletTransform2D",
    "l2_upsample_block": "Spatial2xTime2x3DUpsample",
    "l2_upsample_wavelet": "InverseHaarWaveletTransform3D",
    "attention_type": "AttnBlock3DFix",
}
# What the published class takes where config.json is silent.
DEFAULTS: dict[str, Any] = {
    "norm_type": "groupnorm",
    "t_interpolation": "nearest",
    "latent_dim": 8,
    "base_channels": 128,
    "encoder_energy_flow_hidden_size": 64,
    "decoder_energy_flow_hidden_size": 128,
    "encoder_num_resblocks": 2,
    "decoder_num_resblocks": 2,
    "connect_res_layer_num": 1,
    "use_attention": True,
    "dropout": 0.0,
}
SETTINGS = {
    "latent_dim": "latent_channels",
    "base_channels": "width",
    "encoder_energy_flow_hidden_size": "encoder_energy",
    "decoder_energy_flow_hidden_size": "decoder_energy",
    "encoder_num_resblocks": "encoder_blocks",
    "decoder_num_resblocks": "decoder_blocks",
    "connect_res_layer_num": "connect_blocks",
    "use_attention": "attention",
    "dropout": "dropout",
}


@runtime_checkable
class Loadable(Protocol):
    """What loading and writing weights knows of a WF-VAE: a module with these sizes."""

    channels: int
    compat: bool
    trained: bool
    encoder_sizes: CoderSizes
    decoder_sizes: CoderSizes
    latent_scale: Tensor
    latent_shift: Tensor

    def per_channel(self, value: float | Sequence[float], name: str) -> Tensor:
        """A scale or shift for each channel."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Of ``nn.Module``."""
        ...

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Of ``nn.Module``."""
        ...

    def get_buffer(self, target: str) -> Tensor:
        """Of ``nn.Module``."""
        ...


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
    place = Path(path).expanduser()
    file = _weights_file(place)
    config_file = file.parent / CONFIG
    config = read_json(config_file) if config_file.is_file() else None
    if config is not None:
        check_config(model, config, str(config_file))
    scales = {name: _numbers((config or {}).get(name), model.channels) for name in ("scale", "shift")}
    state, kind = _read(file)
    kernels = {name: state.pop(name) for name in wavelet_kernels(EXACT) if name in state}
    _check_kernels(kernels, model, str(file))
    own = model.state_dict()
    state = {name: _own_scale(model, name) for name in SCALES} | state
    _check_names(state, own, str(file))
    refuse_other_shapes(state, own, str(file), AGAIN)
    refuse_non_finite(state, str(file), AGAIN)
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


def settings_of(config: Mapping[str, Any], source: str = CONFIG) -> dict[str, Any]:
    """The arguments of ``WFVAE`` that a published ``config.json`` stands for.

    Raises:
        UserError: a variant that is not built here.
    """
    config = FIXED | DEFAULTS | dict(config)
    other = [f"{name}={config[name]} (only {value})" for name, value in FIXED.items() if config[name] != value]
    if other:
        raise UserError(
            f"{source} describes a variant of WF-VAE that vidlab does not build: {', '.join(other)}. Group "
            "normalisation mixes frames, so it cannot be processed in chunks."
        )
    found = {ours: config[theirs] for theirs, ours in SETTINGS.items()}
    for name in ("scale", "shift"):
        found[name] = _numbers(config.get(name), found["latent_channels"])
    return found


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


def config_of(model: Loadable) -> dict[str, Any]:
    """The published ``config.json`` of a model."""
    scales = {"scale": model.latent_scale.flatten().tolist(), "shift": model.latent_shift.flatten().tolist()}
    return {"_class_name": "WFVAEModel"} | _sizes(model) | FIXED | scales


def _sizes(model: Loadable) -> dict[str, Any]:
    encoder, decoder = model.encoder_sizes, model.decoder_sizes
    ours = {
        "latent_channels": model.channels,
        "width": encoder.width,
        "encoder_energy": encoder.energy,
        "decoder_energy": decoder.energy,
        "encoder_blocks": encoder.blocks,
        "decoder_blocks": decoder.blocks,
        "connect_blocks": decoder.connect_blocks,
        "attention": encoder.attention,
        "dropout": encoder.dropout,
    }
    return {theirs: ours[name] for theirs, name in SETTINGS.items()}


def check_config(model: Loadable, config: Mapping[str, Any], source: str) -> None:
    """Refuse a published configuration of another architecture.

    Raises:
        UserError: naming the settings that differ.
    """
    theirs, own = settings_of(config, source), settings_of(_sizes(model) | FIXED)
    free = ("dropout", "scale", "shift")
    differing = [name for name in own if theirs[name] != own[name] and name not in free]
    if differing:
        found = ", ".join(f"autoencoder.{name}={own[name]} must be {theirs[name]}" for name in differing)
        raise UserError(f"{source} describes another autoencoder: {found}.")


def wavelet_kernels(gain: float) -> dict[str, Tensor]:
    """The kernels that published files hold, by name.

    In time, rows and columns (1, 1) is the low-pass and (1, -1) the high-pass filter, times ``gain``; 1/2 in space.
    """
    low, high = torch.tensor([1.0, 1.0]), torch.tensor([1.0, -1.0])
    kernels: dict[str, Tensor] = {}
    for time, suffix in ((low, ""), (high, "_v")):
        for name, rows, columns in (("h", low, low), ("g", low, high), ("hh", high, low), ("gh", high, high)):
            kernel = gain * torch.einsum("t,h,w->thw", time, rows, columns)[None, None]
            for place in ("in", "l2"):
                kernels[f"encoder.wavelet_transform_{place}.{name}{suffix}_conv.conv.weight"] = kernel.clone()
            for place in ("out", "l2"):
                kernels[f"decoder.inverse_wavelet_transform_{place}.{name}{suffix}"] = kernel.clone()
    for name, rows, columns in (("aa", low, low), ("ad", high, low), ("da", low, high), ("dd", high, high)):
        for coder in ("encoder.", "decoder.inverse_"):
            kernels[f"{coder}wavelet_transform_l1.{name}"] = 0.5 * torch.outer(rows, columns)[None, None]
    return kernels


def _weights_file(place: Path) -> Path:
    if place.is_file():
        return place
    if not place.is_dir():
        raise UserError(f"autoencoder.path={place}: no such file or folder.")
    if (place / SAFETENSORS).is_file():
        return place / SAFETENSORS
    checkpoints = sorted(place.glob("*.ckpt"))
    if len(checkpoints) == 1:
        return checkpoints[0]
    if checkpoints:
        names = ", ".join(file.name for file in checkpoints[:LISTED])
        raise UserError(f"autoencoder.path={place} holds {len(checkpoints)} checkpoints ({names}); name one.")
    raise UserError(f"autoencoder.path={place} holds no weights: neither {SAFETENSORS} nor a .ckpt file.")


def _read(file: Path) -> tuple[dict[str, Tensor], str]:
    """Tensors by their published names, and which kind of weights they are."""
    if file.suffix == ".safetensors":
        return read_tensors(file, AGAIN), "published"
    try:
        check_archive(file)
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes of another kind raise whatever the unpickler stumbles over
        reason = str(error).split("\n", 1)[0]
        raise UserError(
            f"{file} cannot be read as weights: it is damaged, of another kind, or holds more than tensors and plain "
            f"data, which vidlab never loads ({reason}). {AGAIN}"
        ) from None
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


def _own_scale(model: Loadable, name: str) -> Tensor:
    """What a model without weights has, which may be without memory."""
    value = model.get_buffer(name)
    return model.per_channel(*DEFAULT_SCALES[name]) if value.is_meta else value


def _check_kernels(kernels: Mapping[str, Tensor], model: Loadable, source: str) -> None:
    """The wavelets of a file must be the model's, to the precision the file stores."""
    for compat in (model.compat, not model.compat):
        expected = wavelet_kernels(RELEASED if compat else EXACT)
        agree = [
            stored.shape == expected[name].shape
            and torch.allclose(stored.float(), expected[name], rtol=0.5 * torch.finfo(stored.dtype).eps, atol=1e-6)
            for name, stored in kernels.items()
        ]
        if all(agree):
            if compat != model.compat:
                raise UserError(
                    f"{source} was trained with wavelets of {RELEASED if compat else '1 / (2 sqrt 2)'}. "
                    f"Set autoencoder.compat={str(compat).lower()}."
                )
            return
    raise UserError(f"{source} holds wavelet kernels that are not Haar's, so vidlab cannot reproduce it.")


def stored_compat(folder: Path) -> bool:
    """Whether weights were trained with the published wavelets, as those are that hold no kernels."""
    state, _ = _read(_weights_file(folder))
    exact, stored = wavelet_kernels(EXACT)[SPACE_TIME], state.get(SPACE_TIME)
    return stored is None or stored.shape != exact.shape or not torch.allclose(stored.float(), exact, atol=1e-6)


def _check_names(state: Mapping[str, Any], own: Mapping[str, Tensor], source: str) -> None:
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


def _numbers(value: Any, channels: int) -> float | list[float] | None:
    """Published scales; a list of equal numbers may be of any length, as the release of 16 channels lists four."""
    if not isinstance(value, list):
        return value
    if len(value) != channels and len(set(value)) == 1:
        return float(value[0])
    return [float(number) for number in value]
