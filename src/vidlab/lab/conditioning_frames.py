"""Frames a user gives: an image to start from, two to interpolate, a video to continue."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from omegaconf import DictConfig
from torch import Tensor

from vidlab.errors import CorruptClipError, DataError, UserError


@dataclass(frozen=True)
class GivenFrames:
    """One clip of which some frames are given.

    Args:
        pixels: (3, T, H, W) in [-1, 1]; frames that are not given are 0.
        known: True at given frames.
    """

    pixels: Float[Tensor, "3 T H W"]
    known: Bool[Tensor, "T"]


def conditioning_frames(cfg: DictConfig, clip_shape: tuple[int, int, int], usual: int) -> GivenFrames | None:
    """What ``image``, ``last_image`` and ``video`` of generate.yaml give, resized and cropped; None for nothing.

    Args:
        cfg: the settings of generate.yaml.
        clip_shape: (frames, height, width) of the model's clips.
        usual: frames of a video that are given where ``video_frames`` says nothing.

    Raises:
        UserError: a file that is not there or no picture, a video too short, or a video and an image together.
    """
    if not (cfg.image or cfg.last_image or cfg.video):
        return None
    if cfg.video and (cfg.image or cfg.last_image):
        raise UserError("video= gives the first frames and goes with neither image= nor last_image=.")
    limit = cfg.max_megapixels
    if not isinstance(limit, int | float) or not limit > 0:
        raise UserError(f"max_megapixels={limit}: it must be a number above 0.")
    frames, height, width = clip_shape
    pixels, known = torch.zeros(3, frames, height, width), torch.zeros(frames, dtype=torch.bool)
    for key, place in (("image", 0), ("last_image", frames - 1)):
        if cfg[key]:
            pixels[:, place] = _to_pixels(_image(Path(cfg[key]).expanduser(), key, limit)[None], height, width)[:, 0]
            known[place] = True
    if cfg.video:
        count = cfg.video_frames or usual
        if not 0 < count < frames:
            raise UserError(f"video_frames={count} must be at least 1 and below the clip's {frames} frames.")
        pixels[:, :count] = _to_pixels(_last_frames(Path(cfg.video).expanduser(), count, limit), height, width)
        known[:count] = True
    return GivenFrames(pixels, known)


def _image(path: Path, key: str, max_megapixels: float = 128) -> UInt8[np.ndarray, "H W 3"]:
    from vidlab.data.video.pictures import read_picture

    try:
        return read_picture(path, max_megapixels)
    except DataError as error:
        raise UserError(f"{key}={error}") from error


def _last_frames(path: Path, count: int, max_megapixels: float) -> UInt8[np.ndarray, "T H W 3"]:
    from vidlab.data.video import DecodeLimits, probe, read_frames

    limits = DecodeLimits(max_megapixels)
    try:
        frames = probe(path, limits=limits).frames
        if frames < count:
            raise UserError(f"video={path} has {frames} frames; video_frames={count} are needed.")
        return read_frames(path, range(frames - count, frames), limits=limits)
    except CorruptClipError as error:
        raise UserError(f"video={error}.") from error


def _to_pixels(frames: UInt8[np.ndarray, "T H W 3"], height: int, width: int) -> Float[Tensor, "3 T h w"]:
    """Scale the short side to fit, crop the centre."""
    video = torch.from_numpy(np.array(frames, order="C")).permute(0, 3, 1, 2).float()  # Pillow's are read-only
    scale = max(height / video.shape[2], width / video.shape[3])
    size = [max(round(video.shape[2] * scale), height), max(round(video.shape[3] * scale), width)]
    video = torch.nn.functional.interpolate(video, size=size, mode="bilinear", antialias=True)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return video[:, :, top : top + height, left : left + width].permute(1, 0, 2, 3) / 127.5 - 1
