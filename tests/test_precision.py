import pytest
import torch

from vidlab.precision import autocast, has_bf16, resolve_precision, uses_bf16


@pytest.fixture
def cpu_with_bf16(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.delenv("DNNL_MAX_CPU_ISA", raising=False)


@pytest.mark.parametrize(
    ("allowed", "native"),
    [("", True), ("ALL", True), ("default", True), ("AVX512_CORE_BF16", True), ("AVX512_CORE_AMX_FP16", True),
     ("AVX10_1_512", True), ("AVX2", False), ("AVX512_CORE", False), ("AVX512_CORE_VNNI", False), ("SSE41", False)],
)  # fmt: skip
def test_a_cpu_is_what_onednn_may_use(cpu_with_bf16, monkeypatch, allowed, native):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", allowed)
    assert has_bf16("cpu") is native
    assert resolve_precision("auto", "cpu") == ("bf16-mixed" if native else "32-true")


def test_a_precision_that_is_named_wins(cpu_with_bf16, monkeypatch):
    assert not uses_bf16("32-true", "cpu") and uses_bf16("bf16-mixed", "cpu") and uses_bf16("bf16-true", "cpu")
    assert autocast("cpu", "auto")._enabled and not autocast("cpu", "32-true")._enabled
    monkeypatch.setenv("DNNL_MAX_CPU_ISA", "AVX2")
    assert not uses_bf16("auto", "cpu")


def test_a_cpu_without_the_instructions(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert not has_bf16("cpu") and resolve_precision("auto", "cpu") == "32-true"
