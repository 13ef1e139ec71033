"""Frames a user gives: an image to start from, two to interpolate, a video to continue."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from vidlab.errors import CorruptClipError, DataError, UserError

# A picture or a video: a file, or frames as uint8.
Media = str | Path | np.ndarray


@dataclass(frozen=True)
class GivenFrames:
    """One clip of which some frames are given.

    Args:
        pixels: (3, T, H, W) in [-1, 1]; frames that are not given are 0.
        known: True at given frames.
    """

    pixels: Float[Tensor, "3 T H W"]
    known: Bool[Tensor, "T"]


@dataclass(frozen=True)
class GivenMedia:
    """What a user gives a clip to start from, before it is read.

    Args:
        image: the first frame: a file, or uint8 (H, W, 3).
        last_image: the last frame.
        video: a file, or uint8 (T, H, W, 3), whose last frames are the first ones.
        video_frames: how many of them; None is as many as the model usually knows.
    """

    image: Media | None = None
    last_image: Media | None = None
    video: Media | None = None
    video_frames: int | None = None

    @property
    def names(self) -> list[str]:
        """The settings that give frames."""
        return [name for name in ("image", "last_image", "video") if getattr(self, name) is not None]

    def read(
        self, clip_shape: tuple[int, int, int], default_num_frames: int, every: int | None = None
    ) -> GivenFrames | None:
        """The frames, as ``conditioning_frames`` reads them."""
        given = self.image, self.last_image, self.video, self.video_frames
        return conditioning_frames(clip_shape, default_num_frames, *given, every=every)


def conditioning_frames(
    clip_shape: tuple[int, int, int],
    default_num_frames: int,
    image: Media | None = None,
    last_image: Media | None = None,
    video: Media | None = None,
    video_frames: int | None = None,
    max_megapixels: float = 128,
    every: int | None = None,
) -> GivenFrames | None:
    """What is given of a clip, resized and cropped; None for nothing.

    Args:
        clip_shape: (frames, height, width) of the model's clips.
        default_num_frames: frames of a video that are given where ``video_frames`` says nothing.
        image: the first frame: a file, or uint8 (H, W, 3).
        last_image: the last frame.
        video: a file, or uint8 (T, H, W, 3), whose last frames are the first ones.
        video_frames: how many of them.
        max_megapixels: larger pictures and frames are refused before they are decoded.
        every: the model makes frames between those of a video: all of its frames are given, however many.

    Raises:
        UserError: a file that is not there or no picture, a video too short, or a video and an image together.
    """
    # a path that is empty, as ``image=`` on a command line, gives nothing
    image, last_image, video = (None if isinstance(one, str) and not one else one for one in (image, last_image, video))
    if image is None and last_image is None and video is None:
        return None
    if video is not None and not (image is None and last_image is None):
        raise UserError("video= gives the first frames and goes with neither image= nor last_image=.")
    if not max_megapixels > 0:
        raise UserError(f"max_megapixels={max_megapixels}: it must be a number above 0.")
    frames, height, width = clip_shape
    if every is not None and video is not None:
        if video_frames is not None:
            raise UserError("video_frames= is for a video that is continued; here all of its frames are given.")
        pixels = to_pixels(_last_frames(video, None, max_megapixels), height, width)
        return GivenFrames(pixels, torch.ones(pixels.shape[1], dtype=torch.bool))
    pixels, known = torch.zeros(3, frames, height, width), torch.zeros(frames, dtype=torch.bool)
    for key, picture, place in (("image", image, 0), ("last_image", last_image, frames - 1)):
        if picture is not None:
            pixels[:, place] = to_pixels(read_image(picture, key, max_megapixels)[None], height, width)[:, 0]
            known[place] = True
    if video is not None:
        count = video_frames or default_num_frames
        if not 0 < count < frames:
            raise UserError(f"video_frames={count} must be at least 1 and below the clip's {frames} frames.")
        pixels[:, :count] = to_pixels(_last_frames(video, count, max_megapixels), height, width)
        known[:count] = True
    return GivenFrames(pixels, known)


def read_image(picture: Media, key: str, max_megapixels: float = 128) -> UInt8[np.ndarray, "H W 3"]:
    """A picture of the setting ``key``.

    Raises:
        UserError: it cannot be read.
    """
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise UserError(f"{key}: an array must be uint8 (H, W, 3), and is {picture.dtype} {picture.shape}.")
        return picture
    from vidlab.data.video.pictures import read_picture

    try:
        return read_picture(Path(picture).expanduser(), max_megapixels)
    except DataError as error:
        raise UserError(f"{key}={error}") from error


def _last_frames(video: Media, count: int | None, max_megapixels: float) -> UInt8[np.ndarray, "T H W 3"]:
    """The last ``count`` frames; None: all, of which there are two at least."""
    least = 2 if count is None else count
    if isinstance(video, np.ndarray):
        if video.dtype != np.uint8 or video.ndim != 4 or video.shape[3] != 3 or len(video) < least:
            raise UserError(
                f"video: an array must be uint8 (T, H, W, 3) of at least {least} frames, and is {video.dtype} "
                f"{video.shape}."
            )
        return video if count is None else video[len(video) - count :]
    path = Path(video).expanduser()
    from vidlab.data.video import DecodeLimits, probe, read_frames

    limits = DecodeLimits(max_megapixels)
    try:
        frames = probe(path, limits=limits).frames
        if frames < least:
            raise UserError(f"video={path} has {frames} frames; video_frames={least} are needed.")
        return read_frames(path, range(0 if count is None else frames - count, frames), limits=limits)
    except CorruptClipError as error:
        raise UserError(f"video={error}.") from error


def to_pixels(frames: UInt8[np.ndarray, "T H W 3"], height: int, width: int) -> Float[Tensor, "3 T h w"]:
    """Scale the short side to fit, crop the center."""
    video = torch.from_numpy(np.array(frames, order="C")).permute(0, 3, 1, 2).float()  # Pillow's are read-only
    scale = max(height / video.shape[2], width / video.shape[3])
    size = [max(round(video.shape[2] * scale), height), max(round(video.shape[3] * scale), width)]
    video = torch.nn.functional.interpolate(video, size=size, mode="bilinear", antialias=True)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return video[:, :, top : top + height, left : left + width].permute(1, 0, 2, 3) / 127.5 - 1
