"""``history_timestep=clean``: what becomes of text and history does not depend on the noise level, and can be kept."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from mmdim_parts import SSD, example, history, make, pyramid
from torch import nn

from vidlab.errors import UserError
from vidlab.features import SELF_ATTENTION
from vidlab.layers.mixers.attention_mixer import AttentionMixer
from vidlab.layers.mixers.mixer import ResumableMixer
from vidlab.layers.mixers.parallel_mixer import ParallelMixer
from vidlab.layers.mixers.ssd_mixer import SSDMixer
from vidlab.training.optimization.fully_sharded import shard

CLEAN = {"text_ends": "left", "history_timestep": "clean"}
MIXERS = {
    "ssd": SSD,
    "silu_of_xBC": partial(SSDMixer, conv=3, conv_on="xBC", gate="silu_mul", groups=1),
    "no_convolution": partial(SSDMixer, conv=1),
    "attention": AttentionMixer,
    "parallel": partial(ParallelMixer, mixers=(SSD, AttentionMixer)),
}


def at_level(input, t):
    return replace(input, t=torch.full_like(input.t, t), embedded_t=torch.full_like(input.embedded_t, 1000 * t))


@torch.no_grad()
def by_memory(model, input):
    """With a memory that was made at another noise level of other noisy latents."""
    other = replace(at_level(input, 0.9), latents=torch.randn_like(input.latents))
    return model(replace(input, remembered=model.remember(other))).prediction


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("text", [True, False])
def test_a_memory_changes_nothing(mixer, text):
    model, input = make(**CLEAN, mixer=MIXERS[mixer]), pyramid(text=text)
    with torch.no_grad():
        torch.testing.assert_close(by_memory(model, input), model(input).prediction, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "settings",
    [
        {"absolute_positions": True},
        {"register_by": "role"},
        {"temporal_branch": False},
        {"dual_depth": 0},
        {"depth": 3, "scan": "raster", "scan_paths": "ae"},
    ],
)
def test_nor_does_it_in_other_variants(settings):
    model = make(**CLEAN, **settings)
    # two predicted frames, one of which is later; a history of one frame at the resolution of the current one
    for input in (pyramid(frames=2), example(past=[history(1, 8)])):
        with torch.no_grad():
            torch.testing.assert_close(by_memory(model, input), model(input).prediction, rtol=0, atol=1e-12)


def test_a_sharded_model_remembers(mesh):
    model, input = make(**CLEAN), pyramid()
    expected = by_memory(model, input)
    holder = nn.Module()
    holder.backbone = model
    shard(holder, mesh, None)
    torch.testing.assert_close(by_memory(model, input), expected, rtol=0, atol=1e-12)


def test_predicted_frames_may_have_noise_levels_of_their_own():
    model, input = make(**CLEAN), pyramid(frames=2)
    t = torch.tensor([[0.2, 0.7], [0.9, 0.1]])
    mixed = replace(input, t=t, embedded_t=1000 * t)
    with torch.no_grad():
        torch.testing.assert_close(by_memory(model, mixed), model(mixed).prediction, rtol=0, atol=1e-12)
        same = replace(input, t=t[:, :1].expand(-1, 2), embedded_t=1000 * t[:, :1].expand(-1, 2))
        one = replace(input, t=t[:, 0], embedded_t=1000 * t[:, 0])
        torch.testing.assert_close(model(same).prediction, model(one).prediction, rtol=0, atol=1e-12)


@torch.no_grad()
def test_the_history_is_read_as_clean_and_the_rest_at_its_level():
    """At the level 0 both variants are one; above it, they are not."""
    clean = make(**CLEAN)
    current = make(text_ends="left")
    current.load_state_dict(clean.state_dict())
    input = pyramid()
    still = at_level(input, 0.0)
    torch.testing.assert_close(clean(still).prediction, current(still).prediction, rtol=0, atol=1e-12)
    noisy = at_level(input, 0.5)
    assert (clean(noisy).prediction - current(noisy).prediction).abs().max() > 1e-3
    assert (clean(noisy).prediction - clean(still).prediction).abs().max() > 1e-3


def test_gradient_reaches_everything():
    model, input = make(**CLEAN), pyramid()
    model(input).prediction.square().sum().backward()
    # the text's own stream is read by what follows, but for what the last block does to it
    silent = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert silent == set()


def test_models_that_read_the_noise_level_everywhere_have_no_memory():
    model, input = make(text_ends="left"), pyramid()
    assert not model.spec.remembers_history and make(**CLEAN).spec.remembers_history
    with pytest.raises(ValueError, match="anew at each noise level"):
        model.remember(input)
    memory = make(**CLEAN).remember(input)
    with pytest.raises(ValueError, match="remembered=None"):
        model(replace(input, remembered=memory))
    with pytest.raises(ValueError, match="remembered=None"):
        make(**CLEAN)(replace(input, remembered=memory, requested=frozenset({SELF_ATTENTION})))


class Sum(nn.Module):
    """A causal mixer that cannot be resumed."""

    def __init__(self, width, heads, kernels=None):
        super().__init__()

    def forward(self, x, real=None):
        return x.cumsum(dim=1)


def test_a_mixer_that_cannot_go_on_is_used_without_memory():
    assert not make(**CLEAN, mixer=Sum).spec.remembers_history
    assert not make(**CLEAN, mixer=partial(ParallelMixer, mixers=(SSD, Sum))).spec.remembers_history


def test_text_at_both_ends_is_refused():
    with pytest.raises(UserError, match=r"history_timestep=clean needs model\.backbone\.text_ends=left"):
        make(history_timestep="clean")
    with pytest.raises(UserError, match="history_timestep=old: choose current or clean"):
        make(history_timestep="old")


@torch.no_grad()
@pytest.mark.parametrize("mixer", MIXERS)
def test_mixers_go_on_where_they_stopped(mixer):
    torch.manual_seed(0)
    made = MIXERS[mixer](24, 2).double()
    assert isinstance(made, ResumableMixer)
    x, real = torch.randn(2, 11, 24).double(), torch.ones(2, 11, dtype=torch.bool)
    real[0, :3] = real[1, 4] = False
    whole = made(x, real)
    for length in (5, 10):
        start, memory = made.remember(x[:, :length], real[:, :length])
        found = torch.cat([start, made.resume(x[:, length:], memory)], dim=1)
        torch.testing.assert_close(found[real], whole[real], rtol=0, atol=1e-12)
    start, memory = made.remember(x[:, :2])  # fewer than the convolution sees, and no pads
    torch.testing.assert_close(torch.cat([start, made.resume(x[:, 2:], memory)], dim=1), made(x), rtol=0, atol=1e-12)
