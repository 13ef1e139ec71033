"""Earlier frames in a transformer: seen by later ones, not the other way round, at no cost where there are none."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from vidlab.backbones.dit import DiT
from vidlab.clip import DenoiserInput, History, LatentShape, TextEmbedding
from vidlab.layers.layouts import Full3D, LayerPlan, Spatial

LATENT = LatentShape(channels=3, frames=4, height=4, width=8)


def built(layout=None, patch=(1, 1, 1), **settings) -> DiT:
    torch.manual_seed(0)
    layouts = LayerPlan((layout or Full3D(),))
    model = DiT(LATENT, 5, layouts, width=24, depth=2, heads=2, patch=patch, **settings)
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return model.eval()


@pytest.fixture
def model() -> DiT:
    return built()


def history(*sizes: tuple[int, int, int]) -> tuple[History, ...]:
    """Parts of (frames, rows, columns), one after the other in time."""
    found, first = [], 0
    for frames, rows, columns in sizes:
        index = torch.arange(first, first + frames)
        found.append(History(torch.randn(2, 3, frames, rows, columns), index))
        first += frames
    return tuple(found)


def example(frames=1, parts=()) -> DenoiserInput:
    torch.manual_seed(1)
    text = TextEmbedding(torch.randn(2, 3, 5), torch.ones(2, 3, dtype=torch.bool), torch.randn(2, 5))
    t = torch.tensor([0.3, 0.8])
    return DenoiserInput(torch.randn(2, 3, frames, 4, 8), t, 1000 * t, text, parts)


def test_the_prediction_is_that_of_the_latents_alone_in_shape(model):
    prediction = model(example(parts=history((3, 1, 2), (1, 2, 4), (1, 4, 8)))).prediction
    assert prediction.shape == (2, 3, 1, 4, 8) and prediction.isfinite().all()


def test_history_of_full_resolution_is_a_clip_with_a_frame_causal_mask(model):
    """Against the same network on one clip of all frames, with the mask put into every attention by hand."""
    parts = history((3, 4, 8))
    input = example(parts=parts)
    kernels = [block.attention for block in model.blocks]
    times = torch.arange(4).repeat_interleave(32)
    for attention in kernels:
        plain = attention.kernel
        attention.kernel = lambda q, k, v, mask=None, plain=plain: plain(q, k, v, (times[:, None] >= times)[None, None])
    clip = replace(input, latents=torch.cat([parts[0].latents, input.latents], dim=2), history=())
    wanted = model(clip).prediction[:, :, -1:]
    torch.testing.assert_close(built()(input).prediction, wanted, rtol=1e-4, atol=1e-5)


def test_the_latents_see_every_earlier_frame_and_no_frame_sees_a_later_one(model):
    parts = history((2, 2, 4), (1, 4, 8))
    for part in parts:
        part.latents.requires_grad_()
    model(example(parts=parts)).prediction.square().sum().backward()
    assert all(part.latents.grad.abs().sum(dim=(0, 1, 3, 4)).min() > 0 for part in parts)


def test_changing_a_later_frame_leaves_the_tokens_of_earlier_ones(model):
    parts = history((2, 2, 4), (1, 4, 8))
    seen = []
    model.blocks[-1].register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    model(example(parts=parts))
    changed = replace(parts[1], latents=parts[1].latents + 1)
    model(example(parts=(parts[0], changed)))
    first, second = seen
    torch.testing.assert_close(first[:, :16], second[:, :16])  # two frames of 2 x 4
    assert (first[:, 16:] - second[:, 16:]).abs().amax(dim=(0, 2)).min() > 1e-4


def test_the_number_of_a_frame_matters(model):
    parts = history((2, 4, 8))
    later = (replace(parts[0], frame_index=parts[0].frame_index * 3),)
    assert not torch.allclose(model(example(parts=parts)).prediction, model(example(parts=later)).prediction, atol=1e-4)


def test_gradients_reach_every_parameter(model):
    model.train()(example(parts=history((1, 2, 4)))).prediction.square().mean().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize(("layout", "patch"), [(Spatial(), (1, 1, 1)), (Full3D(), (2, 1, 1))])
def test_what_cannot_read_history_says_so(layout, patch):
    model = built(layout, patch)
    assert model.spec.reads_history == isinstance(layout, Full3D)
    with pytest.raises(ValueError, match="history needs"):
        model(example(2, history((2, 4, 8))))
