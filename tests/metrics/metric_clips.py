"""Clips, their damages, and a small feature network for the tests of metrics. Not a metric anyone should use."""

import torch
from torch import nn
from torch.nn import functional as F

from vidlab.metrics.sets.features import Extractor, FrameExtractor


def moving_clips(count: int, frames: int = 12, size: int = 32, seed: int = 1, speed: float = 0.5) -> torch.Tensor:
    """(B, 3, T, H, W) in [-1, 1]: a colored disc with texture that crosses a colored, textured background."""
    draws = torch.Generator().manual_seed(seed)
    places = torch.arange(size) / size
    y, x = torch.meshgrid(places, places, indexing="ij")
    t = torch.arange(frames).view(-1, 1, 1) / frames
    clips = []
    for _ in range(count):
        back, front = torch.rand(2, 3, 1, 1, 1, generator=draws)
        x0, y0, angle = torch.rand(3, generator=draws).tolist()
        turn = torch.tensor(2 * torch.pi * angle)
        cx, cy = 0.3 + 0.4 * x0 + speed * turn.cos() * t, 0.3 + 0.4 * y0 + speed * turn.sin() * t
        disc = ((x - cx) ** 2 + (y - cy) ** 2 < 0.04).float()[None]
        texture = 0.2 * torch.sin(30 * (x - cx)) * torch.sin(26 * (y - cy)) * disc + 0.1 * torch.sin(20 * x + 15 * y)
        clips.append((back * (1 - disc) + front * disc) * 1.6 - 0.8 + texture)
    return torch.stack(clips).clamp(-1, 1)


def noise(clips: torch.Tensor, strength: float) -> torch.Tensor:
    """New Gaussian noise in every frame; ``strength`` 1 is a standard deviation of a quarter of the range."""
    draws = torch.Generator().manual_seed(5)
    return (clips + 0.5 * strength * torch.randn(clips.shape, generator=draws)).clamp(-1, 1)


def blur(clips: torch.Tensor, strength: float) -> torch.Tensor:
    """A box filter of up to 9 pixels over the frames."""
    width = 2 * round(4 * strength) + 1
    flat = F.pad(clips.transpose(1, 2).flatten(0, 1), (width // 2,) * 4, mode="replicate")
    small = F.avg_pool2d(flat, width, 1)
    return small.view(clips.shape[0], clips.shape[2], 3, *clips.shape[3:]).transpose(1, 2)


def shuffle(clips: torch.Tensor, strength: float) -> torch.Tensor:
    """The first frames, a share of ``strength``, in another order."""
    count = round(strength * clips.shape[2])
    order = torch.arange(clips.shape[2])
    order[:count] = torch.randperm(count, generator=torch.Generator().manual_seed(6))
    return clips[:, :, order]


def freeze(clips: torch.Tensor, strength: float) -> torch.Tensor:
    """Every frame after the first share of 1 - ``strength`` is the last of those."""
    last = max(round((1 - strength) * clips.shape[2]) - 1, 0)
    return clips[:, :, torch.arange(clips.shape[2]).clamp(max=last)]


DAMAGES = {"noise": noise, "blur": blur, "shuffle": shuffle, "freeze": freeze}


class RandomNetwork(nn.Module):
    """Fixed random convolutions over space and time, averaged: (B, 3, T, H, W) or (B, 3, H, W) to (B, 24)."""

    def __init__(self, dimensions: int, width: int = 24) -> None:
        super().__init__()
        kind = nn.Conv3d if dimensions == 3 else nn.Conv2d
        self.conv = kind(3, width, 3, bias=False)
        draws = torch.Generator().manual_seed(3)
        self.conv.weight.data = torch.randn(self.conv.weight.shape, generator=draws) / 5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        answer = self.conv(x).abs()
        return answer.flatten(2).mean(2) + answer.flatten(2).std(2)


def tiny_videos(size: int = 24) -> Extractor:
    return Extractor(RandomNetwork(3), "random 3-D convolution", 24, size, "bilinear_antialias", batch=8)


def tiny_frames(size: int = 24) -> FrameExtractor:
    return FrameExtractor(RandomNetwork(2), "random convolution", 24, size, "bilinear_antialias", batch=8)
