import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vidlab.layers.attention import CrossAttention, QKNorm, SelfAttention, rms_norm, xavier_linears
from vidlab.layers.layouts import Full3D, Grid
from vidlab.layers.rope import rotate, rotation


def test_rms_norm_by_hand():
    # rms of (3, 4) is sqrt(12.5)
    out = rms_norm(torch.tensor([[3.0, 4.0]]), torch.tensor([1.0, 2.0]))
    torch.testing.assert_close(out, torch.tensor([[3.0, 8.0]]) / math.sqrt(12.5))
    assert rms_norm(torch.zeros(1, 2), torch.ones(2)).tolist() == [[0.0, 0.0]]


def test_qk_norm_is_torchs_rms_norm_in_float32():
    norm, x = QKNorm(8), torch.randn(2, 3, 4, 8) * 7
    nn.init.uniform_(norm.gain)
    torch.testing.assert_close(norm(x), F.rms_norm(x, (8,), norm.gain, eps=1e-6))
    assert torch.equal(norm(x.bfloat16()), rms_norm(x.bfloat16(), norm.gain).bfloat16())  # float32 inside
    torch.testing.assert_close(norm(x * 10), norm(x))  # the scale of queries and keys is gone


def test_self_attention_by_its_formula(by_definition):
    grid, attend = Grid(2, 2, 2), SelfAttention(12, heads=2, qk_norm=True)
    nn.init.uniform_(attend.q_norm.gain)
    by, x = rotation(grid, 6), torch.randn(2, 8, 12)
    q, k, v = (part.view(2, 8, 2, 6) for part in attend.qkv(x).split(12, dim=-1))
    q, k = (rotate(F.rms_norm(y, (6,), n.gain, 1e-6), by) for y, n in ((q, attend.q_norm), (k, attend.k_norm)))
    expected = attend.out(by_definition(q, k, v).float().flatten(2))
    torch.testing.assert_close(attend(x, Full3D(), grid, by), expected)


@pytest.mark.parametrize("qk_norm", [True, False])
def test_cross_attention_by_its_formula(by_definition, qk_norm, make_text):
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
