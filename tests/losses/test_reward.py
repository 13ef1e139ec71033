"""Reward learning: the published equation, which predictions are scored, and gradients."""

from dataclasses import replace

import pytest
import torch

from vidlab.autoencoders.haar import Haar
from vidlab.clip import ClipBatch, Conditions, DenoiserOutput, LatentShape, LossContext
from vidlab.diffusion.pyramid_flow import PyramidFlow
from vidlab.diffusion.pyramid_predictions import StageLatents, StageVelocity
from vidlab.errors import UserError
from vidlab.losses.base import Regularizer
from vidlab.losses.reward import Reward
from vidlab.randomness import KeyedRNG

KEYS = ("a", "b")
FRAMES, SIZE = 5, 8
HAAR = Haar(frames=1, height=2, width=2, scale=0.5)


def brightness(pixels, batch) -> torch.Tensor:
    return pixels.mean(dim=(1, 2, 3, 4))


def context_of(objective, number, output=None) -> LossContext:
    """What a training step shows of batch ``number``; ``output`` makes an answer of the target."""
    pixels = torch.rand(2, 3, FRAMES, SIZE, SIZE, generator=torch.Generator().manual_seed(number)) * 2 - 1
    batch = ClipBatch(pixels, ("one", "two"), KEYS, (0, 0), number, (8.0, 8.0))
    x0 = HAAR.encode(pixels)
    draw = KeyedRNG(0, KEYS, (0, 0), batch=number)
    corrupted = objective.prepare(x0, Conditions(), draw)
    answer = DenoiserOutput((output or (lambda target: target))(corrupted.target).requires_grad_())
    return LossContext(
        batch, corrupted.input, answer, corrupted.target, number, draw, latent=LatentShape(*x0.shape[1:]),
        x0_of=lambda o, i: objective.denoised(o, i).x0, decode=HAAR.decode,
    )  # fmt: skip


def frame_of(context) -> int:
    return sum(len(part.frame_index) for part in context.input.history)


def contexts(objective, count=60):
    return [context_of(objective, number) for number in range(count)]


def test_x_is_that_of_the_equation():
    """x = [x_t + (s_e - s_t) / (s_e - s_s) v - (1 - s_e) x_0] / s_e with shares of signal, v = end - start."""
    objective = PyramidFlow(2, prediction=StageVelocity())
    stage = objective.table[-1]
    s_s, s_e = 1 - stage.sigma_start, 1 - stage.sigma_end
    whole = [c for c in contexts(objective) if c.input.latents.shape[-1] == SIZE // 2]
    assert len(whole) > 10
    for context in whole[:10]:
        answer = torch.randn(context.target.shape)  # any answer, not only the right one
        told = replace(context, output=DenoiserOutput(answer))
        r = (context.input.embedded_t.double() - stage.t_end) / (stage.t_start - stage.t_end)
        s_t = (r * s_s + (1 - r) * s_e).view(-1, 1, 1, 1, 1)
        v = -answer.double()  # the network tells start - end
        assert s_e == 1  # so that the noise has no part in it
        x = (context.input.latents.double() + (s_e - s_t) / (s_e - s_s) * v) / s_e
        torch.testing.assert_close(told.x0.double(), x, rtol=0, atol=2e-5)
        score = HAAR.decode(x.float()).mean(dim=(1, 2, 3, 4)).mean()
        torch.testing.assert_close(Reward({"r": brightness}, frames=None)(told), -score, rtol=0, atol=1e-5)


@pytest.mark.parametrize("prediction", [StageVelocity(), StageLatents()], ids=lambda one: one.name)
def test_the_right_answer_is_scored_as_the_clip_is(prediction):
    objective = PyramidFlow(2, prediction=prediction)
    context = next(c for c in contexts(objective) if c.input.latents.shape[-1] == SIZE // 2)
    clip = context.batch.pixels[:, :, frame_of(context) :][:, :, :1]
    found = Reward({"r": brightness, "twice": lambda p, b: 2 * brightness(p, b)}, frames=None)(context)
    assert found.item() == pytest.approx(-3 * clip.mean().item(), abs=1e-5)  # -r_1 - r_2


def test_earlier_stages_and_frames_before_the_last_get_none():
    objective, reward = PyramidFlow(2), Reward({"r": lambda p, b: 1 + 0 * brightness(p, b)}, frames=2)
    assert isinstance(reward, Regularizer)
    seen = set()
    for context in contexts(objective):
        last_stage = context.input.latents.shape[-1] == SIZE // 2
        counts = last_stage and frame_of(context) >= FRAMES - 2
        assert reward(context).item() == (-1 if counts else 0)
        seen.add((last_stage, frame_of(context)))
    assert len(seen) == 2 * FRAMES


def test_of_whole_clips_the_last_frames_are_scored():
    shape = (2, 12, FRAMES, SIZE // 2, SIZE // 2)
    context = context_of(PyramidFlow(2), 0)
    x = torch.randn(shape)
    whole = replace(
        context, input=replace(context.input, latents=x, history=()), output=DenoiserOutput(x), x0_of=lambda o, i: x
    )
    shown = []
    Reward({"r": lambda p, b: shown.append(p) or brightness(p, b)}, frames=3)(whole)
    torch.testing.assert_close(shown[0], HAAR.decode(x)[:, :, -3:])


def test_the_gradient_is_that_of_finite_differences():
    objective = PyramidFlow(2, prediction=StageVelocity())
    context = next(c for c in contexts(objective) if c.input.latents.shape[-1] == SIZE // 2)
    reward = Reward({"r": lambda p, b: p.square().mean(dim=(1, 2, 3, 4))}, frames=None)
    reward(context).backward()
    answer = context.output.prediction
    assert answer.grad is not None
    direction = torch.randn(answer.shape)
    step = 1e-2  # the score is quadratic, so that central differences are exact but for rounding
    ends = [reward(replace(context, output=DenoiserOutput(answer.detach() + sign * step * direction))).item()
            for sign in (1, -1)]  # fmt: skip
    assert (answer.grad * direction).sum().item() == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-2, abs=1e-5)


def test_what_cannot_be_scored_is_refused():
    with pytest.raises(UserError, match="scorers is empty"):
        Reward({"hps": None})
    with pytest.raises(UserError, match="frames=0"):
        Reward({"r": brightness}, frames=0)
