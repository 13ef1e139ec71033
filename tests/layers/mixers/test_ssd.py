import math

import pytest
import torch
from state_space_references import inputs, recurrence, selective_scan

from vidlab.layers.mixers import ssd as module
from vidlab.layers.mixers.ssd import ssd
from vidlab.layers.mixers.ssd_span import states_by_loop, states_by_product


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def gradients(function, parts):
    """y and the last state, then the gradients of all inputs under fixed random weights."""
    y, state = function(*parts)
    generator = torch.Generator().manual_seed(1)
    loss = sum(
        (out * torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out)).sum() for out in (y, state)
    )
    return [y, state, *torch.autograd.grad(loss, parts)]


def test_three_tokens_by_hand():
    # half of the state is left at each step: 1, 1/2 + 2, 5/4 + 3
    x = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64).view(1, 3, 1, 1)
    one = torch.ones_like(x)
    y, state = ssd(x, one[..., 0], -torch.tensor([math.log(2)], dtype=torch.float64), one, one)
    torch.testing.assert_close(y.flatten(), torch.tensor([1, 2.5, 4.25], dtype=torch.float64))
    assert state.item() == pytest.approx(4.25)


@pytest.mark.parametrize("length", [*range(1, 20), 63, 64, 65, 127, 128, 129, 200, 300])
def test_equals_the_recurrence_at_any_length(length, monkeypatch):
    monkeypatch.setitem(module.SPAN_BYTES, "cpu", 2 * 4 * 32 * 32 * 4 * 2)  # two chunks a span
    parts = inputs(length)
    for found, expected in zip(gradients(ssd, parts), gradients(recurrence, parts), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_equals_the_recurrence_at_every_length_up_to_300():
    parts = inputs(300, heads=2, groups=2, size=2, states=2, batch=1)
    x, dt, A, B, C, D, state = (part.detach() for part in parts)
    expected, _ = recurrence(x, dt, A, B, C, D, state)
    for n in range(1, 301):
        y, _ = ssd(x[:, :n], dt[:, :n], A, B[:, :n], C[:, :n], D, state)
        assert (y - expected[:, :n]).abs().max() < 1e-10, n


@pytest.mark.parametrize("chunk", [1, 7, 16, 64, 128])
def test_the_chunk_changes_nothing(chunk):
    parts = inputs(70)
    y, _ = ssd(*parts, chunk=chunk)
    assert (y - recurrence(*parts)[0]).abs().max() < 1e-12


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("direct", [False, True])
def test_groups_and_the_direct_path(groups, direct):
    parts = inputs(37, groups=groups)
    if not direct:
        parts = parts[:5]
    for found, expected in zip(gradients(ssd, parts), gradients(recurrence, parts), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-11)


def test_gradients_by_finite_differences():
    parts = inputs(7, heads=2, groups=1, size=2, states=3, batch=1)
    assert torch.autograd.gradcheck(lambda *p: ssd(*p, chunk=3), parts)


def test_gradient_of_a_step_of_zero():
    parts = inputs(9)
    with torch.no_grad():
        parts[1][:, 3:5] = 0
    for found, expected in zip(gradients(ssd, parts), gradients(recurrence, parts), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-11)


def test_a_state_can_be_handed_on():
    x, dt, A, B, C, D, first = inputs(50)
    whole, last = ssd(x, dt, A, B, C, D, first)
    left, state = ssd(x[:, :19], dt[:, :19], A, B[:, :19], C[:, :19], D, first)
    right, end = ssd(x[:, 19:], dt[:, 19:], A, B[:, 19:], C[:, 19:], D, state)
    torch.testing.assert_close(torch.cat([left, right], dim=1), whole)
    torch.testing.assert_close(end, last)


def test_decays_beyond_any_exponent():
    parts = inputs(130, dtype=torch.float32)
    with torch.no_grad():
        parts[1].mul_(1000)
    found = gradients(ssd, parts)
    assert all(part.isfinite().all() for part in found)
    expected, _ = recurrence(*parts)
    assert (found[0] - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize("content", [0.0, 1e6, float("nan"), float("inf")])
def test_what_pads_hold_reaches_no_real_token(content):
    x, dt, A, B, C, D, first = (part.detach() for part in inputs(40))
    real = torch.rand(2, 40) < 0.7
    y, state = ssd(x, dt, A, B, C, D, first, real)
    without, _ = ssd(x[:1, real[0]], dt[:1, real[0]], A, B[:1, real[0]], C[:1, real[0]], D, first[:1])
    torch.testing.assert_close(y[:1, real[0]], without)
    for part in (x, dt, B, C):
        part[~real] = content
    again, last = ssd(x, dt, A, B, C, D, first, real)
    assert torch.equal(again[real], y[real]) and torch.equal(last, state)


def test_a_token_sees_nothing_behind_it():
    x, dt, A, B, C, D, _ = inputs(90)
    y, _ = ssd(x, dt, A, B, C, D)
    (gradient,) = torch.autograd.grad(y[:, 66].sum(), x)
    assert (gradient[:, 67:] == 0).all() and (gradient[:, :67] != 0).any(-1).all()


def test_single_precision_and_bf16_stay_close():
    parts = [part.detach() for part in inputs(300, size=16, states=16)]
    exact, last = ssd(*parts)
    x, dt, A, B, C, D, first = (part.float() for part in parts)
    single, state = ssd(x, dt, A, B, C, D, first)
    assert single.dtype == state.dtype == torch.float32
    torch.testing.assert_close(single.double(), exact, rtol=1e-5, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        half, state = ssd(x.bfloat16(), dt, A, B.bfloat16(), C.bfloat16(), D, first)
    assert half.dtype == torch.bfloat16 and state.dtype == torch.float32
    torch.testing.assert_close(half.double(), exact, rtol=0.02, atol=0.05 * exact.abs().max().item())
    torch.testing.assert_close(state.double(), last, rtol=0.02, atol=0.02 * last.abs().max().item())


def test_autocast_does_not_lower_what_is_computed_in():
    parts = inputs(70, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        inside = gradients(ssd, parts)
    for a, b in zip(inside, gradients(ssd, parts), strict=True):
        assert torch.equal(a, b)


def test_memory_for_the_backward_pass_is_the_inputs_and_few_states():
    parts = inputs(4096, heads=2, groups=2, size=64, states=64, batch=1, dtype=torch.float32)
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        ssd(*parts)
    given = sum(part.nbytes for part in parts)
    assert given <= sum(kept.values()) < 1.1 * given


def by_loop(added, totals, first, backwards):
    return states_by_loop(added, totals, first, torch.empty_like(added), backwards)


@pytest.mark.parametrize("run", [by_loop, states_by_product])
@pytest.mark.parametrize("backwards", [False, True])
def test_states_pass_from_chunk_to_chunk(backwards, run):
    # decays 1/2, 1/4: 8 -> 4 + 1 -> 5/4 + 2, and from the end 8 -> 2 + 2 -> 2 + 1
    added, totals = torch.tensor([[[1.0], [2.0]]]), torch.tensor([[-1.0, -2.0]])
    found, last = run(added, totals, torch.tensor([[8.0]]), backwards)
    assert found.flatten().tolist() == ([4.0, 8.0] if backwards else [8.0, 5.0])
    assert last.item() == (3.0 if backwards else 3.25)


def test_mamba_1_where_both_apply():
    """Heads of one channel with one decay rate for all states, and one group, are a selective scan."""
    x, dt, A, B, C, D, _ = inputs(33, heads=6, groups=1, size=1, states=4)
    y, _ = ssd(x, dt, A, B, C, D)
    scan = selective_scan(x[..., 0], dt, A[:, None].expand(-1, 4), B[:, :, 0], C[:, :, 0], D)
    torch.testing.assert_close(y[..., 0], scan)


def test_heads_that_do_not_divide_are_refused():
    x, dt, A, B, C, _, _ = inputs(5, groups=4)
    with pytest.raises(ValueError, match="4 heads in 3 groups"):
        ssd(x, dt, A, B[:, :, :3], C[:, :, :3])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
@pytest.mark.parametrize("length", [1, 70, 5000])
def test_a_gpu_computes_the_same(length, dtype, tolerance):
    parts = inputs(length, size=64, states=64)
    expected = gradients(ssd, parts)
    found = gradients(ssd, [part.detach().to("cuda", dtype).requires_grad_() for part in parts])
    for a, b in zip(found, expected, strict=True):
        assert (a.cpu().double() - b).abs().max() < tolerance * max(1.0, b.abs().max())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_host_never_waits_for_a_gpu():
    parts = [part.detach().cuda().requires_grad_() for part in inputs(500, dtype=torch.float32)]
    real = torch.rand(2, 500, device="cuda") < 0.9
    torch.cuda.set_sync_debug_mode("error")
    try:
        y, _ = ssd(*parts, real)
        torch.autograd.grad(y, parts, torch.ones_like(y))
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_operators_are_registered_as_torch_wants_them():
    x, dt, A, B, C, D, first = inputs(11)
    # the checks with symbolic lengths are in test_mixers.py: the shape checks of these tests do not know them
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.vidlab.ssd.default, (x, dt, A, B, C, D, first, 4), test_utils=checks)
