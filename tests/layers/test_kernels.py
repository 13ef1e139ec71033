import importlib.machinery
import importlib.util
import math
import sys
import types

import pytest
import torch

from vidlab.errors import UserError
from vidlab.layers import kernels as module
from vidlab.layers.kernels import (
    PADDED_FROM,
    AttentionKernel,
    attention_kernel,
    auto,
    check_trainable,
    sdpa,
    written_out,
)


def rows(mask):
    """A mask per clip and key, as kernels take it."""
    return None if mask is None else mask[:, None, None, :]


def heads(dtype=torch.float32):
    q = torch.randn(2, 7, 3, 10).to(dtype)
    k, v = torch.randn(2, 2, 5, 3, 10).to(dtype)
    mask = torch.tensor([[True, True, True, False, True], [False, True, False, False, False]])
    return q, k, v, mask


def test_two_keys_by_hand():
    # scores log 3 and 0 after division by sqrt 4: weights 3/4 and 1/4
    q = torch.tensor([2 * math.log(3), 0.0, 0.0, 0.0]).view(1, 1, 1, 4)
    k = torch.tensor([[1.0, 0, 0, 0], [0.0, 1, 0, 0]]).view(1, 2, 1, 4)
    v = torch.tensor([[4.0, 0, 0, 1], [8.0, 0, 0, 1]]).view(1, 2, 1, 4)
    torch.testing.assert_close(auto(q, k, v).flatten(), torch.tensor([5.0, 0, 0, 1]))
    only_second = auto(q, k, v, torch.tensor([[False, True]])[:, None, None])
    torch.testing.assert_close(only_second.flatten(), torch.tensor([8.0, 0, 0, 1]))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("limit", [0, 2**30], ids=["kernel", "written_out"])
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 2e-6), (torch.bfloat16, 0.03)])
def test_both_paths_are_the_definition(by_definition, dtype, atol, limit, masked, monkeypatch):
    monkeypatch.setattr(module, "WRITTEN_OUT_LIMIT_BYTES", limit)
    q, k, v, mask = heads(dtype)
    mask = mask if masked else None
    out = auto(q, k, v, rows(mask))
    assert out.dtype == dtype and out.shape == q.shape
    torch.testing.assert_close(out.double(), by_definition(q, k, v, mask), rtol=0, atol=atol)


@pytest.mark.parametrize("queries", [1, 4], ids=["as_they_are", "padded"])
@pytest.mark.parametrize("masked", [False, True])
def test_written_out_equals_the_kernel_in_value_and_gradient(masked, queries):
    q, k, v, mask = heads()
    q = torch.cat([(n + 1) * q for n in range(queries)], dim=1)
    k, v, mask = torch.cat([k, 2 * k], dim=1), torch.cat([v, -v], dim=1), torch.cat([mask, ~mask], dim=1)  # 10 keys
    assert (PADDED_FROM <= k.shape[1] <= q.shape[1] // 2) == (queries > 1)
    parts = [x.double().requires_grad_() for x in (q, k, v)]
    allowed = rows(mask) if masked else None
    written, kernel = written_out(*parts, allowed), sdpa(*parts, allowed)
    torch.testing.assert_close(written, kernel)
    weight = torch.randn_like(written)
    for a, b in zip(
        torch.autograd.grad((written * weight).sum(), parts),
        torch.autograd.grad((kernel * weight).sum(), parts), strict=True,
    ):  # fmt: skip
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_hidden_key_changes_nothing(dtype):
    q, k, v, mask = heads(dtype)
    before = auto(q, k, v, rows(mask))
    k[~mask], v[~mask] = 50.0, -1000.0
    assert torch.equal(auto(q, k, v, rows(mask)), before)


def test_names():
    assert attention_kernel("auto") is auto and attention_kernel("sdpa") is sdpa
    assert isinstance(auto, AttentionKernel)
    with pytest.raises(UserError, match="attention=flash: choose one of auto, sdpa, xformers, flex"):
        attention_kernel("flash")


@pytest.mark.parametrize("masked", [False, True])
def test_xformers_is_called_as_it_must_be(by_definition, masked, monkeypatch):
    """Its documented call, on tensors that report a GPU: contiguous, bias rows at multiples of eight."""

    def documented(q, k, v, attn_bias=None):
        assert q.is_contiguous() and k.is_contiguous() and v.is_contiguous()
        if attn_bias is not None:
            assert attn_bias.shape == (2, 3, 7, 5) and attn_bias.stride(-1) == 1 and attn_bias.dtype == q.dtype
            assert all(stride % 8 == 0 for stride in attn_bias.stride()[:-1])
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=attn_bias).transpose(1, 2)

    ops = types.ModuleType("xformers.ops")
    ops.memory_efficient_attention = documented
    package = types.ModuleType("xformers")
    package.__spec__ = importlib.machinery.ModuleSpec("xformers", None)
    monkeypatch.setitem(sys.modules, "xformers", package)
    monkeypatch.setitem(sys.modules, "xformers.ops", ops)
    kernel = attention_kernel("xformers")
    q, k, v, mask = heads()
    with pytest.raises(UserError, match="attention=xformers: its kernels run on CUDA GPUs only"):
        kernel(q, k, v)
    monkeypatch.setattr(module, "_on_cpu", lambda _: False)
    mask = mask if masked else None
    out = kernel(q.transpose(1, 2).contiguous().transpose(1, 2), k, v, rows(mask))
    torch.testing.assert_close(out.double(), by_definition(q, k, v, mask), rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", ["flex", "xformers"])
def test_what_cannot_train_on_a_cpu_is_refused_before_anything_is_computed(name):
    with pytest.raises(UserError, match=f"attention={name}: .* CPU|GPU"):
        check_trainable(name, "cpu")
    check_trainable(name, "cuda")
    check_trainable("sdpa", "cpu")


@pytest.mark.skipif(importlib.util.find_spec("xformers") is not None, reason="xformers is installed")
def test_a_missing_package_is_named():
    with pytest.raises(
        UserError, match=r"the package xformers is not installed. Install a set of requirements-gpu.txt"
    ):
        attention_kernel("xformers")


@pytest.mark.parametrize("masked", [False, True])
def test_flex_is_the_definition(by_definition, masked):
    q, k, v, mask = heads()
    mask = mask if masked else None
    with torch.no_grad():
        out = attention_kernel("flex")(q, k, v, rows(mask))
    torch.testing.assert_close(out.double(), by_definition(q, k, v, mask), rtol=0, atol=2e-6)


def test_flex_says_that_it_cannot_train_on_a_cpu():
    q, k, v, _ = heads()
    with pytest.raises(UserError, match="no backward pass of it on a CPU"):
        attention_kernel("flex")(q.requires_grad_(), k, v)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("axis", [0, 2])
def test_pieces_are_the_whole(axis, masked, monkeypatch):
    monkeypatch.setattr(module, "LARGEST_GRID_AXIS", 2)
    q, k, v = torch.randn(3, *((5, 7, 1, 8) if axis == 0 else (1, 7, 5, 8)))
    mask = (torch.rand(q.shape[0], q.shape[2], 1, 7) < 0.7) if masked else None
    if mask is not None:
        mask[..., 0] = True
    torch.testing.assert_close(module._in_pieces(q, k, v, mask), written_out(q, k, v, mask))
