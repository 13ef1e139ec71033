"""Inputs made by NumPy alone, the same for the original networks and for vidlab's."""

import numpy as np
import numpy.typing as npt

SEED = 20240


def video(frames: int = 16, size: int = 224, clips: int = 2) -> npt.NDArray[np.float32]:
    """(B, T, H, W, 3) in [-1, 1]: coarse colored cells that drift, with fine noise."""
    rng = np.random.default_rng(SEED)
    cells = rng.uniform(-0.9, 0.9, (clips, size // 8, size // 8, 3)).repeat(8, axis=1).repeat(8, axis=2)
    moving = np.stack([np.roll(cells, 3 * t, axis=2) for t in range(frames)], axis=1)
    return (moving + rng.uniform(-0.1, 0.1, moving.shape)).astype(np.float32)


def image_pairs() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Two batches (B, H, W, 3) in [-1, 1]; the second is the first with noise of growing strength."""
    rng = np.random.default_rng(SEED + 1)
    first = rng.uniform(-0.9, 0.9, (3, 8, 12, 3)).repeat(8, axis=1).repeat(8, axis=2)
    strength = np.array([0.02, 0.1, 0.5]).reshape(3, 1, 1, 1)
    second = np.clip(first + strength * rng.standard_normal(first.shape), -1, 1)
    return first.astype(np.float32), second.astype(np.float32)


def inception_images() -> npt.NDArray[np.float32]:
    """One image (1, 299, 299, 3) in [-1, 1]."""
    return video(frames=1, size=304, clips=1)[:, 0, :299, :299]
