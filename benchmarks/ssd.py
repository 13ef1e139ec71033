"""What mixing a sequence costs, forward and backward: the state-space dual in PyTorch, plain and by Triton; attention.

All candidates run in turn at each length, several rounds, on the same inputs of one clip; figures are medians. On a CPU
time is that of the processor, all threads together, so that neighbors count little, and the peak of memory is the
resident set of a fresh process above its inputs; on a GPU the peak is the allocator's. Beside the rows stand the growth
of each candidate, time ~ tokens^exponent, and a plot.

    python benchmarks/ssd.py [--tokens 1024 2048 4096 8192 16384] [--heads 6] [--dtype float32] [--rounds 3] [--compile]
"""

import argparse
import gc
import math
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vidlab.lab.cli.process_env import SPINS, prepare_host

os.environ.setdefault("GOMP_SPINCOUNT", SPINS)  # read when torch is imported; the rest is in prepare_host()

import torch
from torch import Tensor
from torch.nn import functional as F

from minimal_ssd import minimal_ssd
from record import record
from vidlab.layers.mixers import mamba_ssm
from vidlab.layers.mixers import ssd as ssd_module
from vidlab.layers.mixers.mixer import MixerKernels
from vidlab.layers.mixers.ssd import ssd
from vidlab.layers.mixers.ssd_mixer import SSDMixer
from vidlab.layers.mixers.ssd_span import span_backward, span_forward

SIZE = 64  # of a head and of its state
PLOT = Path(__file__).parents[1] / "docs" / "images" / "ssd.png"
Parts = list[Tensor]


@dataclass(frozen=True)
class Case:
    """One clip of so many tokens."""

    tokens: int
    heads: int
    dtype: torch.dtype
    device: str

    def parts(self) -> Parts:
        """x, dt, A, B, C, D as a fresh SSD mixer makes them."""
        generator = torch.Generator().manual_seed(0)

        def normal() -> Tensor:
            return torch.randn(1, self.tokens, self.heads, SIZE, generator=generator).to(self.device, self.dtype)

        dt = torch.rand(1, self.tokens, self.heads, generator=generator) * math.log(100) + math.log(1e-3)
        rates = -(1 + 15 * torch.rand(self.heads, generator=generator))
        parts = [normal(), dt.exp().to(self.device), rates.to(self.device), normal(), normal()]
        parts.append(torch.ones(self.heads, device=self.device))
        return [part.requires_grad_() for part in parts]


def attention(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """Causal softmax attention with the same queries, keys and values."""
    q, k, v = (part.transpose(1, 2) for part in (C, B, x))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)


def eager(*parts: Tensor) -> Tensor:
    """``ssd`` as it is."""
    ssd_module.span_forward, ssd_module.span_backward = span_forward, span_backward
    return ssd(*parts)[0]


def compiled_spans(*parts: Tensor) -> Tensor:
    """``ssd`` with the work on a span compiled; also in the backward pass that follows."""
    ssd_module.span_forward, ssd_module.span_backward = COMPILED
    return ssd(*parts)[0]


COMPILED = (torch.compile(span_forward, dynamic=True), torch.compile(span_backward, dynamic=True))

CANDIDATES: dict[str, Callable[..., Tensor]] = {
    "ssd": eager,
    "minimal_ssd": minimal_ssd,
    "minimal_ssd_chunk128": lambda *parts: minimal_ssd(*parts, chunk=128),
    "minimal_ssd_chunk256": lambda *parts: minimal_ssd(*parts, chunk=256),
    "attention": attention,
}


def candidates(device: str, compile_too: bool) -> dict[str, Callable[..., Tensor]]:
    """All that run on this device."""
    found = dict(CANDIDATES)
    if compile_too and device == "cuda":
        found["ssd_compiled"] = compiled_spans
        found["minimal_ssd_compiled"] = torch.compile(minimal_ssd, dynamic=True)
    if device == "cuda" and mamba_ssm.available():
        found["mamba_ssm"] = lambda *parts: mamba_ssm.chunk_scan(*parts)[0]
    return found


def wait(device: str) -> None:
    """For the device."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(work: Callable[..., Tensor], parts: Parts, device: str) -> tuple[float, float]:
    """Of a forward pass, and of it and the backward pass."""
    clock = time.perf_counter if device == "cuda" else time.process_time
    weights = torch.ones_like(parts[0])
    wait(device)
    start = clock()
    y = work(*parts)
    wait(device)
    middle = clock()
    torch.autograd.grad(y, parts, weights.to(y.dtype), allow_unused=True)
    wait(device)
    return middle - start, clock() - start


def race(works: dict[str, Callable[..., Tensor]], parts: Parts, device: str, rounds: int) -> dict[str, list[float]]:
    """Median seconds, forward and in all, of candidates that take turns."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    for _ in range(rounds + 1):
        for name, work in works.items():
            times[name].append(seconds(work, parts, device))
    return {
        name: [statistics.median(column) for column in zip(*found[1:], strict=True)] for name, found in times.items()
    }


def peak_megabytes(name: str, case: Case) -> float:
    """Above the inputs, through a forward and a backward pass, results included."""
    if case.device == "cuda":
        parts = case.parts()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        seconds(candidates("cuda", True)[name], parts, "cuda")
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_resident, (name, case))


def _peak_resident(name: str, case: Case) -> float:
    torch.set_num_threads(1)
    work = CANDIDATES[name]
    seconds(work, Case(64, case.heads, case.dtype, "cpu").parts(), "cpu")  # what the first call loads
    parts = case.parts()
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _status("VmRSS")
    y = work(*parts)
    torch.autograd.grad(y, parts, torch.ones((), dtype=y.dtype).expand_as(y), allow_unused=True)
    return (_status("VmHWM") - before) / 1024


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))


def exponent(points: dict[int, float]) -> float:
    """p of time ~ length^p, by least squares of the logarithms."""
    if len(points) < 2:
        return math.nan
    xs, ys = [math.log(tokens) for tokens in points], [math.log(value) for value in points.values()]
    x, y = statistics.mean(xs), statistics.mean(ys)
    return sum((a - x) * (b - y) for a, b in zip(xs, ys, strict=True)) / sum((a - x) ** 2 for a in xs)


def measure(case: Case, works: dict[str, Callable[..., Tensor]], rounds: int, memory: bool) -> list[dict[str, str]]:
    """One row for each candidate."""
    times = race(works, case.parts(), case.device, rounds)
    peaks = {name: peak_megabytes(name, case) if memory else math.nan for name in works}
    rows = []
    for name, (forward, total) in times.items():
        rows.append(
            {
                "candidate": name,
                "tokens": str(case.tokens),
                "heads": str(case.heads),
                "dtype": str(case.dtype).removeprefix("torch."),
                "device": case.device,
                "threads": str(torch.get_num_threads()),
                "products": torch.get_float32_matmul_precision(),
                "forward_ms": f"{forward * 1e3:.2f}",
                "total_ms": f"{total * 1e3:.2f}",
                "time_to_ssd": f"{total / times['ssd'][1]:.2f}",
                "peak_mb": f"{peaks[name]:.1f}",
                "memory_to_ssd": f"{peaks[name] / peaks['ssd']:.2f}",
            }
        )
        print(*(f"{key} {value}" for key, value in rows[-1].items()), sep="  ", flush=True)
    return rows


def mixer_growth(arguments: argparse.Namespace, device: str) -> dict[int, float]:
    """Seconds of a whole SSD mixer, projections and convolution included, forward and backward."""
    width = arguments.heads * SIZE
    mixer = SSDMixer(width, arguments.heads, MixerKernels()).to(device)
    found = {}
    for tokens in arguments.tokens:
        x = torch.randn(1, tokens, width, device=device, requires_grad=True)
        inputs = [x, *mixer.parameters()]
        work = {"mixer": lambda *parts: mixer(parts[0])}
        with torch.autocast(device, arguments.dtype, enabled=arguments.dtype != torch.float32):
            found[tokens] = race(work, inputs, device, arguments.rounds)["mixer"][1]
        print(f"whole mixer  tokens {tokens}  total_ms {found[tokens] * 1e3:.2f}", flush=True)
    return found


def summarize(rows: list[dict[str, str]]) -> None:
    """Growth of each candidate, printed and written beside its rows."""
    for name in dict.fromkeys(row["candidate"] for row in rows):
        own = [row for row in rows if row["candidate"] == name]
        value = exponent({int(row["tokens"]): float(row["total_ms"]) for row in own})
        for row in own:
            row["exponent"] = f"{value:.3f}"
        print(f"{name}: time ~ tokens^{value:.3f}")


def plot(rows: list[dict[str, str]], path: Path) -> None:
    """Time against length, both logarithmic."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4))
    for name in dict.fromkeys(row["candidate"] for row in rows):
        own = [row for row in rows if row["candidate"] == name]
        axes.loglog([int(r["tokens"]) for r in own], [float(r["total_ms"]) for r in own], marker="o", label=name)
    axes.set(xlabel="tokens", ylabel="forward and backward, ms", title=f"{rows[0]['heads']} heads, {rows[0]['dtype']}")
    axes.legend(fontsize=8)
    figure.tight_layout()
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measure every length, record and plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", nargs="+", type=int, default=[1024, 2048, 4096, 8192, 16384])
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--dtype", type=lambda name: getattr(torch, name), default=torch.float32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory-at", nargs="*", type=int, default=[4096], help="lengths whose memory is measured")
    parser.add_argument("--compile", action="store_true", help="on a GPU, compiled candidates too")
    parser.add_argument("--products", default="highest", help="of float32 on a GPU: highest, or high for TF32")
    parser.add_argument("--leave-out", nargs="*", default=[], help="candidates that are not measured")
    parser.add_argument("--plot", type=Path, default=PLOT)
    arguments = parser.parse_args()
    prepare_host()
    torch.set_float32_matmul_precision(arguments.products)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    works = {n: w for n, w in candidates(device, arguments.compile).items() if n not in arguments.leave_out}
    rows = []
    for tokens in arguments.tokens:
        case = Case(tokens, arguments.heads, arguments.dtype, device)
        rows += measure(case, works, arguments.rounds, tokens in arguments.memory_at)
    summarize(rows)
    print(f"whole mixer: time ~ tokens^{exponent(mixer_growth(arguments, device)):.3f}")
    print(record("ssd", rows))
    plot(rows, arguments.plot)


if __name__ == "__main__":
    main()
