"""mamba-ssm's own Triton kernels against ours in PyTorch: on a GPU, or in Triton's interpreter on a CPU."""

import contextlib
import os
import types

import pytest
import torch
from state_space_references import inputs

from vidlab.layers.mixers import mamba_ssm
from vidlab.layers.mixers.ssd import ssd

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
ON_GPU = torch.cuda.is_available() and not INTERPRETED

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not mamba_ssm.available(), reason="mamba-ssm or triton is not installed"),
    pytest.mark.skipif(not (ON_GPU or INTERPRETED), reason="no GPU; TRITON_INTERPRET=1 runs the kernels on a CPU"),
]

# of the largest number in each tensor. The interpreter computes in float32, a GPU takes float32 products as TF32.
TOLERANCE = {torch.float32: 2e-2 if ON_GPU else 2e-5, torch.bfloat16: 3e-2}


@pytest.fixture(autouse=True)
def interpreter(monkeypatch):
    """What the package asks a GPU's driver for, where there is none."""
    torch.manual_seed(0)
    if ON_GPU:
        return
    monkeypatch.setenv("MAMBA_DETERMINISTIC", "1")  # or it times its kernels
    monkeypatch.setattr(mamba_ssm, "_on_gpu", lambda _: True)
    properties = types.SimpleNamespace(multi_processor_count=1, major=9, minor=0, total_memory=2**36)
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda *_: properties)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))


def both(parts, real, run):
    """y, the last state and all gradients."""
    parts = [part.detach().requires_grad_() for part in parts]
    y, state = run(*parts, real)
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(out.shape, generator=generator).to(out) for out in (y, state)]
    loss = (y * weights[0]).float().sum() + (state * weights[1]).sum()
    return [y, state, *torch.autograd.grad(loss, parts)]


CASES = {
    "short": {"length": 70, "heads": 2, "groups": 2, "size": 16, "states": 16},
    "groups": {"length": 130, "heads": 4, "groups": 2, "size": 32, "states": 16},
    "one_group": {"length": 257, "heads": 2, "groups": 1, "size": 16, "states": 32, "batch": 1},
}
# on a GPU of one size, since for each the kernels are compiled and timed anew
GPU_CASES = {
    "short": {"length": 70, "heads": 4, "groups": 2, "size": 64, "states": 64},
    "long": {"length": 1500, "heads": 6, "groups": 6, "size": 64, "states": 64},
}
DTYPES = [torch.float32, torch.bfloat16] if ON_GPU else [torch.float32]


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", GPU_CASES if ON_GPU else CASES)
def test_outputs_states_and_gradients_agree(case, dtype, padded):
    device = "cuda" if ON_GPU else "cpu"
    parts = [part.detach().to(device) for part in inputs(**(GPU_CASES if ON_GPU else CASES)[case], dtype=torch.float32)]
    parts[1] = parts[1] * 0.3
    for place in (0, 3, 4):
        parts[place] = parts[place].to(dtype)
    real = torch.rand(parts[0].shape[:2], device=device) < 0.9 if padded else None
    exact = both([part.double() for part in parts], real, ssd)
    found = both(parts, real, mamba_ssm.chunk_scan)
    assert found[0].dtype == dtype and found[1].dtype == torch.float32
    for a, b in zip(found, exact, strict=True):
        assert (a.double() - b).abs().max() < TOLERANCE[dtype] * b.abs().max()


@pytest.mark.skipif(not ON_GPU, reason="the interpreter has no compiler")
def test_the_kernels_are_one_operator_for_the_compiler():
    parts = [part.detach().cuda() for part in inputs(**GPU_CASES["short"], dtype=torch.float32)]
    torch.library.opcheck(
        torch.ops.vidlab.mamba_chunk_scan.default, parts, test_utils=("test_schema", "test_faketensor")
    )
