"""Optical flow by OpenCV's DIS (Kroeger et al. 2016, arXiv:1603.03590): no weights, a millisecond for a small frame."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from vidlab.errors import DataError, MissingPackageError

MIN_SIZE = 16  # pixels a side; DIS matches patches of 8 on a pyramid
# At presets below this one flow starts at a quarter of the resolution, too coarse for laptop-sized clips.
PRESET = "medium"


def gray_frames(video: Float[Tensor, "3 T H W"]) -> NDArray[np.uint8]:
    """(T, H, W) luma of a clip in [-1, 1], rounded to 0..255 (ITU-R BT.601 weights)."""
    weights = torch.tensor([0.299, 0.587, 0.114], device=video.device).view(3, 1, 1, 1)
    luma = ((video.float() * weights).sum(0) + 1) * 127.5
    return luma.round().clamp(0, 255).to(torch.uint8).cpu().numpy()


def flow_between(first: NDArray[np.uint8], second: NDArray[np.uint8], estimator: Any) -> NDArray[np.float32]:
    """(H, W, 2): where each pixel of the first frame is in the second, minus its place, in pixels (x, y)."""
    return np.asarray(estimator.calc(first, second, None))


def make_estimator() -> Any:
    """An OpenCV DIS estimator.

    Raises:
        MissingPackageError: OpenCV is not installed.
    """
    try:
        import cv2
    except ImportError as error:
        raise MissingPackageError("metrics of motion need OpenCV: pip install opencv-python.") from error
    return cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)


def flows(gray: NDArray[np.uint8], step: int = 1) -> NDArray[np.float32]:
    """(T - step, H, W, 2): flow from each frame to the one ``step`` later, in pixels.

    Raises:
        DataError: frames smaller than 16 x 16.
    """
    if min(gray.shape[1:]) < MIN_SIZE:
        raise DataError(
            f"optical flow reads frames of at least {MIN_SIZE} x {MIN_SIZE}, these are {gray.shape[1]} x "
            f"{gray.shape[2]}; set the metric's size to enlarge them."
        )
    estimator = make_estimator()
    return np.stack([flow_between(a, b, estimator) for a, b in zip(gray[:-step], gray[step:], strict=True)])


def warp(image: NDArray[Any], flow: NDArray[Any]) -> NDArray[Any]:
    """The image (H, W) or (H, W, C) read bilinearly at each pixel's place plus its flow; edges are repeated."""
    import cv2

    height, width = flow.shape[:2]
    columns, rows = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    return np.asarray(
        cv2.remap(image, columns + flow[..., 0], rows + flow[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    )
