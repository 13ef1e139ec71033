import pytest
import torch

from vidlab.clip import Conditions, DenoiserInput, DenoiserOutput
from vidlab.diffusion.betas import LinearBetas, ZeroTerminalSNR
from vidlab.diffusion.gaussian import GaussianObjective
from vidlab.diffusion.objective import Corrupted, Objective
from vidlab.diffusion.parameterizations import Epsilon, Velocity, VPrediction, X0Prediction
from vidlab.diffusion.schedules import LinearPath, VariancePreserving
from vidlab.diffusion.time_samplers import DiscreteUniform, LogitNormal, RankStratified, Uniform
from vidlab.diffusion.weightings import Constant, MinSNR, VelocityError
from vidlab.errors import UserError
from vidlab.randomness import KeyedRNG

SHAPE = (3, 4, 2, 2)


def objective(parameterization=None, time_sampler=None, schedule=None) -> GaussianObjective:
    return GaussianObjective(
        schedule or LinearPath(), parameterization or Velocity(), Constant(), time_sampler or Uniform()
    )  # fmt: skip


DDPM = VariancePreserving(LinearBetas())
ZERO_SNR = VariancePreserving(ZeroTerminalSNR(LinearBetas()))


def corrupted(target, weight, mask=None) -> Corrupted:
    levels = torch.zeros(len(target))
    return Corrupted(DenoiserInput(torch.zeros_like(target), levels, levels), target, weight, mask)


def test_an_example_is_made_of_the_draws_named_t_and_noise(make_draw, make_text):
    draw, x0, text = make_draw(), torch.randn(2, *SHAPE), make_text()
    example = objective().prepare(x0, Conditions(text=text), draw)
    t = draw.uniform("t")
    noise = draw.normal("noise", SHAPE)
    wide = t.view(2, 1, 1, 1, 1)
    torch.testing.assert_close(example.input.latents, (1 - wide) * x0 + wide * noise)
    torch.testing.assert_close(example.target, noise - x0)
    assert torch.equal(example.input.t, t) and torch.equal(example.input.embedded_t, 1000 * t)
    assert example.input.text is text
    assert torch.equal(example.weight, torch.ones(2)) and example.loss_mask is None


def test_the_time_sampler_shapes_t(make_draw):
    draw = make_draw()
    example = objective(time_sampler=LogitNormal(1.0)).prepare(torch.zeros(2, *SHAPE), Conditions(), draw)
    expected = torch.sigmoid(1 + torch.special.ndtri(draw.uniform("t")))
    torch.testing.assert_close(example.input.t, expected)


def test_an_example_does_not_depend_on_its_batch():
    x0 = torch.randn(3, *SHAPE)
    together = objective().prepare(x0, Conditions(), KeyedRNG(5, ("a", "b", "c"), (0, 2, 1)))
    turned = objective().prepare(x0[[2, 1]], Conditions(), KeyedRNG(5, ("c", "b"), (1, 2)))
    for part in ("latents", "t", "embedded_t"):
        assert torch.equal(getattr(together.input, part)[[2, 1]], getattr(turned.input, part))
    assert torch.equal(together.target[[2, 1]], turned.target)


def test_the_noise_does_not_depend_on_the_level(make_draw):
    x0 = torch.randn(2, *SHAPE)
    at = [objective().prepare_at(x0, torch.full((2,), t), Conditions(), make_draw()) for t in (0.1, 0.9)]
    assert torch.equal(at[0].target, at[1].target)


def test_a_level_for_every_frame(make_draw):
    x0, t = torch.randn(2, *SHAPE), torch.rand(2, 4)
    t[:, 0] = 0  # a known first frame
    frames = objective().prepare_at(x0, t, Conditions(), make_draw())
    assert torch.equal(frames.input.latents[:, :, 0], x0[:, :, 0])
    assert frames.weight.shape == (2, 4)
    for frame in range(4):
        clips = objective().prepare_at(x0, t[:, frame], Conditions(), make_draw())
        torch.testing.assert_close(frames.input.latents[:, :, frame], clips.input.latents[:, :, frame])
    back = objective().denoised(DenoiserOutput(frames.target), frames.input)
    torch.testing.assert_close(back.x0, x0, rtol=0, atol=2e-6)


@pytest.mark.parametrize("kind", [Velocity, VPrediction, Epsilon, X0Prediction])
def test_a_perfect_answer_gives_the_clean_latents(kind, make_draw):
    x0, draw = torch.randn(2, *SHAPE), make_draw()
    chosen = objective(kind(), schedule=DDPM)
    example = chosen.prepare_at(x0, torch.tensor([0.3, 0.6]), Conditions(), draw)
    back = chosen.denoised(DenoiserOutput(example.target), example.input)
    torch.testing.assert_close(back.x0, x0, rtol=0, atol=5e-6)
    torch.testing.assert_close(back.epsilon, draw.normal("noise", SHAPE), rtol=0, atol=5e-6)
    assert chosen.loss(example, DenoiserOutput(example.target)).total == 0


def test_reduced_precision_predictions_are_converted_in_float32(make_draw):
    example = objective().prepare(torch.randn(2, *SHAPE), Conditions(), make_draw())
    output = DenoiserOutput(example.target.bfloat16())
    assert objective().denoised(output, example.input).x0.dtype == torch.float32
    assert objective().loss(example, output).total.dtype == torch.float32


def test_the_loss_is_the_mean_squared_error():
    target = torch.zeros(2, 1, 1, 1, 2)
    prediction = torch.tensor([[1.0, 3.0], [2.0, 0.0]]).view_as(target)
    loss = objective().loss(corrupted(target, torch.ones(2)), DenoiserOutput(prediction))
    assert loss.per_clip.tolist() == [5, 2]  # (1 + 9) / 2, (4 + 0) / 2
    assert loss.total == 3.5


def test_weights_scale_the_squared_error_per_clip_and_per_frame():
    target = torch.zeros(2, 1, 2, 1, 1)
    prediction = torch.tensor([[1.0, 3.0], [2.0, 0.0]]).view_as(target)
    per_clip = objective().loss(corrupted(target, torch.tensor([2.0, 0.5])), DenoiserOutput(prediction))
    assert per_clip.per_clip.tolist() == [10, 1]
    weight = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    per_frame = objective().loss(corrupted(target, weight), DenoiserOutput(prediction))
    assert per_frame.per_clip.tolist() == [9.5, 6]  # (1*1 + 2*9) / 2, (3*4 + 4*0) / 2
    assert per_frame.total == 7.75


def test_masked_errors_neither_count_nor_dilute():
    target = torch.zeros(2, 2, 2, 1, 1)
    prediction = torch.tensor([[[1.0, 3.0], [5.0, 7.0]], [[2.0, 4.0], [6.0, 8.0]]]).view_as(target)
    mask = torch.tensor([[1.0, 0.0], [1.0, 1.0]]).view(2, 1, 2, 1, 1)  # clip 0: its first frame only
    loss = objective().loss(corrupted(target, torch.tensor([1.0, 2.0]), mask), DenoiserOutput(prediction))
    # clip 0: 1 + 25 over 2; clip 1: 2 (4 + 16 + 36 + 64) = 240 over 4; together 266 over 6
    assert loss.per_clip.tolist() == [13, 60]
    assert loss.total.item() == pytest.approx(266 / 6)


def test_nothing_to_count_is_a_loss_of_zero():
    target = torch.zeros(1, 1, 2, 1, 1)
    mask = torch.zeros(1, 1, 1, 1, 1)
    loss = objective().loss(corrupted(target, torch.ones(1), mask), DenoiserOutput(target + 1))
    assert loss.total == 0 and loss.per_clip.tolist() == [0]


def test_it_is_an_objective():
    assert isinstance(objective(), Objective)


@pytest.mark.parametrize("schedule", [LinearPath(), ZERO_SNR], ids=lambda s: type(s).__name__)
def test_noise_prediction_needs_signal_at_the_noisiest_level(schedule):
    with pytest.raises(UserError, match=r"objective\.parameterization=Epsilon.*objective\.schedule=.*Use VPrediction"):
        objective(Epsilon(), schedule=schedule)
    for kind in (Velocity, VPrediction, X0Prediction):
        objective(kind(), schedule=schedule)
    objective(Epsilon(), schedule=DDPM)


def test_v_prediction_at_the_dead_timestep(make_draw):
    chosen = GaussianObjective(ZERO_SNR, VPrediction(), MinSNR(), RankStratified(DiscreteUniform()))
    x0, draw = torch.randn(2, *SHAPE), make_draw()
    example = chosen.prepare_at(x0, torch.tensor([1.0, 0.131]), Conditions(), draw)
    assert torch.equal(example.input.latents[0], draw.normal("noise", SHAPE)[0])
    assert torch.equal(example.target[0], -x0[0])
    assert example.weight.tolist() == pytest.approx([0, 0.8318], abs=1e-4)
    assert example.input.embedded_t.tolist() == [999, 130]
    t = chosen.prepare(x0, Conditions(), draw).input.t
    assert torch.equal(t, ((draw.uniform("t") * 1000).floor() + 1) / 1000)
    # a known frame at level 0 beside noisy ones
    frames = chosen.prepare_at(x0, torch.tensor([0.0, 0.3, 1.0, 1.0]).repeat(2, 1), Conditions(), draw)
    assert torch.equal(frames.input.latents[:, :, 0], x0[:, :, 0]) and frames.weight.isfinite().all()


def test_the_weight_is_that_of_the_parameterization(make_draw):
    chosen = GaussianObjective(LinearPath(), X0Prediction(), VelocityError(0.25), Uniform())
    example = chosen.prepare_at(torch.zeros(2, *SHAPE), torch.tensor([0.1, 0.5]), Conditions(), make_draw())
    assert example.weight.tolist() == [16, 4]
