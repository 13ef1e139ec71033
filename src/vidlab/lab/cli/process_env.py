"""Settings of the process that make training on a CPU faster; made before torch is imported."""

import ctypes
import os
import sys

# Of an idle OpenMP thread before it sleeps.
SPINS = "6000"
# of malloc.h
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def prepare_host() -> None:
    """Let idle OpenMP threads sleep soon, and keep freed memory in the process.

    How long an idle OpenMP thread spins is read once, when torch is imported. With the default, a step takes up to ten
    times as long once another process (a decoding worker, a second job) wants a core. To wake a thread that sleeps
    takes long, too. On two cores of a virtual Intel Xeon a step of 16 clips took 246, 217 and 205 ms with 2000,
    6000 and 20,000 spins, and 397, 509 and 853 ms beside one busy process.

    glibc returns every large freed block to the kernel and gets the next one page by page. At 4096 tokens in bf16 that
    was nearly half of the time of a transformer block (benchmarks/attention_layouts.py: 2.6 s against 1.5 s); keeping
    blocks costs a fifth more memory.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # absent from other C libraries, such as musl
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
