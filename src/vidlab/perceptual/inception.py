"""Inception-v3 as FID uses it: 2048 numbers per image (Heusel et al. 2017, arXiv:1706.08500).

The weights are those of the TensorFlow graph FID was defined with. It differs from the usual Inception-v3 in two
places: average pools do not count their padding, and the last block takes the maximum instead of the average.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import override

from vidlab.errors import UserError
from vidlab.perceptual.weights import load_weights, take

FEATURES = 2048
SIZE = 299
_MIN_SIZE = 75
_EPSILON = 1e-3


class _Conv(nn.Conv2d):
    """Convolution and ReLU, BatchNorm folded in; ``same`` pads so that stride 1 keeps the size."""

    def __init__(self, channels: int, out: int, kernel: int | tuple[int, int], stride: int = 1, same: bool = True):
        sides = (kernel, kernel) if isinstance(kernel, int) else kernel
        super().__init__(channels, out, sides, stride, (sides[0] // 2, sides[1] // 2) if same else 0)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu_(super().forward(x))


def _average(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


class _Tower(nn.Sequential):
    """Convolutions one after another, named as in the published file."""

    def __init__(self, channels: int, *layers: tuple[int, int | tuple[int, int]], shrink: bool = False) -> None:
        super().__init__()
        for number, (out, kernel) in enumerate(layers):
            is_last = shrink and number == len(layers) - 1
            self.add_module(
                f"conv_{number}" if number else "conv", _Conv(channels, out, kernel, 1 + is_last, not is_last)
            )
            channels = out


class _A(nn.Module):
    """Blocks at 35 x 35."""

    def __init__(self, channels: int, pooled: int) -> None:
        super().__init__()
        self.conv = _Conv(channels, 64, 1)
        self.tower = _Tower(channels, (48, 1), (64, 5))
        self.tower_1 = _Tower(channels, (64, 1), (96, 3), (96, 3))
        self.tower_2 = _Tower(channels, (pooled, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.conv(x), self.tower(x), self.tower_1(x), self.tower_2(_average(x))], 1)


class _B(nn.Module):
    """From 35 x 35 to 17 x 17."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = _Conv(288, 384, 3, 2, same=False)
        self.tower = _Tower(288, (64, 1), (96, 3), (96, 3), shrink=True)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.conv(x), self.tower(x), F.max_pool2d(x, 3, 2)], 1)


class _C(nn.Module):
    """Blocks at 17 x 17, with 7 x 7 convolutions in two halves."""

    def __init__(self, width: int) -> None:
        super().__init__()
        row, column = (1, 7), (7, 1)
        self.conv = _Conv(768, 192, 1)
        self.tower = _Tower(768, (width, 1), (width, row), (192, column))
        self.tower_1 = _Tower(768, (width, 1), (width, column), (width, row), (width, column), (192, row))
        self.tower_2 = _Tower(768, (192, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.conv(x), self.tower(x), self.tower_1(x), self.tower_2(_average(x))], 1)


class _D(nn.Module):
    """From 17 x 17 to 8 x 8."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = _Tower(768, (192, 1), (320, 3), shrink=True)
        self.tower_1 = _Tower(768, (192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3), shrink=True)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.tower(x), self.tower_1(x), F.max_pool2d(x, 3, 2)], 1)


class _E(nn.Module):
    """Blocks at 8 x 8: branches that end in two halves side by side."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = _Conv(channels, 320, 1)
        self.tower_conv = _Conv(channels, 384, 1)
        self.tower_mixed_conv, self.tower_mixed_conv_1 = _Conv(384, 384, (1, 3)), _Conv(384, 384, (3, 1))
        self.tower_1_conv, self.tower_1_conv_1 = _Conv(channels, 448, 1), _Conv(448, 384, 3)
        self.tower_1_mixed_conv, self.tower_1_mixed_conv_1 = _Conv(384, 384, (1, 3)), _Conv(384, 384, (3, 1))
        self.tower_2_conv = _Conv(channels, 192, 1)

    def pool(self, x: Tensor) -> Tensor:
        return _average(x)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.tower_conv(x), self.tower_1_conv_1(self.tower_1_conv(x))
        first = [self.conv(x), self.tower_mixed_conv(a), self.tower_mixed_conv_1(a)]
        second = [self.tower_1_mixed_conv(b), self.tower_1_mixed_conv_1(b), self.tower_2_conv(self.pool(x))]
        return torch.cat(first + second, 1)


class _LastE(_E):
    def pool(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, 3, 1, 1)


class _Pool(nn.MaxPool2d):
    def __init__(self) -> None:
        super().__init__(3, 2)


class Inception(nn.Module):
    """FID's Inception-v3 with random weights, frozen; ``load_inception`` gives the trained one.

    Images (B, 3, H, W) in [-1, 1], of 299 x 299 pixels in FID and at least 75 x 75, to (B, 2048) numbers >= 0: the
    average of the last block over space.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential()
        for name, module in (
            ("conv", _Conv(3, 32, 3, 2, same=False)), ("conv_1", _Conv(32, 32, 3, same=False)),
            ("conv_2", _Conv(32, 64, 3)), ("pool0", _Pool()), ("conv_3", _Conv(64, 80, 1)),
            ("conv_4", _Conv(80, 192, 3, same=False)), ("pool1", _Pool()),
            ("mixed", _A(192, 32)), ("mixed_1", _A(256, 64)), ("mixed_2", _A(288, 64)), ("mixed_3", _B()),
            ("mixed_4", _C(128)), ("mixed_5", _C(160)), ("mixed_6", _C(160)), ("mixed_7", _C(192)), ("mixed_8", _D()),
            ("mixed_9", _E(1280)), ("mixed_10", _LastE(2048)),
        ):  # fmt: skip
            self.layers.add_module(name, module)
        self.eval().requires_grad_(False)

    @override
    def train(self, mode: bool = True) -> "Inception":
        return super().train(False)  # frozen

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 2048"]:
        """Pooled features, in float32.

        Raises:
            UserError: images smaller than the network reads.
        """
        if min(images.shape[2:]) < _MIN_SIZE:
            raise UserError(
                f"Inception reads images of at least {_MIN_SIZE} x {_MIN_SIZE} pixels, these have "
                f"{images.shape[2]} x {images.shape[3]}. Resize them to {SIZE} x {SIZE}, as FID does."
            )
        # The graph was trained on (p - 128) / 128 of pixels 0 to 255, not on (p - 127.5) / 127.5.
        x = ((images.float() + 1) * 127.5 - 128) / 128
        return self.layers(x).mean((2, 3))  # of (B, 2048, h, w)


def load_inception(weights: str = "asset:inception-2048.pt") -> Inception:
    """Inception with trained weights: ``asset:inception-2048.pt`` or a local copy of it (``.pt``, ``.safetensors``).

    The published file is TorchScript. Its tensors are read, its code is not.

    Raises:
        AssetError: the pinned file could not be fetched.
        UserError: there is no such file, or it holds other weights.
    """
    model, found = Inception(), load_weights(weights)
    for name, conv in model.named_modules():
        if not isinstance(conv, _Conv):
            continue
        kernel = take(found, f"net.{name}.weight", tuple(conv.weight.shape), weights)
        rows = (conv.out_channels,)
        shift, mean, var = (take(found, f"net.{name}.{n}", rows, weights).double() for n in ("beta", "mean", "var"))
        scale = (var + _EPSILON).rsqrt()
        assert conv.bias is not None
        conv.weight.data = (kernel.double() * scale.view(-1, 1, 1, 1)).float()
        conv.bias.data = (shift - mean * scale).float()
    return model
