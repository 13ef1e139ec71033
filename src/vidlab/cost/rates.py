"""The rates that this machine reaches, and those its vendor states: yardsticks for the achieved rate of training."""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from vidlab.layers.kernels import auto

# Dense bfloat16 with sums in float32, TFLOP/s, of NVIDIA's data sheets (halved where they state sparse rates) and, for
# GeForce, the white papers of the Ampere GA102 and Ada architectures. The first that matches counts.
VENDOR_TFLOPS = {
    r"B200": 2250.0,
    r"H100 PCIe": 756.5,
    r"H100 NVL": 835.5,
    r"(H100|H200|H800|GH200)": 989.4,
    r"A(100|800)": 312.0,
    r"L40S": 362.05,
    r"L40": 181.05,
    r"L4": 121.0,
    r"A40": 149.7,
    r"A10": 125.0,
    r"RTX 4090": 165.2,
    r"RTX 3090": 71.0,
}


@dataclass(frozen=True)
class DeviceRates:
    """What a device can do at best, in FLOP/s.

    Args:
        matmul: measured, of a large matrix product.
        attention: measured, of attention forward and backward; None where it was not.
        vendor: stated by the vendor; None where it is not known, or for another precision.
    """

    matmul: float
    attention: float | None = None
    vendor: float | None = None

    def __mul__(self, devices: int) -> "DeviceRates":
        attention, vendor = (None if rate is None else devices * rate for rate in (self.attention, self.vendor))
        return DeviceRates(devices * self.matmul, attention, vendor)

    def shortest(self, flops: float, attention_flops: float) -> float:
        """Seconds that work takes at the measured rates, everything that is no product left out.

        Args:
            flops: of all products.
            attention_flops: those of attention among them.
        """
        if self.attention is None:
            return flops / self.matmul
        return (flops - attention_flops) / self.matmul + attention_flops / self.attention


def vendor_rate(name: str, dtype: torch.dtype) -> float | None:
    """FLOP/s that the vendor states for a device of this name in bfloat16 or float16; None where it is not known."""
    if dtype not in (torch.bfloat16, torch.float16):
        return None
    found = (tflops for pattern, tflops in VENDOR_TFLOPS.items() if re.search(rf"\b{pattern}\b", name))
    rate = next(found, None)
    return None if rate is None else rate * 1e12


def device_rates(dtype: torch.dtype, device: torch.device | str) -> DeviceRates:
    """Measure a device; takes about a second.

    Args:
        dtype: of the products.
        device: that training ran on.
    """
    device = torch.device(device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return DeviceRates(matmul_rate(dtype, device), attention_rate(dtype, device), vendor_rate(name, dtype))


def matmul_rate(dtype: torch.dtype, device: torch.device | str, size: int | None = None, seconds: float = 0.3) -> float:
    """Measured FLOP/s of a square matrix product: the yardstick for the achieved rate of training.

    Args:
        dtype: of the product.
        device: that training ran on.
        size: rows; None is 2048 on a CPU and 8192 on a GPU, which smaller ones do not fill.
        seconds: for how long to try; the best counts.
    """
    device = torch.device(device)
    on_gpu = device.type == "cuda"
    size = size or (8192 if on_gpu else 2048)
    in_a_row = 8 if on_gpu else 1  # so that launches hide behind products
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    made = a @ b

    def run() -> None:
        for _ in range(in_a_row):
            torch.mm(a, b, out=made)

    return in_a_row * 2 * size**3 / _fastest(run, device, seconds)


def attention_rate(
    dtype: torch.dtype, device: torch.device | str, tokens: int | None = None, seconds: float = 0.3
) -> float:
    """Measured FLOP/s of attention with heads of 64 channels, forward and backward.

    Its products count as those of the model do: two forward and four backward, without what a kernel computes again.

    Args:
        dtype: of queries, keys and values.
        device: that training ran on.
        tokens: of a sequence; None is 512 on a CPU and 8192 on a GPU.
        seconds: for how long to try; the best counts.
    """
    device = torch.device(device)
    on_gpu = device.type == "cuda"
    tokens, heads, width = tokens or (8192 if on_gpu else 512), 16 if on_gpu else 4, 64
    shape = (1, tokens, heads, width)
    q, k, v = (torch.randn(shape, device=device, dtype=dtype, requires_grad=True) for _ in range(3))
    dy = torch.randn(shape, device=device, dtype=dtype)

    def run() -> None:
        torch.autograd.grad(auto(q, k, v), (q, k, v), dy)

    with torch.inference_mode(False), torch.enable_grad():
        run()
        return 3 * 4 * heads * tokens**2 * width / _fastest(run, device, seconds)


def _fastest(run: Callable[[], None], device: torch.device, seconds: float) -> float:
    """Seconds of the fastest of as many runs as fit into a time, one at least."""
    best, deadline = float("inf"), time.perf_counter() + seconds
    while best == float("inf") or time.perf_counter() < deadline:  # on a busy machine one may outlast the time
        _synchronize(device)
        start = time.perf_counter()
        run()
        _synchronize(device)
        best = min(best, time.perf_counter() - start)
    return best


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
