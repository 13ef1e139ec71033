import math

import pytest
import torch
from torch import nn

from vidlab.errors import UserError
from vidlab.layers.mixers.attention_mixer import AttentionMixer, causal_mask
from vidlab.layers.mixers.mixer import MixerKernels
from vidlab.layers.mixers.ssd import ssd
from vidlab.layers.mixers.ssd_mixer import SSDMixer

MIXERS = {
    "ssd": lambda: SSDMixer(24, 3),
    "ssd_one_group": lambda: SSDMixer(24, 3, state=5, groups=1, conv_on="xBC", gate="silu_mul"),
    "attention": lambda: AttentionMixer(24, 3),
}


@pytest.fixture(params=MIXERS)
def mixer(request):
    torch.manual_seed(0)
    return MIXERS[request.param]()


def test_every_mixer_keeps_the_shape_in_both_precisions(mixer):
    for length in (1, 3, 70):
        x = torch.randn(2, length, 24)
        y = mixer(x)
        assert y.shape == x.shape and y.dtype == torch.float32
        with torch.autocast("cpu", torch.bfloat16):
            half = mixer(x)
        torch.testing.assert_close(half.float(), y, rtol=0.1, atol=0.1)


def test_a_token_sees_nothing_behind_it(mixer):
    x = torch.randn(1, 30, 24)
    changed = x.clone()
    changed[:, 17:] += 1
    assert torch.equal(mixer(changed)[:, :17], mixer(x)[:, :17])
    assert not torch.equal(mixer(changed)[:, 17], mixer(x)[:, 17])


@pytest.mark.parametrize("content", [100.0, float("nan")])
def test_what_pads_hold_reaches_no_real_token(mixer, content):
    x = torch.randn(2, 30, 24)
    real = torch.rand(2, 30) < 0.6
    y = mixer(x, real)
    x[~real] = content
    assert torch.equal(mixer(x, real)[real], y[real])


def test_all_real_is_no_mask(mixer):
    x = torch.randn(2, 12, 24)
    torch.testing.assert_close(mixer(x, torch.ones(2, 12, dtype=torch.bool)), mixer(x))


def test_every_parameter_gets_a_gradient(mixer):
    mixer(torch.randn(2, 12, 24)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in mixer.parameters())


def linear_attention(x, w_q, w_k, w_v, heads):
    """y_t = sum over s <= t of (q_t . k_s) v_s, one pair at a time."""
    q, k, v = ((x @ w.T).unflatten(-1, (heads, -1)) for w in (w_q, w_k, w_v))
    y = torch.zeros_like(v)
    for t in range(x.shape[1]):
        for s in range(t + 1):
            y[:, t] += (q[:, t] * k[:, s]).sum(-1, keepdim=True) * v[:, s]
    return y.flatten(2)


def test_matrices_of_attention_make_it_linear_attention():
    """No decay, steps of 1, a convolution that changes nothing and no second branch."""
    torch.manual_seed(0)
    mixer = SSDMixer(24, 3).double()
    w_q, w_k, w_v = torch.randn(3, 24, 24, dtype=torch.float64)
    mixer.activation = nn.Identity()
    with torch.no_grad():
        mixer.in_proj.weight.zero_()
        mixer.in_proj.bias.zero_()
        for name, matrix in {"C": w_q, "B": w_k, "x": w_v}.items():
            mixer.in_proj.weight[mixer.rows[name]] = matrix
        mixer.A_log.fill_(-math.inf)
        mixer.dt_bias.fill_(math.log(math.e - 1))
        mixer.D.zero_()
        mixer.conv.weight.zero_()
        mixer.conv.weight[..., -1] = 1
        mixer.conv.bias.zero_()
    for name, matrix in {"C": w_q, "B": w_k, "x": w_v}.items():
        assert torch.equal(mixer.in_proj.weight[mixer.rows[name]], matrix)
    x = torch.randn(2, 20, 24, dtype=torch.float64)
    torch.testing.assert_close(mixer(x), linear_attention(x, w_q, w_k, w_v, 3), rtol=1e-6, atol=1e-5)


def test_rows_are_laid_out_in_order():
    assert SSDMixer(24, 3, state=5, groups=1).rows == {
        "z": slice(0, 24), "x": slice(24, 48), "B": slice(48, 53), "C": slice(53, 58), "dt": slice(58, 61),
    }  # fmt: skip


def test_fresh_recurrences_are_mamba_2s():
    mixer = SSDMixer(512, 256)
    dt, a = nn.functional.softplus(mixer.dt_bias), mixer.A_log.exp()
    assert 0.99e-3 < dt.min() < 2e-3 and 0.06 < dt.max() < 0.101
    assert 1 <= a.min() < 2 and 15 < a.max() <= 16
    # log-uniform: half below the geometric mean, 0.01
    assert 0.35 < (dt < 0.01).float().mean() < 0.65
    assert (mixer.D == 1).all()


def test_the_convolution_sees_four_tokens():
    torch.manual_seed(0)
    mixer = SSDMixer(8, 2)
    x = torch.randn(1, 9, 8)
    y, _ = mixer._convolve(x, None, None)
    taps, bias = mixer.conv.weight[:, 0], mixer.conv.bias
    expected = bias + sum(taps[:, 3 - back] * x[0, 5 - back] for back in range(4))
    torch.testing.assert_close(y[0, 5], nn.functional.silu(expected))
    torch.testing.assert_close(y[0, 0], nn.functional.silu(bias + taps[:, 3] * x[0, 0]))


@pytest.mark.parametrize(("gate", "expected"), [("add", 5.0), ("silu_mul", 2 * 3 / (1 + math.exp(-3)))])
def test_gates(gate, expected):
    mixer = SSDMixer(2, 1, gate=gate)
    with torch.no_grad():
        mixer.in_proj.weight.zero_()
        mixer.in_proj.bias[mixer.rows["z"]] = 3.0
    mixer.kernel = lambda x, *_: (torch.full_like(x, 2.0), x.new_zeros(1, 1, 2, 2))
    torch.testing.assert_close(mixer(torch.randn(1, 3, 2)), torch.full((1, 3, 2), expected))


def test_the_kernel_is_the_one_given():
    calls = []

    def kernel(*parts):
        calls.append(1)
        return ssd(*parts)

    SSDMixer(8, 2, MixerKernels(ssm=kernel))(torch.randn(1, 3, 8))
    assert calls == [1]


def test_causal_masks():
    assert causal_mask(3, None)[0, 0].tolist() == [[True, False, False], [True, True, False], [True, True, True]]
    real = torch.tensor([[False, True, True]])
    assert causal_mask(3, real)[0, 0].tolist() == [[True, False, False], [False, True, False], [False, True, True]]
    assert torch.equal(causal_mask(3, real, first=1), causal_mask(3, real)[:, :, 1:])
    assert torch.equal(causal_mask(3, None, first=2), causal_mask(3, None)[:, :, 2:])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"heads": 5}, "width 24 must be a multiple of the 5 heads"),
        ({"groups": 2}, "of the 2 groups"),
        ({"conv_on": "B"}, "conv_on=B: choose one of x, xBC"),
        ({"gate": "max"}, "gate=max: choose one of add, silu_mul"),
    ],
)
def test_sizes_and_choices_are_checked(wrong, message):
    with pytest.raises(UserError, match=message):
        SSDMixer(**{"width": 24, "heads": 3, **wrong})


def test_attention_refuses_a_width_that_does_not_divide():
    with pytest.raises(UserError, match="multiple of the 5 heads"):
        AttentionMixer(24, 5)


COMPILED = """
import torch
from vidlab.layers.mixers.ssd_mixer import SSDMixer
mixer = SSDMixer(8, 2)
compiled = torch.compile(mixer, fullgraph=True, dynamic=True, backend="aot_eager")
for length in (70, 41):
    x, real = torch.randn(2, length, 8), torch.rand(2, length) < 0.7
    torch._dynamo.config.error_on_recompile = length != 70
    results = []
    for run in (compiled, mixer):
        mixer.zero_grad()
        y = run(x, real)
        y.square().sum().backward()
        results.append([y, *(p.grad for p in mixer.parameters())])
    for a, b in zip(*results):
        torch.testing.assert_close(a, b)
"""


def test_one_graph_serves_every_length(commands, tmp_path):
    """In a process of its own: the shape checks of these tests cannot be traced."""
    assert commands.run_code(COMPILED, cwd=tmp_path).code == 0
