"""What a device reaches at best: the rates of products, of copies and of attention, in bfloat16."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch.nn import functional as F


@dataclass
class Ceilings:
    """Measured when asked for, each once.

    Args:
        device: to measure.
        tiny: sizes that are run in milliseconds anywhere, whose rates say nothing.
    """

    device: torch.device
    tiny: bool = False
    _known: dict[str, float] = field(default_factory=dict)

    def gemm(self) -> float:
        """FLOP/s of a square product."""
        size = 128 if self.tiny else 8192
        a, b = (torch.randn(size, size, device=self.device, dtype=torch.bfloat16) for _ in range(2))
        return self._once("gemm", lambda: a @ b, 2 * size**3)

    def copy(self) -> float:
        """Bytes per second, read and written, of a copy that no cache holds."""
        source = torch.empty(2**16 if self.tiny else 2**30, device=self.device, dtype=torch.bfloat16)
        target = torch.empty_like(source)
        return self._once("copy", lambda: target.copy_(source), 2 * source.numel() * source.element_size())

    def sdpa(self, head_size: int) -> float:
        """FLOP/s of attention forward and backward, counted as 3.5 times its forward pass."""
        tokens, heads = (64, 2) if self.tiny else (16384, 16)
        shape = (1, heads, tokens, head_size)
        q, k, v, dy = (torch.randn(shape, device=self.device, dtype=torch.bfloat16) for _ in range(4))
        q, k, v = (one.requires_grad_() for one in (q, k, v))

        def both() -> None:
            torch.autograd.grad(F.scaled_dot_product_attention(q, k, v), (q, k, v), dy)

        return self._once(f"sdpa {head_size}", both, 3.5 * 4 * heads * tokens**2 * head_size)

    def _once(self, name: str, run: Callable[[], object], work: float) -> float:
        if name not in self._known:
            self._known[name] = work / seconds_of(run, self.device, 3 if self.tiny else 10)
        return self._known[name]


def seconds_of(run: Callable[[], object], device: torch.device, repeat: int, warm: int = 3) -> float:
    """Median seconds of a call among several in a row, between events on a GPU, which then never waits for the host."""
    for _ in range(warm):
        run()
    if device.type != "cuda":
        marks = [time.perf_counter()]
        for _ in range(repeat):
            run()
            marks.append(time.perf_counter())
        return statistics.median(end - start for start, end in pairwise(marks))
    events = [torch.cuda.Event(enable_timing=True) for _ in range(repeat + 1)]
    torch.cuda.synchronize(device)
    events[0].record()
    for event in events[1:]:
        run()
        event.record()
    torch.cuda.synchronize(device)
    return statistics.median(start.elapsed_time(end) for start, end in pairwise(events)) / 1e3
