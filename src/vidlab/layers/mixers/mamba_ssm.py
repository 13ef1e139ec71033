"""The Triton kernels of the package mamba-ssm, without its CUDA extension."""

from typing import Any

from vidlab.errors import UserError


def chunk_scan_or_none() -> Any:
    """The kernel, or None where the package or Triton is not there."""
    return None


def chunk_scan() -> Any:
    """The kernel."""
    raise UserError("ssm=mamba_ssm: the package mamba-ssm is not installed. Use ssm=auto.")
