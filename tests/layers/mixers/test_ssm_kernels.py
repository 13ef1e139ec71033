import importlib.machinery
import importlib.util
import sys
import types

import pytest
import torch
from state_space_references import inputs, recurrence

from vidlab.errors import UserError
from vidlab.layers.mixers import mamba_ssm
from vidlab.layers.mixers.ssd import ssd
from vidlab.layers.mixers.ssm_kernels import SSMKernel, auto, ssm_kernel

HAS_MAMBA = mamba_ssm.available()


def test_names():
    assert ssm_kernel("auto") is auto and ssm_kernel("torch") is ssd
    assert isinstance(auto, SSMKernel) and isinstance(ssd, SSMKernel)
    with pytest.raises(UserError, match="ssm=cuda: choose one of auto, torch, mamba_ssm"):
        ssm_kernel("cuda")


@pytest.mark.skipif(HAS_MAMBA, reason="mamba-ssm is installed")
def test_a_missing_package_is_named():
    with pytest.raises(UserError, match=r"ssm=mamba_ssm: .* not both installed.*requirements-gpu.txt, or use ssm=auto"):
        ssm_kernel("mamba_ssm")


def test_auto_is_torch_on_a_cpu():
    parts = [part.detach() for part in inputs(20, dtype=torch.float32)]
    real = torch.rand(2, 20) < 0.7
    for a, b in zip(auto(*parts, real), ssd(*parts, real), strict=True):
        assert torch.equal(a, b)


def test_tensors_on_a_cpu_are_refused_by_the_gpu_kernels():
    with pytest.raises(UserError, match="ssm=mamba_ssm: its kernels run on CUDA GPUs only"):
        mamba_ssm.chunk_scan(*inputs(5))


@pytest.fixture
def documented(monkeypatch, tmp_path):
    """A package of mamba-ssm's shape whose import needs an extension, and whose kernel is the recurrence."""
    (tmp_path / "mamba_ssm" / "ops" / "triton").mkdir(parents=True)
    (tmp_path / "mamba_ssm" / "__init__.py").write_text("import selective_scan_cuda")
    for name in ("ops", "ops/triton"):
        (tmp_path / "mamba_ssm" / name / "__init__.py").touch()
    (tmp_path / "mamba_ssm" / "ops" / "triton" / "ssd_combined.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    triton = types.ModuleType("triton")
    triton.__spec__ = importlib.machinery.ModuleSpec("triton", None)
    monkeypatch.setitem(sys.modules, "triton", triton)
    before = set(sys.modules)
    mamba_ssm.ssd_combined.cache_clear()
    yield mamba_ssm
    mamba_ssm.ssd_combined.cache_clear()
    for name in set(sys.modules) - before:
        if name.startswith("mamba_ssm"):
            del sys.modules[name]


@pytest.mark.skipif(HAS_MAMBA, reason="the package itself is installed")
def test_the_kernels_are_reached_without_the_extension(documented, monkeypatch):
    assert documented.available() and ssm_kernel("mamba_ssm") is documented.chunk_scan
    module = documented.ssd_combined()
    assert module.__name__ == "mamba_ssm.ops.triton.ssd_combined"

    def combined(x, dt, A, B, C, chunk_size, D=None, initial_states=None, return_final_states=False):
        assert dt.dtype == A.dtype == D.dtype == initial_states.dtype == torch.float32
        assert B.dtype == C.dtype == x.dtype and chunk_size & (chunk_size - 1) == 0 and return_final_states
        return recurrence(x, dt, A, B, C, D, initial_states)

    monkeypatch.setattr(module, "mamba_chunk_scan_combined", combined, raising=False)
    monkeypatch.setattr(documented, "_on_gpu", lambda _: True)
    parts = [part.detach() for part in inputs(20, dtype=torch.float32)]
    real = torch.rand(2, 20) < 0.7
    y, state = documented.chunk_scan(*parts, real)
    expected, last = ssd(*parts, real)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(state, last)
    y, state = documented.chunk_scan(*parts[:6])
    torch.testing.assert_close(state, ssd(*parts[:6])[1])
