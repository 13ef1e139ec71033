"""The report of ``vidlab layouts``: what token layouts reach and what they cost, for one grid of tokens."""

import argparse
from collections.abc import Sequence

from vidlab.layers.layout_metrics import comparison
from vidlab.layers.layouts import Grid


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the comparison for one grid of tokens."""
    parser = argparse.ArgumentParser(prog="vidlab layouts", description=main.__doc__)
    parser.add_argument("--shape", nargs=3, type=int, default=(24, 32, 32), metavar=("T", "H", "W"))
    shape = parser.parse_args(arguments).shape
    if min(shape) < 1:
        parser.error(f"--shape {' '.join(map(str, shape))}: every size must be at least 1")
    grid = Grid(*shape)
    print(f"{grid.frames} x {grid.height} x {grid.width} = {grid.tokens} tokens\n")
    print(f"{'':<18}{'average attention distance':>24}{'tokens':>14}{'attention':>12}")
    print(f"{'layout':<18}{'closed form':>12}{'measured':>12}{'per call':>16}{'FLOPs':>12}")
    for row in comparison():
        print(row.line(grid))
