"""Known damage to clips (T, H, W, 3) in [0, 255]."""

import numpy as np

Pixels = np.ndarray


def noisy(pixels: Pixels, sigma: float, seed: int = 0) -> Pixels:
    return np.clip(pixels + np.random.default_rng(seed).normal(0, sigma, pixels.shape), 0, 255)


def blurred(pixels: Pixels, sigma: float) -> Pixels:
    """Gaussian blur of each frame, sigma in pixels."""
    reach = int(3 * sigma) + 1
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    weights /= weights.sum()
    height, width = pixels.shape[1:3]
    wide = np.pad(pixels.astype(float), ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode="edge")
    rows = sum(weight * wide[:, i : i + height] for i, weight in enumerate(weights))
    return sum(weight * rows[:, :, i : i + width] for i, weight in enumerate(weights))


def frozen(pixels: Pixels, frames: int) -> Pixels:
    """The last frames replaced by the one before them."""
    out = pixels.copy()
    out[len(out) - frames :] = out[len(out) - frames - 1]
    return out


def shuffled(pixels: Pixels, frames: int, seed: int = 0) -> Pixels:
    """Some frames in a random order, the others in their places."""
    chosen = np.random.default_rng(seed).permutation(len(pixels))[:frames]
    out = pixels.copy()
    out[np.sort(chosen)] = pixels[chosen]
    return out


def recolored(pixels: Pixels, amount: float) -> Pixels:
    """Red, green and blue on their way to changing places."""
    return (1 - amount) * pixels + amount * pixels[..., [1, 2, 0]]
