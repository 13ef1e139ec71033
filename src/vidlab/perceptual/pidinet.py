"""PiDiNet: sketches by pixel difference convolutions (Su et al. 2021, arXiv:2108.07009).

The full network with 60 channels, its attention and its dilated convolutions, as its authors publish it
(``table5_pidinet.pth``): 0.71 million parameters.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import override

from vidlab.errors import UserError, first_line
from vidlab.tensors import misfits, read_tensors, refuse_non_finite, shape_text

WIDTH, DILATED = 60, 24
# Kinds of difference convolutions in turn: central, angular, radial, and the plain one.
_KINDS = ("central", "angular", "radial", "plain")
_STAGES = ((WIDTH, 3), (2 * WIDTH, 4), (4 * WIDTH, 4), (4 * WIDTH, 4))  # width, blocks
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Places of a 3 x 3 kernel in reading order: each takes away that of its neighbor around the middle (angular).
_AROUND = (3, 0, 1, 6, 4, 2, 7, 8, 5)
# Where the eight outer places of a 3 x 3 kernel go in a 5 x 5 one: added at its rim, taken away inside (radial).
_RIM, _INSIDE = (0, 2, 4, 10, 14, 20, 22, 24), (6, 7, 8, 11, 13, 16, 17, 18)


def central(x: Tensor, weight: Tensor, padding: int, groups: int) -> Tensor:
    """Each pixel compared with the middle one: sum of w_i (x_i - x_c)."""
    middle = F.conv2d(x, weight.sum((2, 3), keepdim=True), groups=groups)
    return F.conv2d(x, weight, padding=padding, groups=groups) - middle


def angular(x: Tensor, weight: Tensor, padding: int, groups: int) -> Tensor:
    """Each pixel compared with its neighbor around the middle."""
    flat = weight.flatten(2)
    return F.conv2d(x, (flat - flat[:, :, list(_AROUND)]).view_as(weight), padding=padding, groups=groups)


def radial(x: Tensor, weight: Tensor, padding: int, groups: int) -> Tensor:
    """Pixels two steps from the middle compared with those one step from it."""
    wide = weight.new_zeros(*weight.shape[:2], 25)
    outer = weight.flatten(2)[:, :, 1:]  # (D, C / groups, 8): without the first place
    wide[:, :, list(_RIM)], wide[:, :, list(_INSIDE)] = outer, -outer
    return F.conv2d(x, wide.unflatten(2, (5, 5)), padding=2 * padding, groups=groups)


def plain(x: Tensor, weight: Tensor, padding: int, groups: int) -> Tensor:
    """An ordinary convolution."""
    return F.conv2d(x, weight, padding=padding, groups=groups)


_OPERATIONS: dict[str, Callable[[Tensor, Tensor, int, int], Tensor]] = {
    "central": central, "angular": angular, "radial": radial, "plain": plain,
}  # fmt: skip


class DifferenceConv(nn.Module):
    """A 3 x 3 convolution without bias of one of the four kinds."""

    def __init__(self, kind: str, before: int, after: int, groups: int = 1) -> None:
        super().__init__()
        self.kind, self.groups = kind, groups
        self.weight = nn.Parameter(torch.empty(after, before // groups, 3, 3))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D H W"]:
        """As many pixels."""
        return _OPERATIONS[self.kind](x, self.weight, 1, self.groups)


class Block(nn.Module):
    """A difference convolution by channel, then a mix of channels, beside what came in."""

    def __init__(self, kind: str, before: int, after: int, halves: bool) -> None:
        super().__init__()
        self.halves = halves
        if halves:
            self.shortcut = nn.Conv2d(before, after, 1)
        self.conv1 = DifferenceConv(kind, before, before, groups=before)
        self.conv2 = nn.Conv2d(before, after, 1, bias=False)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        """Half as many rows and columns where it halves."""
        x = F.max_pool2d(x, 2) if self.halves else x
        y = self.conv2(F.relu(self.conv1(x)))
        return y + (self.shortcut(x) if self.halves else x)


class DilatedConvs(nn.Module):
    """The paper's CDCM: four dilated convolutions of one projection, added."""

    def __init__(self, before: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, DILATED, 1)
        for number, step in enumerate((5, 7, 9, 11), start=1):
            conv = nn.Conv2d(DILATED, DILATED, 3, dilation=step, padding=step, bias=False)
            self.add_module(f"conv2_{number}", conv)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D H W"]:
        """The sum."""
        x = self.conv1(F.relu(x))
        parts = torch.stack([self.get_submodule(f"conv2_{number}")(x) for number in range(1, 5)])  # (4, B, 24, H, W)
        return parts.sum(0)


class SpatialAttention(nn.Module):
    """The paper's CSAM: a factor in (0, 1) for each pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(DILATED, 4, 1)
        self.conv2 = nn.Conv2d(4, 1, 3, padding=1, bias=False)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """What came in, weighed."""
        return x * torch.sigmoid(self.conv2(self.conv1(F.relu(x))))


class Reduce(nn.Module):
    """One map of several channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(DILATED, 1, 1)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B 1 H W"]:
        """The map."""
        return self.conv(x)


class PiDiNet(nn.Module):
    """PiDiNet with random weights and the parameter names of its authors; ``load_pidinet`` fills it. Frozen."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.init_block = DifferenceConv(_KINDS[0], 3, WIDTH)
        before, number = WIDTH, 1
        for stage, (width, blocks) in enumerate(_STAGES, start=1):
            for place in range(4 - blocks, 4):
                name = f"block{stage}_{place if blocks == 3 else place + 1}"
                halves = stage > 1 and place == 0
                self.add_module(name, Block(_KINDS[number % 4], before, width, halves))
                before, number = width, number + 1
        self.conv_reduces = nn.ModuleList(Reduce() for _ in _STAGES)
        self.attentions = nn.ModuleList(SpatialAttention() for _ in _STAGES)
        self.dilations = nn.ModuleList(DilatedConvs(width) for width, _ in _STAGES)
        self.classifier = nn.Conv2d(len(_STAGES), 1, 1)
        for name, values in (("mean", _MEAN), ("std", _STD)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)
        self.eval().requires_grad_(False)

    @override
    def train(self, mode: bool = True) -> "PiDiNet":
        return super().train(False)  # frozen

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 1 H W"]:
        """How likely each pixel of images in [-1, 1] belongs to a line, in [0, 1]; at least 8 pixels a side."""
        x = self.init_block(((images.float() + 1) / 2 - self.mean) / self.std)
        maps = []
        for stage, (_, blocks) in enumerate(_STAGES, start=1):
            for place in range(1, blocks + 1):
                x = self.get_submodule(f"block{stage}_{place}")(x)
            seen = self.attentions[stage - 1](self.dilations[stage - 1](x))
            found = self.conv_reduces[stage - 1](seen)
            # each to (B, 1, H, W)
            maps.append(F.interpolate(found, images.shape[2:], mode="bilinear", align_corners=False))
        return torch.sigmoid(self.classifier(torch.cat(maps, dim=1)))


def load_pidinet(path: str) -> PiDiNet:
    """PiDiNet with its authors' weights.

    Args:
        path: their file (``table5_pidinet.pth``), or its weights as ``.safetensors``.

    Raises:
        UserError: it is not there, holds more than tensors and plain data, or is of another network.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"structure.sketch.path={path}: there is no file {file.absolute()}.")
    weights = _read(file, path)
    weights = {name.removeprefix("module."): value for name, value in weights.items()}  # of several GPUs
    net = PiDiNet()
    expected = net.state_dict()
    wrong = misfits(weights, expected)
    if wrong:
        raise UserError(
            f"structure.sketch.path={path} is no PiDiNet of {WIDTH} channels: {len(wrong)} weights differ, the first "
            f"is {wrong[0]}, {shape_text(weights, wrong[0])} in the file and {shape_text(expected, wrong[0])} here."
        )
    refuse_non_finite(weights, f"structure.sketch.path={path}", "Fetch it again.")
    net.load_state_dict(weights)
    return net


def _read(file: Path, path: str) -> dict[str, Tensor]:
    if file.suffix == ".safetensors":
        return read_tensors(file, "Fetch it again.")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # its settings, which lie beside the weights
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes of another kind raise whatever the unpickler stumbles over
        reason = first_line(error)
        raise UserError(f"structure.sketch.path={path} cannot be read: {reason}. Fetch it again.") from None
    found = content.get("state_dict", content) if isinstance(content, dict) else {}
    return {name: value.float() for name, value in found.items() if isinstance(value, Tensor)}
