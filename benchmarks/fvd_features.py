"""FVD's features: vidlab's I3D against the plain module, both under torch.inference_mode.

The plain module is the network as its paper draws it: BatchNorm apart, each branch's convolutions apart, inputs padded
before each convolution. Both have the same random weights; their answers are compared before they are timed.

    python benchmarks/fvd_features.py --clips 2 --rounds 5
"""

import argparse
import statistics
import time

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from record import record
from vidlab.perceptual.i3d import I3D, _Block, _Conv, _max_pool, _pad_same


class PlainUnit(nn.Module):
    """Padding, convolution, BatchNorm without scale, ReLU; starts as a share of a folded convolution."""

    def __init__(self, folded: nn.Conv3d, start: int, stop: int) -> None:
        super().__init__()
        assert folded.bias is not None
        self.conv = nn.Conv3d(folded.in_channels, stop - start, folded.kernel_size, folded.stride, bias=False)
        self.norm = nn.BatchNorm3d(stop - start, eps=1e-3)
        scale = torch.linspace(0.5, 2, stop - start)
        self.norm.running_var.copy_(scale**2 - 1e-3)  # type: ignore[union-attr, operator]
        self.conv.weight.data = folded.weight[start:stop] * scale.view(-1, 1, 1, 1, 1)
        self.norm.bias.data = folded.bias[start:stop].clone()

    def forward(self, x: Tensor) -> Tensor:
        """One unit."""
        padded, padding = _pad_same(x, self.conv.kernel_size, self.conv.stride)
        return F.relu(self.norm(F.conv3d(padded, self.conv.weight, None, self.conv.stride, padding)))


class PlainBlock(nn.Module):
    """Four branches, six units."""

    def __init__(self, block: _Block) -> None:
        super().__init__()
        ends = [sum(block.split[: n + 1]) for n in range(3)]
        starts = [0, *ends[:2]]
        self.entry = nn.ModuleList(PlainUnit(block.entry, a, b) for a, b in zip(starts, ends, strict=True))
        self.rest = nn.ModuleList(PlainUnit(c, 0, c.out_channels) for c in (block.wide_1, block.wide_2, block.pooled))

    def forward(self, x: Tensor) -> Tensor:
        """The four branches side by side."""
        plain, narrow_1, narrow_2 = (unit(x) for unit in self.entry)
        wide_1, wide_2, pooled = self.rest
        return torch.cat([plain, wide_1(narrow_1), wide_2(narrow_2), pooled(_max_pool(x, (3, 3, 3), (1, 1, 1)))], dim=1)


def plain_i3d(folded: I3D) -> I3D:
    """A copy of the network with every folded part replaced by a plain one."""
    import copy

    plain = copy.deepcopy(folded)
    for name in ("first", "second", "third"):
        conv: _Conv = getattr(folded, name)
        unit = PlainUnit(conv, 0, conv.out_channels)
        unit.weight = unit.conv.weight  # type: ignore[assignment]  # the network asks its first unit for its precision
        setattr(plain, name, unit)
    for name, block in folded.blocks.items():
        assert isinstance(block, _Block)
        plain.blocks[name] = PlainBlock(block)
    return plain.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description="Time FVD's features.")
    parser.add_argument("--clips", type=int, default=2)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.manual_seed(0)
    folded = I3D()
    networks = {"plain": plain_i3d(folded), "vidlab": folded}
    clips = torch.rand(options.clips, 3, options.frames, 224, 224) * 2 - 1
    seconds: dict[str, list[float]] = {name: [] for name in networks}
    with torch.inference_mode():
        answers = [network(clips) for network in networks.values()]
        torch.testing.assert_close(*answers, atol=1e-4, rtol=1e-4)
        for _ in range(options.rounds):  # in turns, so that both meet the same neighbors
            for name, network in networks.items():
                start = time.perf_counter()
                network(clips)
                seconds[name].append(time.perf_counter() - start)
    rows = [
        {
            "features": name,
            "threads": torch.get_num_threads(),
            "clips": options.clips,
            "frames": options.frames,
            "rounds": options.rounds,
            "seconds_per_clip_median": f"{statistics.median(times) / options.clips:.3f}",
            "seconds_per_clip_best": f"{min(times) / options.clips:.3f}",
        }
        for name, times in seconds.items()
    ]
    for row in rows:
        print(row)
    print(record("fvd_features", rows))


if __name__ == "__main__":
    main()
