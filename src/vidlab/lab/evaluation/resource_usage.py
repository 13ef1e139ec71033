"""How much memory and time a piece of work takes on the device it runs on."""

import ctypes
import gc
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

Made = TypeVar("Made")
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # of proc(5): VmHWM begins anew


@dataclass(frozen=True)
class ResourceUsage:
    """One run of a piece of work.

    Args:
        seconds: wall-clock time until the device has finished.
        peak_mib: the most memory held above what was held before, in MiB: of tensors on CUDA, of the process on a
            Linux CPU; None where the system does not tell.
    """

    seconds: float
    peak_mib: float | None


def profile(work: Callable[[], Made], device: str) -> tuple[Made, ResourceUsage]:
    """What ``work`` makes, and what it took. The memory of what it makes counts.

    Args:
        work: runs once, on ``device``.
        device: ``cpu`` or ``cuda``.
    """
    before = _held(device)
    start = time.perf_counter()
    made = work()
    wait(device)
    seconds = time.perf_counter() - start
    most = _most(device)
    return made, ResourceUsage(seconds, None if before is None or most is None else max(most - before, 0.0))


def timed(work: Callable[[], Made], device: str) -> tuple[Made, float]:
    """What ``work`` makes, and the seconds until the device has finished it."""
    wait(device)
    start = time.perf_counter()
    made = work()
    wait(device)
    return made, time.perf_counter() - start


def wait(device: str) -> None:
    """Until the device has nothing left to do."""
    if device == "cuda":
        torch.cuda.synchronize()


def _held(device: str) -> float | None:
    """MiB held now, with the peak set back to it."""
    gc.collect()
    if device == "cuda":
        wait(device)
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 2**20
    if not CLEAR.exists():
        return None
    # memory that was freed and kept would hide what is needed next
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
    try:
        CLEAR.write_text(RESET_PEAK)
    except OSError:  # some containers forbid it
        return None
    return _resident("VmRSS")


def _most(device: str) -> float | None:
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return _resident("VmHWM") if STATUS.exists() else None


def _resident(name: str) -> float:
    (line,) = (line for line in STATUS.read_text("utf-8").splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) / 1024
