"""What the temporal self-attention loss costs, forward and backward: in one streaming pass, and with all maps.

Both run in turn on the same queries and keys; figures are medians. On a CPU time is that of the processor, all threads
together, and the peak of memory is the resident set of a fresh process above its inputs; on a GPU the peak is the
allocator's. Beside them stands by how much values and gradients differ, relative to those of dense maps (2-norms).

    python benchmarks/trs.py [--frames 24] [--heads 8] [--tokens 1024] [--size 40] [--rounds 3] [--chunk 128]
"""

import argparse
import gc
import multiprocessing
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from record import record
from vidlab.lab.cli.process_env import prepare_host
from vidlab.losses.attention_variation import attention_variation


@dataclass(frozen=True)
class Case:
    """Queries and keys of one layer and one clip."""

    frames: int
    heads: int
    tokens: int
    size: int
    chunk: int | None
    device: str

    def parts(self) -> list[Tensor]:
        """Queries and keys, standard normal."""
        generator = torch.Generator().manual_seed(0)
        shape = (1, self.frames, self.tokens, self.heads, self.size)
        made = (torch.randn(*shape, generator=generator).to(self.device) for _ in range(2))
        return [part.requires_grad_() for part in made]

    def work(self, name: str) -> Callable[[Tensor, Tensor], Tensor]:
        """The loss by the name of a candidate."""
        return dense if name == "dense" else lambda q, k: attention_variation(q, k, self.chunk)


def dense(q: Tensor, k: Tensor) -> Tensor:
    """The definition, by autograd."""
    q, k = q.transpose(2, 3), k.transpose(2, 3)  # (B, T, N, L, d)
    maps = torch.softmax((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2), dim=-1)
    return maps.diff(dim=1).abs().mean(dim=(0, 2, 3, 4)).sum()


def run(name: str, case: Case, parts: list[Tensor]) -> tuple[float, list[Tensor]]:
    """Seconds, and the value with its gradients."""
    wait = torch.cuda.synchronize if case.device == "cuda" else lambda: None
    clock = time.perf_counter if case.device == "cuda" else time.process_time
    wait()
    start = clock()
    value = case.work(name)(*parts)
    gradients = torch.autograd.grad(value, parts)
    wait()
    return clock() - start, [value.detach(), *gradients]


def peak_megabytes(name: str, case: Case) -> float:
    """Above the inputs, results included."""
    if case.device == "cpu":
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            return pool.apply(_peak_resident, (name, case))
    parts = case.parts()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run(name, case, parts)
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def _peak_resident(name: str, case: Case) -> float:
    torch.set_num_threads(1)
    small = Case(2, 1, 8, 8, None, "cpu")
    run(name, small, small.parts())  # what the first call loads
    parts = case.parts()
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _status("VmRSS")
    run(name, case, parts)
    return (_status("VmHWM") - before) / 1024


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))


def main() -> None:
    """Measure both and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("frames", 24), ("heads", 8), ("tokens", 1024), ("size", 40), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--chunk", type=int, default=None, help="queries at a time; by default what suits the device")
    arguments = vars(parser.parse_args())
    prepare_host()
    rounds = arguments.pop("rounds")
    case = Case(**arguments, device="cuda" if torch.cuda.is_available() else "cpu")
    if case.device == "cpu":
        torch.set_num_threads(1)
    parts, names = case.parts(), ("streaming", "dense")
    found = [{name: run(name, case, parts) for name in names} for _ in range(rounds)]
    times = {name: statistics.median(turn[name][0] for turn in found) for name in names}
    peaks = {name: peak_megabytes(name, case) for name in names}
    pairs = zip(*(found[-1][name][1] for name in names), strict=True)
    errors = [((ours - theirs).norm() / theirs.norm()).item() for ours, theirs in pairs]
    rows = [
        {
            "candidate": name, **asdict(case), "chunk": case.chunk or "auto", "threads": torch.get_num_threads(),
            "seconds": f"{times[name]:.3f}", "time_to_dense": f"{times[name] / times['dense']:.3f}",
            "peak_mb": f"{peaks[name]:.1f}", "memory_to_dense": f"{peaks[name] / peaks['dense']:.3f}",
            **dict(zip(("value_error", "q_error", "k_error"), (f"{error:.1e}" for error in errors), strict=True)),
        }
        for name in names
    ]  # fmt: skip
    for row in rows:
        print(*(f"{key} {value}" for key, value in row.items()), sep="  ")
    print(f"appended to {record('trs', rows)}")


if __name__ == "__main__":
    main()
