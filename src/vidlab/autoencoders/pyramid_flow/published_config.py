"""The published ``config.json`` of Pyramid Flow's causal VAE: sizes it stands for, variants that are not built here."""

from collections.abc import Mapping
from typing import Any

from vidlab.errors import UserError

KIND = "CausalVideoVAE"
LEVELS = 4
HALVED = [True, True, True, False]
# Fields of which only one value is built here.
FIXED: dict[str, Any] = {
    "encoder_in_channels": 3,
    "encoder_down_block_types": ["DownEncoderBlockCausal3D"] * LEVELS,
    "encoder_spatial_down_sample": HALVED,
    "encoder_temporal_down_sample": HALVED,
    "encoder_act_fn": "silu",
    "encoder_double_z": True,
    "encoder_type": "causal_vae_conv",
    "decoder_out_channels": 3,
    "decoder_up_block_types": ["UpDecoderBlockCausal3D"] * LEVELS,
    "decoder_spatial_up_sample": HALVED,
    "decoder_temporal_up_sample": HALVED,
    "decoder_act_fn": "silu",
    "decoder_type": "causal_vae_conv",
    "interpolate": False,
    "downsample_scale": 8,
}
# What the published class takes where config.json is silent.
DEFAULTS: dict[str, Any] = {
    "encoder_out_channels": 4,
    "encoder_layers_per_block": [2] * LEVELS,
    "encoder_block_out_channels": [128, 256, 512, 512],
    "encoder_norm_num_groups": 32,
    "decoder_in_channels": 4,
    "decoder_layers_per_block": [3] * LEVELS,
    "decoder_block_out_channels": [128, 256, 512, 512],
    "decoder_norm_num_groups": 32,
}
# Pairs of fields that are one size here.
SAME = (
    ("encoder_out_channels", "decoder_in_channels"),
    ("encoder_block_out_channels", "decoder_block_out_channels"),
    ("encoder_norm_num_groups", "decoder_norm_num_groups"),
)


def settings_of(config: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The sizes of ``PyramidFlowVAE`` that a published ``config.json`` stands for.

    Raises:
        UserError: a variant that is not built here, or a size that is none.
    """
    config = FIXED | DEFAULTS | dict(config)
    other = [f"{name}={config[name]} (only {value})" for name, value in FIXED.items() if config[name] != value]
    other += [f"{a}={config[a]} beside {b}={config[b]}" for a, b in SAME if config[a] != config[b]]
    for name in ("encoder_layers_per_block", "decoder_layers_per_block"):
        levels = config[name]
        if not isinstance(levels, list) or len(levels) != LEVELS or len(set(map(str, levels))) != 1:
            other.append(f"{name}={levels} (only one number, {LEVELS} times)")
    if other:
        raise UserError(f"{source} describes a variant that vidlab does not build: {', '.join(other)}.")
    return {
        "latent_channels": config["encoder_out_channels"],
        "widths": config["encoder_block_out_channels"],
        "encoder_blocks": config["encoder_layers_per_block"][0],
        "decoder_blocks": config["decoder_layers_per_block"][0],
        "groups": config["encoder_norm_num_groups"],
    }


def config_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The published ``config.json`` of sizes, as ``settings_of`` reads it back."""
    coders = {
        "out_channels": settings["latent_channels"],
        "block_out_channels": list(settings["widths"]),
        "norm_num_groups": settings["groups"],
    }
    encoder = {f"encoder_{name}": value for name, value in coders.items()}
    decoder = {f"decoder_{name}": value for name, value in coders.items() if name != "out_channels"}
    blocks = {f"{name}_layers_per_block": [settings[f"{name}_blocks"]] * LEVELS for name in ("encoder", "decoder")}
    channels = {"decoder_in_channels": settings["latent_channels"]}
    return {"_class_name": KIND} | FIXED | encoder | decoder | channels | blocks
