"""The published ``config.json`` of a WF-VAE: which sizes it stands for, and which variants are not built here."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from vidlab.autoencoders.weight_files import CONFIG
from vidlab.autoencoders.wfvae.coders import CoderSizes
from vidlab.errors import UserError

KIND = "WFVAEModel"
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
            "normalization mixes frames, so it cannot be processed in chunks."
        )
    found = {ours: config[theirs] for theirs, ours in SETTINGS.items()}
    for name in ("scale", "shift"):
        found[name] = per_channel_numbers(config.get(name), found["latent_channels"])
    return found


def config_of(model: Loadable) -> dict[str, Any]:
    """The published ``config.json`` of a model."""
    scales = {"scale": model.latent_scale.flatten().tolist(), "shift": model.latent_shift.flatten().tolist()}
    return {"_class_name": KIND} | _sizes(model) | FIXED | scales


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


def per_channel_numbers(value: Any, channels: int) -> float | list[float] | None:
    """Published scales; a list of equal numbers may be of any length, as the release of 16 channels lists four."""
    if not isinstance(value, list):
        return value
    if len(value) != channels and len(set(value)) == 1:
        return float(value[0])
    return [float(number) for number in value]
