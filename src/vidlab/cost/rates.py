"""The rates that this machine reaches: the yardstick for the achieved rate of training."""

import time

import torch


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
    best, deadline = 0.0, time.perf_counter() + seconds
    while best == 0.0 or time.perf_counter() < deadline:  # on a busy machine one product may outlast the time
        _synchronize(device)
        start = time.perf_counter()
        for _ in range(in_a_row):
            torch.mm(a, b, out=made)
        _synchronize(device)
        best = max(best, in_a_row * 2 * size**3 / (time.perf_counter() - start))
    return best


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
