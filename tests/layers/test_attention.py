import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vidlab.layers import attention as module
from vidlab.layers.attention import CrossAttention, QKNorm, SelfAttention, attention, rms_norm, xavier_linears
from vidlab.layers.layouts import Full3D, Grid
from vidlab.layers.rope import rotate, rotation


def by_definition(q, k, v, mask=None):
    """softmax(q k^T / sqrt d) v with one loop per clip and head, in double precision."""
    out = torch.empty(q.shape, dtype=torch.float64)
    for clip in range(q.shape[0]):
        keep = slice(None) if mask is None else mask[clip].nonzero().flatten()
        for head in range(q.shape[2]):
            a, b, c = (x[clip, :, head].double() for x in (q, k, v))
            weights = (a @ b[keep].T / math.sqrt(q.shape[-1])).exp()
            out[clip, :, head] = weights / weights.sum(-1, keepdim=True) @ c[keep]
    return out


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
    torch.testing.assert_close(attention(q, k, v).flatten(), torch.tensor([5.0, 0, 0, 1]))
    only_second = attention(q, k, v, torch.tensor([[False, True]]))
    torch.testing.assert_close(only_second.flatten(), torch.tensor([8.0, 0, 0, 1]))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("limit", [0, 2**30], ids=["kernel", "written_out"])
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 2e-6), (torch.bfloat16, 0.03)])
def test_both_paths_are_the_definition(dtype, atol, limit, masked, monkeypatch):
    monkeypatch.setattr(module, "WRITTEN_OUT_LIMIT_BYTES", limit)
    q, k, v, mask = heads(dtype)
    mask = mask if masked else None
    out = attention(q, k, v, mask)
    assert out.dtype == dtype and out.shape == q.shape
    torch.testing.assert_close(out.double(), by_definition(q, k, v, mask), rtol=0, atol=atol)


@pytest.mark.parametrize("masked", [False, True])
def test_written_out_equals_the_kernel_in_value_and_gradient(masked):
    q, k, v, mask = heads()
    parts = [x.transpose(1, 2).double().requires_grad_() for x in (q, k, v)]
    allowed = mask[:, None, None, :] if masked else None
    written = module._written_out(*parts, allowed)
    kernel = F.scaled_dot_product_attention(*parts, attn_mask=allowed)
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
    before = attention(q, k, v, mask)
    k[~mask], v[~mask] = 50.0, -1000.0
    assert torch.equal(attention(q, k, v, mask), before)


def test_rms_norm_by_hand():
    # rms of (3, 4) is sqrt(12.5)
    out = rms_norm(torch.tensor([[3.0, 4.0]]), torch.tensor([1.0, 2.0]))
    torch.testing.assert_close(out, torch.tensor([[3.0, 8.0]]) / math.sqrt(12.5))
    assert rms_norm(torch.zeros(1, 2), torch.ones(2)).tolist() == [[0.0, 0.0]]


def test_qk_norm_is_torchs_rms_norm_in_float32():
    norm, x = QKNorm(8), torch.randn(2, 3, 4, 8) * 7
    nn.init.uniform_(norm.gain)
    torch.testing.assert_close(norm(x), F.rms_norm(x, (8,), norm.gain, eps=1e-6))
    assert norm(x.bfloat16()).dtype == torch.float32
    torch.testing.assert_close(norm(x * 10), norm(x))  # the scale of queries and keys is gone


def test_self_attention_by_its_formula():
    grid, attend = Grid(2, 2, 2), SelfAttention(12, heads=2, qk_norm=True)
    nn.init.uniform_(attend.q_norm.gain)
    by, x = rotation(grid, 6), torch.randn(2, 8, 12)
    q, k, v = (part.view(2, 8, 2, 6) for part in attend.qkv(x).split(12, dim=-1))
    q, k = (rotate(F.rms_norm(y, (6,), n.gain, 1e-6), by) for y, n in ((q, attend.q_norm), (k, attend.k_norm)))
    expected = attend.out(by_definition(q, k, v).float().flatten(2))
    torch.testing.assert_close(attend(x, Full3D(), grid, by), expected)


@pytest.mark.parametrize("qk_norm", [True, False])
def test_cross_attention_by_its_formula(qk_norm, make_text):
    attend, text = CrossAttention(12, heads=2, qk_norm=qk_norm), make_text((4, 1), width=12)
    x = torch.randn(2, 8, 12)
    q = attend.q(x).view(2, 8, 2, 6)
    k, v = (part.view(2, 4, 2, 6) for part in attend.kv(text.tokens).split(12, dim=-1))
    if qk_norm:
        q, k = F.rms_norm(q, (6,), eps=1e-6), F.rms_norm(k, (6,), eps=1e-6)
    expected = attend.out(by_definition(q, k, v, text.mask).float().flatten(2))
    torch.testing.assert_close(attend(x, text.tokens, text.mask), expected)


def test_xavier_weights_and_zero_biases():
    linear = nn.Linear(200, 100)
    xavier_linears(nn.Sequential(linear))
    assert linear.bias.abs().max() == 0
    # uniform in +-sqrt(6 / (200 + 100)) = 0.14142, whose standard deviation is sqrt(2 / 300) = 0.08165
    assert linear.weight.abs().max() <= 0.14143
    assert linear.weight.std().item() == pytest.approx(0.08165, rel=0.02)
