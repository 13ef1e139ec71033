"""The choice behind ``precision=auto``, and computing in it."""

import os

import torch

# oneDNN's names of instruction sets that hold bf16 dot products, in ONEDNN_MAX_CPU_ISA, which forbids those above it.
WITH_BF16 = ("AVX512_CORE_BF16", "AVX512_CORE_FP16", "AVX512_CORE_AMX", "AVX10", "DEFAULT", "ALL")


def resolve_precision(precision: str, accelerator: str) -> str:
    """``auto`` is bf16-mixed where the accelerator computes bf16 in hardware, else 32-true; others pass unchanged.

    A CPU without bf16 instructions emulates them many times slower than float32.
    """
    if precision != "auto":
        return precision
    return "bf16-mixed" if has_bf16(accelerator) else "32-true"


def has_bf16(accelerator: str) -> bool:
    """Whether bf16 matrix products are native on ``cuda`` or ``cpu``.

    A CPU counts as what ``ONEDNN_MAX_CPU_ISA`` lets it be, so that one without bf16 can be tried on any.
    """
    if accelerator in ("cuda", "gpu"):
        return torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)
    if accelerator == "cpu":
        allowed = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or "DEFAULT"
        there = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return bool(there) and allowed.upper().startswith(WITH_BF16)
    return False


def uses_bf16(precision: str, device: str) -> bool:
    """Whether ``precision`` resolves to bfloat16 on ``cpu`` or ``cuda``."""
    return resolve_precision(precision, device) in ("bf16-mixed", "bf16-true")


def autocast(device: str, precision: str) -> torch.autocast:
    """bfloat16 where ``precision`` resolves to it on this device."""
    return torch.autocast(device, torch.bfloat16, enabled=uses_bf16(precision, device))
