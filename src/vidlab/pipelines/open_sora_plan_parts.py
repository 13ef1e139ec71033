"""Finding the parts of Open-Sora Plan v1.3, and checking that they fit each other before any is loaded."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidlab.backbones.open_sora_plan_config import MASK_CHANNELS, read_config, takes_images
from vidlab.clip import LatentShape
from vidlab.errors import UserError
from vidlab.hub import read_json
from vidlab.pipelines.folders import CONFIG, Part

STRIDE = (4, 8, 8)  # of the autoencoder; the first frame stands alone
TEXT = Part("system.text_encoder", ("text_encoder", "mt5-xxl"), "the encoder of mT5-XXL",
            (CONFIG, "*.json", "*.safetensors", "*.model"))  # fmt: skip
DENOISER = Part("system.denoiser", ("any93x640x640",), "the text-to-video denoiser")
IMAGE_DENOISER = Part("system.denoiser", ("any93x640x640_i2v",), "the image-to-video denoiser")
VAE = Part("system.vae", ("vae",), "the WF-VAE")

# What config.json calls the family of the text encoder.
TEXT_ENCODER = "mt5"


@dataclass(frozen=True)
class Places:
    """The folders and hub ids a user names; see ``OpenSoraPlanSystem``."""

    path: str | None = None
    text_encoder: str | None = None
    tokenizer: str | None = None
    denoiser: str | None = None
    vae: str | None = None


@dataclass(frozen=True)
class Parts:
    """Where the parts of one use are, and the latents that follow from their configurations.

    Args:
        text_encoder, tokenizer, denoiser, vae: their folders.
        latent: shape of the latents of one video.
        conditioned: whether the denoiser reads given frames.
    """

    text_encoder: Path
    tokenizer: Path
    denoiser: Path
    vae: Path
    latent: LatentShape
    conditioned: bool


def find_parts(places: Places, clip_shape: tuple[int, int, int], with_frames: bool) -> Parts:
    """Locate all parts and compare their configurations.

    Args:
        places: where to look.
        clip_shape: (frames, height, width) of the videos.
        with_frames: whether frames are given, which only the image-to-video denoiser takes.

    Raises:
        UserError: naming the part and what is wrong.
    """
    denoiser = (IMAGE_DENOISER if with_frames else DENOISER).find(places.denoiser, places.path)
    config = read_config(denoiser)
    conditioned = takes_images(config)
    if with_frames and not conditioned:
        raise UserError(
            f"{denoiser} is a text-to-video denoiser and takes no image or video. Use the image-to-video one, "
            "system.denoiser=<folder any93x640x640_i2v>."
        )
    latent = latent_shape(clip_shape, config)
    vae, text = VAE.find(places.vae, places.path), TEXT.find(places.text_encoder, places.path)
    check_vae(vae, config, denoiser)
    check_text_encoder(text, config, denoiser)
    return Parts(text, find_tokenizer(text, places.tokenizer), denoiser, vae, latent, conditioned)


def find_tokenizer(text_encoder: Path, own: str | None) -> Path:
    """The tokenizer's folder: ``own``, that of the text encoder, or ``tokenizer`` beside it.

    Raises:
        UserError: none of them holds one.
    """
    places = [Path(own).expanduser()] if own else [text_encoder, text_encoder.parent / "tokenizer"]
    for folder in places:
        if any((folder / name).is_file() for name in ("tokenizer.json", "spiece.model")):
            return folder
    raise UserError(
        f"No tokenizer (tokenizer.json or spiece.model) is in {' or '.join(map(str, places))}. Put it there, or set "
        "system.tokenizer=<its folder>."
    )


def latent_shape(clip_shape: tuple[int, int, int], config: Mapping[str, Any]) -> LatentShape:
    """The latents of a clip for the denoiser of a released ``config.json``.

    Raises:
        UserError: frames that are not 1 + 4n, or sides that do not divide into patches.
    """
    frames, height, width = clip_shape
    multiples = {
        "frames": STRIDE[0],
        "height": STRIDE[1] * config["patch_size"],
        "width": STRIDE[2] * config["patch_size"],
    }
    for (name, multiple), size in zip(multiples.items(), clip_shape, strict=True):
        lead = int(name == "frames")
        if (size - lead) % multiple:
            rule = f"1 plus a multiple of {multiple}" if lead else f"a multiple of {multiple}"
            below = max((size - lead) // multiple, 1 - lead) * multiple + lead
            raise UserError(f"{name}={size}: it must be {rule}. Use {name}={below} or {name}={below + multiple}.")
    return LatentShape(config["in_channels"], 1 + (frames - 1) // STRIDE[0], height // STRIDE[1], width // STRIDE[2])


def check_vae(folder: Path, config: Mapping[str, Any], denoiser: Path) -> None:
    """Refuse an autoencoder of another class, or whose latents the denoiser does not read.

    Raises:
        UserError: naming both folders.
    """
    from vidlab.autoencoders.wfvae.published_config import settings_of

    file = folder / CONFIG
    published = read_json(file)
    if published.get("_class_name") != "WFVAEModel":
        raise UserError(
            f"{file} is of the class {published.get('_class_name')}; the system's autoencoder is a WFVAEModel."
        )
    channels = settings_of(published, str(file))["latent_channels"]
    if channels != config["in_channels"]:
        raise UserError(
            f"{folder} makes latents of {channels} channels, and {denoiser} reads {config['in_channels']}. Give "
            "parts of one release."
        )
    if takes_images(config) and config.get(MASK_CHANNELS, STRIDE[0]) != STRIDE[0]:
        raise UserError(f"{denoiser}: {MASK_CHANNELS} must be {STRIDE[0]}, the autoencoder's stride in time.")


def check_text_encoder(folder: Path, config: Mapping[str, Any], denoiser: Path) -> None:
    """Refuse a text encoder the denoiser was not trained with.

    Raises:
        UserError: naming both folders.
    """
    own = read_json(folder / CONFIG)
    kind = own.get("model_type")
    if kind != TEXT_ENCODER:
        raise UserError(
            f"{folder / CONFIG} is of the type {kind}; Open-Sora Plan v1.3 was trained with {TEXT_ENCODER} "
            "(google/mt5-xxl)."
        )
    if own.get("d_model") != config["caption_channels"]:
        raise UserError(
            f"{folder} gives features of width {own.get('d_model')}, and {denoiser} reads "
            f"{config['caption_channels']}. The release takes mT5-XXL, 4096 wide."
        )
