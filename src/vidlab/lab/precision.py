"""The choice behind ``precision=auto``."""

import torch


def resolve_precision(precision: str, accelerator: str) -> str:
    """``auto`` is bf16-mixed where the accelerator computes bf16 in hardware, else 32-true; others pass unchanged.

    A CPU without bf16 instructions emulates them many times slower than float32.
    """
    if precision != "auto":
        return precision
    return "bf16-mixed" if has_bf16(accelerator) else "32-true"


def has_bf16(accelerator: str) -> bool:
    """Whether bf16 matrix products are native on ``cuda`` or ``cpu``."""
    if accelerator in ("cuda", "gpu"):
        return torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)
    if accelerator == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return False
