"""The streaming sum of differences between attention maps, against maps that are all there."""

import pytest
import torch

from vidlab.losses.attention_variation import attention_variation


def dense(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """The definition, by autograd."""
    q, k = q.transpose(2, 3), k.transpose(2, 3)  # (B, T, N, L, d)
    maps = torch.softmax((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2), dim=-1)
    return maps.diff(dim=1).abs().mean(dim=(0, 2, 3, 4)).sum()


def queries_and_keys(*shape: int, dtype=torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(*shape, generator=generator, dtype=dtype).requires_grad_() for _ in range(2)]


def with_gradients(function, parts: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    value = function(*parts)
    return value.detach(), *torch.autograd.grad(3 * value, parts)


@pytest.mark.parametrize("chunk", [1, 5, 64, None])
@pytest.mark.parametrize("shape", [(2, 4, 64, 3, 8), (1, 2, 64, 1, 4), (1, 7, 9, 2, 5)])
def test_value_and_gradients_are_those_of_dense_maps(shape, chunk):
    parts = queries_and_keys(*shape)
    found = with_gradients(lambda q, k: attention_variation(q, k, chunk), parts)
    for ours, theirs in zip(found, with_gradients(dense, parts), strict=True):
        assert (ours - theirs).norm() <= 1e-5 * theirs.norm() and theirs.norm() > 0


@pytest.mark.parametrize("chunk", [2, None])
def test_gradients_are_those_of_finite_differences(chunk):
    parts = queries_and_keys(2, 4, 5, 2, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda q, k: attention_variation(q, k, chunk), parts)
    q, k = parts
    assert torch.autograd.gradcheck(lambda k: attention_variation(q.detach(), k), [k]), "keys alone"


def test_by_hand():
    # two tokens, d = 1: rows softmax(q (k1, k2)); frame 1 has q = 0, frame 2 q = ln 3 and k = (1, 0)
    q = torch.tensor([0.0, 0.0, 1.0, 1.0]).log1p().mul(torch.tensor(3.0).log() / torch.tensor(2.0).log())
    k = torch.tensor([1.0, 0.0, 1.0, 0.0])
    value = attention_variation(q.view(1, 2, 2, 1, 1), k.view(1, 2, 2, 1, 1))
    # (1/2, 1/2) and (3/4, 1/4): each element moves by 1/4
    assert value.item() == pytest.approx(0.25)


def test_identical_frames_have_none_and_rows_move_by_two_at_most():
    q, k = queries_and_keys(1, 1, 16, 2, 8)
    value, *gradients = with_gradients(attention_variation, [q.repeat(1, 5, 1, 1, 1), k.repeat(1, 5, 1, 1, 1)])
    assert value == 0 and not any(gradient.any() for gradient in gradients)
    eye = 100 * torch.eye(8)
    turned = torch.stack([eye, eye.roll(1, 0)])[None, :, :, None]  # all attention on one key, then on another
    value = attention_variation(turned, torch.stack([eye, eye])[None, :, :, None])
    assert value.item() * 8 == pytest.approx(2)  # the L1 of a row


def test_a_single_frame_has_none():
    value, *gradients = with_gradients(attention_variation, queries_and_keys(2, 1, 4, 2, 8))
    assert value == 0 and not any(gradient.any() for gradient in gradients)


def test_half_precision_is_computed_in_single():
    parts = [part.detach().bfloat16().requires_grad_() for part in queries_and_keys(1, 3, 32, 2, 8)]
    with torch.autocast("cpu", torch.bfloat16):
        found = with_gradients(attention_variation, parts)
    expected = with_gradients(attention_variation, [part.detach().float().requires_grad_() for part in parts])
    assert found[0].dtype == torch.float32 and torch.equal(found[0], expected[0])
    for ours, theirs in zip(found[1:], expected[1:], strict=True):
        assert ours.dtype == torch.bfloat16
        torch.testing.assert_close(ours.float(), theirs, rtol=1e-2, atol=1e-6)


def test_a_loss_scale_saves_small_gradients_from_vanishing_in_half_precision():
    q, k = (part.detach().half().requires_grad_() for part in queries_and_keys(1, 3, 256, 2, 8))
    (2.0**16 * attention_variation(q, k)).backward()
    exact = [part.detach().float().requires_grad_() for part in (q, k)]
    attention_variation(*exact).backward()
    wanted = exact[0].grad
    error, rounded = (q.grad.float() / 2**16 - wanted).norm(), (wanted.half().float() - wanted).norm()
    assert error < 1e-3 * wanted.norm() and rounded > 20 * error


def test_no_map_of_a_clip_is_kept():
    # what is saved for the backward pass is of the size of queries and keys
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.numel()) or x, lambda x: x):
        parts = queries_and_keys(1, 4, 128, 2, 8)
        attention_variation(*parts, 16).backward()
    assert sum(saved) <= 2 * parts[0].numel() < 4 * 2 * 128 * 128
    assert parts[0].grad is not None


def test_without_gradients_there_is_only_the_value():
    parts = queries_and_keys(1, 3, 32, 2, 8)
    with torch.no_grad():
        assert attention_variation(*parts).item() == pytest.approx(dense(*parts).item(), rel=1e-6)
