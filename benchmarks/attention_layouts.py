"""What token layouts cost in time: blocks of the same transformer, forward and backward, under each layout.

The prediction of a layout is the sum of what was measured apart at the same shapes: its attention kernel, the block's
matrix products, and (in ``with_rest``) everything per token that is neither. Attention and matrix products run at very
different rates on a CPU, so plain FLOP ratios would predict little. Single precision and bf16 are separate rows.

    python benchmarks/attention_layouts.py [--tokens 1024 4096] [--dtypes float32 bfloat16] [--repeat 3]
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vidlab.lab.cli.process_env import SPINS, prepare_host

os.environ.setdefault("GOMP_SPINCOUNT", SPINS)  # read when torch is imported; the rest is in prepare_host()

import torch
from torch import Tensor, nn

from record import record
from vidlab.layers.block import BlockContext, DiTBlock
from vidlab.layers.kernels import auto
from vidlab.layers.layouts import Full3D, Grid, GroupSkip, LayerPlan, SingleSkip, Spatial, Temporal, TokenLayout, Window
from vidlab.layers.rope import rotation

WIDTH, HEADS, DEPTH, TEXT = 384, 6, 6, 16
LAYOUTS: dict[str, tuple[TokenLayout, ...]] = {
    "full3d": (Full3D(),),
    "2p1d": (Spatial(), Temporal()),
    "skip_window_k4": (SingleSkip(4), Window(4)),
    "skiparse_k2": (SingleSkip(2), GroupSkip(2)),
    "skiparse_k4": (SingleSkip(4), GroupSkip(4)),
    "skiparse_k8": (SingleSkip(8), GroupSkip(8)),
}


@dataclass(frozen=True)
class Case:
    """One length in one precision on one device."""

    tokens: int
    dtype: torch.dtype
    device: str
    repeat: int

    @property
    def grid(self) -> Grid:
        """Frames of 16 x 16 tokens."""
        return Grid(self.tokens // 256, 16, 16)

    def random(self, *shape: int, grad: bool = False) -> Tensor:
        """Standard normal numbers."""
        return torch.randn(*shape, device=self.device).to(self.dtype).requires_grad_(grad)

    def seconds(self, work: Callable[[], Tensor]) -> float:
        """Median time of a forward and backward pass."""
        found = []
        for _ in range(self.repeat + 1):
            self._wait()
            start = time.perf_counter()
            work().sum().backward()
            self._wait()
            found.append(time.perf_counter() - start)
        return statistics.median(found[1:])

    def _wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


def blocks_seconds(case: Case, layouts: Sequence[TokenLayout], kernel: Callable[..., Tensor] = auto) -> float:
    """All blocks under a layout."""
    torch.manual_seed(0)
    plan = LayerPlan(layouts).layers(DEPTH)
    blocks = nn.ModuleList(DiTBlock(WIDTH, HEADS, 4.0, layout, False, kernel) for layout in plan)
    blocks = blocks.to(case.device, case.dtype)
    context = BlockContext(
        grid=case.grid,
        rotation=rotation(case.grid, WIDTH // HEADS, device=case.device),
        modulation=case.random(1, 1, 6 * WIDTH),
        text=case.random(1, TEXT, WIDTH),
        text_mask=torch.ones(1, TEXT, dtype=torch.bool, device=case.device),
    )
    x = case.random(1, case.tokens, WIDTH, grad=True)

    def run() -> Tensor:
        hidden = x
        for block in blocks:
            hidden = block(hidden, context)
        return hidden

    return case.seconds(run)


def kernel_seconds(case: Case, layouts: Sequence[TokenLayout]) -> float:
    """Attention alone, at the shapes the layout gives it, for all blocks."""
    total = 0.0
    for layout in layouts:
        parts = [layout.partition(case.random(1, case.tokens, HEADS, WIDTH // HEADS), case.grid) for _ in range(3)]
        q, k, v = (part.detach().clone(memory_format=torch.preserve_format).requires_grad_() for part in parts)
        total += case.seconds(lambda q=q, k=k, v=v: auto(q, k, v)) * DEPTH / len(layouts)  # type: ignore[misc]
    return total


def rearrangement_seconds(case: Case, layouts: Sequence[TokenLayout]) -> float:
    """Partition of q, k, v and restoration of one of them, for all blocks."""
    total = 0.0
    for layout in layouts:
        parts = [case.random(1, case.tokens, HEADS, WIDTH // HEADS, grad=True) for _ in range(3)]

        def move(layout: TokenLayout = layout, parts: list[Tensor] = parts) -> Tensor:
            q, k, v = (layout.partition(part, case.grid) for part in parts)
            return torch.stack([q.sum(), k.sum(), layout.restore(v, case.grid).sum()])

        def stay(parts: list[Tensor] = parts) -> Tensor:
            return torch.stack([part.sum() for part in parts])

        total += max(case.seconds(move) - case.seconds(stay), 0.0) * DEPTH / len(layouts)
    return total


def products_seconds(case: Case) -> float:
    """The matrix products of all blocks outside attention, one by one."""
    shapes = [
        (WIDTH, 3 * WIDTH),
        (WIDTH, WIDTH),
        (WIDTH, WIDTH),
        (WIDTH, WIDTH),
        (WIDTH, 4 * WIDTH),
        (4 * WIDTH, WIDTH),
    ]
    total = 0.0
    for inputs, outputs in shapes:
        linear = nn.Linear(inputs, outputs).to(case.device, case.dtype)
        x = case.random(1, case.tokens, inputs, grad=True)
        total += case.seconds(lambda linear=linear, x=x: linear(x))  # type: ignore[misc]
    return total * DEPTH


def pass_values(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """In place of attention: nothing is computed, all gradients flow."""
    return q if k.shape[1] != q.shape[1] else v + 0 * (q + k)


def measure(case: Case) -> list[dict[str, str]]:
    """One row per layout."""
    products, rest = products_seconds(case), blocks_seconds(case, LAYOUTS["full3d"], pass_values)
    full_flops = Full3D().attention_flops(case.grid, WIDTH)
    rows, dense = [], 0.0
    for name, layouts in LAYOUTS.items():
        total, kernel = blocks_seconds(case, layouts), kernel_seconds(case, layouts)
        dense = dense or total
        flops = sum(layout.attention_flops(case.grid, WIDTH) for layout in layouts) / len(layouts) / full_flops
        rows.append(
            {
                "layout": name,
                "tokens": str(case.tokens),
                "dtype": str(case.dtype).removeprefix("torch."),
                "device": case.device,
                "block_ms": f"{total / DEPTH * 1e3:.1f}",
                "to_full3d": f"{total / dense:.3f}",
                "attention_flops_to_full3d": f"{flops:.4f}",
                "kernel_ms": f"{kernel / DEPTH * 1e3:.1f}",
                "products_ms": f"{products / DEPTH * 1e3:.1f}",
                "measured_to_predicted": f"{total / (kernel + products):.3f}",
                "measured_to_predicted_with_rest": f"{total / (kernel + rest):.3f}",
                "rearrangement_share": f"{rearrangement_seconds(case, layouts) / total:.4f}",
            }
        )
        print(*(f"{key} {value}" for key, value in rows[-1].items()), sep="  ", flush=True)
    return rows


def main() -> None:
    """Measure every length in every precision and record the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", nargs="+", type=int, default=[1024, 4096, 8192])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--repeat", type=int, default=3)
    arguments = parser.parse_args()
    prepare_host()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = []
    for dtype in arguments.dtypes:
        for tokens in arguments.tokens:
            rows += measure(Case(tokens, getattr(torch, dtype), device, arguments.repeat))
    print(record("attention_layouts", rows))


if __name__ == "__main__":
    main()
