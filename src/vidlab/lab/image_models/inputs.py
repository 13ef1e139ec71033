"""What a command gives a video model's frozen image model before videos are made: a LoRA, a ControlNet, a picture."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vidlab.backbones.harivo.controlnet import FrameControlNet, load_controlnet
from vidlab.backbones.harivo.image_prompt import (
    add_image_prompt,
    load_image_encoder,
    picture_features,
    read_ip_adapter,
    reads_patches,
)
from vidlab.backbones.harivo.lora import add_lora
from vidlab.backbones.harivo.model import HARIVO
from vidlab.data.video.pictures import read_picture
from vidlab.errors import DataError, UserError
from vidlab.pipelines.video_pipeline import VideoPipeline

log = logging.getLogger(__name__)


def give_inputs(pipeline: VideoPipeline, asked: Mapping[str, Mapping[str, Any]], max_megapixels: float = 128) -> None:
    """Give the pipeline's denoiser what is asked for; nothing where no path is set.

    Args:
        pipeline: of a trained ``model=harivo``; its denoiser is changed.
        asked: settings by name, out of ``lora``, ``controlnet`` and ``ip_adapter``, as in ``conf/generate.yaml``.
        max_megapixels: larger pictures are refused before they are decoded.

    Raises:
        UserError: another model, a setting that is absent or out of range, or a file that does not fit.
    """
    for name, settings in asked.items():
        path = settings["path"]
        idle = [key for key, value in settings.items() if key not in ("path", "scale") and value is not None]
        if path is None:
            if idle:
                raise UserError(f"{name}.{idle[0]} is set and {name}.path is not. Give the file as {name}.path.")
            continue
        if not isinstance(pipeline.denoiser, HARIVO):
            kind = type(pipeline.denoiser).__name__
            raise UserError(f"{name}.path={path}: a {kind} has no frozen image model; train one with model=harivo.")
        if not isinstance(settings["scale"], int | float):
            raise UserError(f"{name}.scale={settings['scale']}: it must be a number; 1 is as trained, 0 is off.")
        INPUTS[name](pipeline.denoiser, pipeline.clip_shape[0], settings, max_megapixels)


def _lora(model: HARIVO, frames: int, settings: Mapping[str, Any], max_megapixels: float) -> None:
    count = add_lora(model.body, str(settings["path"]), float(settings["scale"]))
    log.info("lora.path=%s changes %d maps of the image model", settings["path"], count)


def _controlnet(model: HARIVO, frames: int, settings: Mapping[str, Any], max_megapixels: float) -> None:
    names = settings["pictures"]
    names = [names] if isinstance(names, str) else [str(name) for name in names or ()]
    if not names:
        raise UserError("controlnet.pictures is not set: give what the ControlNet reads, a picture or several.")
    pictures = torch.cat([_picture(name, "controlnet.pictures", max_megapixels) for name in names])
    net = load_controlnet(str(settings["path"]), model.body)
    where = _places(settings["frames"], len(names), frames)
    model.control = FrameControlNet(net, pictures, where, float(settings["scale"]))


def _places(asked: Any, pictures: int, frames: int) -> Sequence[int]:
    """Numbers of the frames that have a picture."""
    if asked is not None:
        numbers = [asked] if isinstance(asked, int) else list(asked)
        if not all(isinstance(number, int) and 0 <= number < frames for number in numbers):
            raise UserError(f"controlnet.frames={numbers}: a clip has {frames} frames, numbered from 0.")
        return numbers
    if pictures == 1:
        return range(frames)
    if pictures > frames:
        raise UserError(f"controlnet.pictures: {pictures} are given for a clip of {frames} frames.")
    return [round(number * (frames - 1) / (pictures - 1)) for number in range(pictures)]


def _ip_adapter(model: HARIVO, frames: int, settings: Mapping[str, Any], max_megapixels: float) -> None:
    for key in ("picture", "encoder"):
        if settings[key] is None:
            raise UserError(f"ip_adapter.{key} is not set: an IP-Adapter needs a picture and its image encoder.")
    path = str(settings["path"])
    state = read_ip_adapter(path)
    encoder = load_image_encoder(str(settings["encoder"]))
    picture = _picture(str(settings["picture"]), "ip_adapter.picture", max_megapixels)
    features = picture_features(encoder, picture, reads_patches(state))
    model.image_prompt = add_image_prompt(model.body, path, *features, float(settings["scale"]), state)


def _picture(name: str, key: str, max_megapixels: float) -> Float[Tensor, "1 3 H W"]:
    """A picture in [0, 1]."""
    try:
        found = read_picture(Path(name).expanduser(), max_megapixels)
    except DataError as error:
        raise UserError(f"{key}={error}") from error
    return torch.from_numpy(found.copy()).permute(2, 0, 1)[None].float() / 255


INPUTS: Mapping[str, Callable[[HARIVO, int, Mapping[str, Any], float], None]] = {
    "lora": _lora,
    "controlnet": _controlnet,
    "ip_adapter": _ip_adapter,
}
