"""The choice behind ``precision=auto``, and computing in it."""

import os

import torch

from vidlab.errors import UserError

# oneDNN's names of instruction sets that hold bf16 dot products, in ONEDNN_MAX_CPU_ISA, which forbids those above it.
WITH_BF16 = ("AVX512_CORE_BF16", "AVX512_CORE_FP16", "AVX512_CORE_AMX", "AVX10", "DEFAULT", "ALL")


# What ``precision`` may be in training, and Lightning's short names of some.
PRECISIONS = ("auto", "32-true", "bf16-mixed", "bf16-true", "16-mixed", "64-true")
SHORT = {"32": "32-true", "64": "64-true", "16": "16-mixed", "bf16": "bf16-mixed"}


def resolve_precision(precision: str | int, accelerator: str) -> str:
    """``auto`` is bf16-mixed where the accelerator computes bf16 in hardware, else 32-true.

    A CPU without bf16 instructions emulates them many times slower than float32.

    Raises:
        UserError: it is none of ``PRECISIONS``.
    """
    precision = SHORT.get(str(precision), str(precision))
    if precision not in PRECISIONS:
        raise UserError(f"precision={precision}: choose one of {', '.join(PRECISIONS)}.")
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


def uses_bf16(precision: str | int, device: str) -> bool:
    """Whether ``precision`` resolves to bfloat16 on ``cpu`` or ``cuda``."""
    return resolve_precision(precision, device) in ("bf16-mixed", "bf16-true")


def autocast(device: str, precision: str | int) -> torch.autocast:
    """bfloat16 where ``precision`` resolves to it on this device: how trained models are run.

    Raises:
        UserError: a precision that only training has.
    """
    if resolve_precision(precision, device) in ("16-mixed", "64-true"):
        raise UserError(f"precision={precision}: trained models run in auto, 32-true or bf16-mixed.")
    return torch.autocast(device, torch.bfloat16, enabled=uses_bf16(precision, device))
