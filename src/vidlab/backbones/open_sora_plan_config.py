"""What ``config.json`` of a released Open-Sora Plan v1.3 denoiser says, read and written."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from vidlab.backbones.base import VideoDenoiser
from vidlab.errors import UserError
from vidlab.hub import read_json
from vidlab.layers.layouts import Full3D, GroupSkip, LayerPlan, SingleSkip

RELEASE = "Open-Sora Plan v1.3"
CONFIG = "config.json"
# Fields of config.json that weights do not depend on: what the class was called, how far positions are
# squeezed, and how layers attend.
NOT_ARCHITECTURE = ("_class_name", "interpolation_scale", "sparse")
TEXT_TO_VIDEO, IMAGE_TO_VIDEO = "OpenSoraT2V_v1_3", "OpenSoraInpaint_v1_3"
# Fields of config.json of which only one value is built here.
FIXED = {
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "double_self_attention": False,
    "norm_elementwise_affine": False,
    "norm_eps": 1e-6,
    "only_cross_attention": False,
}
MASK_CHANNELS = "vae_scale_factor_t"
# Layers at the start and at the end whose attention is full. The published class does not store it, since it is fixed
# there: layers 2 to 29 are sparse.
FULL_LAYERS = "sparse_full_layers"
FIRST_SPARSE, LAST_SPARSE = 2, 29


class ReleasedArchitecture(VideoDenoiser):
    """What the published ``config.json`` describes; the base of ``OpenSoraPlan``."""

    latent_channels: int
    text_width: int
    width: int
    heads: int
    patch: tuple[int, int, int]
    rope_scale: tuple[float, float, float]
    control_channels: tuple[int, ...]
    transformer_blocks: nn.ModuleList


def release_config(model: ReleasedArchitecture) -> dict[str, Any]:
    """The fields of a published ``config.json`` that fix the architecture."""
    frames, rows, columns = model.rope_scale
    layouts = [block.layout for block in model.transformer_blocks]
    skips = sorted({layout.k for layout in layouts if isinstance(layout, SingleSkip | GroupSkip)})
    mask_channels = {MASK_CHANNELS: model.control_channels[1]} if len(model.control_channels) == 2 else {}
    return {
        "_class_name": IMAGE_TO_VIDEO if model.control_channels else TEXT_TO_VIDEO,
        **FIXED,
        **mask_channels,
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
        FULL_LAYERS: [_leading_full(layouts), _leading_full(layouts[::-1])],
        "interpolation_scale_t": frames,
        "interpolation_scale_h": rows,
        "interpolation_scale_w": columns,
    }


def read_config(folder: str | Path) -> dict[str, Any]:
    """The ``config.json`` of a release.

    Raises:
        UserError: it is missing, damaged, of another class than Open-Sora Plan v1.3's two, or lacks a size.
    """
    file = Path(folder) / CONFIG
    if not file.is_file():
        raise UserError(f"{folder} is not a released denoiser: it has no {CONFIG}.")
    config = read_json(file)
    found = config.get("_class_name")
    if found not in (TEXT_TO_VIDEO, IMAGE_TO_VIDEO):
        raise UserError(
            f"{file} is of the class {found}; a denoiser of Open-Sora Plan v1.3 is {TEXT_TO_VIDEO} or, for images, "
            f"{IMAGE_TO_VIDEO}."
        )
    needed = ("num_layers", "num_attention_heads", "attention_head_dim", "in_channels", "caption_channels",
              "patch_size", "patch_size_t")  # fmt: skip
    wrong = [name for name in needed if not isinstance(config.get(name), int)]
    if wrong:
        raise UserError(f"{file} lacks sizes of the denoiser: {', '.join(wrong)} must be whole numbers.")
    other = [
        f"{name}={config[name]} (only {FIXED[name]})" for name in FIXED if config.get(name, FIXED[name]) != FIXED[name]
    ]
    if config.get("out_channels") not in (None, config["in_channels"]):
        other.append(f"out_channels={config['out_channels']} (only in_channels, {config['in_channels']})")
    if other:
        raise UserError(f"{file} describes a variant that vidlab does not build: {', '.join(other)}.")
    return config


def takes_images(config: Mapping[str, Any]) -> bool:
    """Whether a released ``config.json`` is of the image-conditioned model."""
    return config["_class_name"] == IMAGE_TO_VIDEO


def model_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of ``OpenSoraPlan`` that a released ``config.json`` stands for, without the latents' shape."""
    mask_channels = config.get(MASK_CHANNELS, 4)
    return {
        "text_width": config["caption_channels"],
        "layouts": _layouts(config),
        "width": config["num_attention_heads"] * config["attention_head_dim"],
        "depth": config["num_layers"],
        "heads": config["num_attention_heads"],
        "patch": (config["patch_size_t"], config["patch_size"], config["patch_size"]),
        "rope_scale": tuple(config.get(f"interpolation_scale_{axis}", 1.0) for axis in "thw"),
        "control_channels": (config["in_channels"], mask_channels) if takes_images(config) else (),
    }


def check_config(model: ReleasedArchitecture, folder: str | Path) -> None:
    """Refuse a release whose ``config.json``, where it has one, describes weights of other shapes.

    Raises:
        UserError: naming the fields that differ.
    """
    file = Path(folder) / CONFIG
    if not file.is_file():
        return
    published, own = read_json(file), release_config(model)
    differing = [
        key for key in own if key in published and published[key] != own[key] and not key.startswith(NOT_ARCHITECTURE)
    ]
    if differing:
        found = ", ".join(f"{key} is {published[key]} there and {own[key]} here" for key in differing)
        raise UserError(f"{file} describes another model than model.backbone: {found}.")


def other_layouts(model: ReleasedArchitecture, folder: str | Path) -> str | None:
    """How the layers of a model attend otherwise than those of a release, in words; None where they do not.

    No weight depends on it, and yet the same weights then compute something else.
    """
    if not (Path(folder) / CONFIG).is_file():
        return None
    own = [block.layout for block in model.transformer_blocks]
    there = _layouts(read_config(folder)).layers(len(own))
    differing = [number for number, pair in enumerate(zip(own, there, strict=True)) if pair[0] != pair[1]]
    if not differing:
        return None
    first = differing[0]
    return (
        f"{len(differing)} of {len(own)} layers attend otherwise than in {folder}: layer {first} is {own[first]} here "
        f"and {there[first]} there"
    )


def _layouts(config: Mapping[str, Any]) -> LayerPlan:
    if not config.get("sparse1d", False):
        return LayerPlan([Full3D()])
    k = config.get("sparse_n", 2)
    first, last = config.get(FULL_LAYERS, (FIRST_SPARSE, max(config["num_layers"] - 1 - LAST_SPARSE, 0)))
    return LayerPlan([SingleSkip(k), GroupSkip(k)], first, last)


def _leading_full(layouts: Sequence[Any]) -> int:
    return sum(1 for _ in itertools.takewhile(lambda layout: isinstance(layout, Full3D), layouts))
