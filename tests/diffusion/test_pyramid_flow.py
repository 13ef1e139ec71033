"""The objective: what a batch trains, exact conversions, and that a clip's numbers are its own."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from vidlab.clip import Conditions, Controls, DenoiserInput, DenoiserOutput, KnownLatents, LatentShape
from vidlab.diffusion.objective import Objective
from vidlab.diffusion.pyramid_flow import PyramidFlow, PyramidProcess
from vidlab.diffusion.pyramid_history import ConstantCorruption, token_total
from vidlab.diffusion.pyramid_predictions import StageLatents, StageVelocity
from vidlab.diffusion.pyramid_resolutions import latent_pyramid, noise_pyramid
from vidlab.errors import UserError
from vidlab.randomness import KeyedRNG

KEYS = ("a", "b")
NOTHING = Conditions()


def draw(number=0, keys=KEYS) -> KeyedRNG:
    return KeyedRNG(0, keys, (0,) * len(keys), batch=number)


def clips(frames=5, count=2) -> torch.Tensor:
    return torch.randn(count, 3, frames, 8, 12, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def objective() -> PyramidFlow:
    return PyramidFlow(3)


@pytest.fixture(params=[StageVelocity(), StageLatents()], ids=lambda prediction: prediction.name)
def either(request) -> PyramidFlow:
    return PyramidFlow(3, prediction=request.param)


def stage_of(corrupted) -> int:
    return {2: 0, 4: 1, 8: 2}[corrupted.input.latents.shape[3]]


def frame_of(corrupted) -> int:
    return sum(len(part.frame_index) for part in corrupted.input.history)


def test_it_is_an_objective_of_its_own_process(objective):
    assert isinstance(objective, Objective) and isinstance(objective, PyramidProcess)
    assert objective.process == "pyramid" and objective.tags() == {"objective": "PyramidFlow of velocity"}


def test_every_clip_of_a_batch_has_the_stage_and_frame_that_the_batch_number_says(objective):
    for number in range(20):
        whole, alone = (objective.prepare(clips(5, n), NOTHING, draw(number, KEYS[:n])) for n in (2, 1))
        assert (stage_of(whole), frame_of(whole)) == (stage_of(alone), frame_of(alone))
        torch.testing.assert_close(whole.input.latents[:1], alone.input.latents, rtol=0, atol=0)
        torch.testing.assert_close(whole.input.embedded_t[:1], alone.input.embedded_t, rtol=0, atol=0)
        for part, other in zip(whole.input.history, alone.input.history, strict=True):
            torch.testing.assert_close(part.latents[:1], other.latents, rtol=0, atol=0)


def test_stages_and_frames_are_drawn_with_their_shares():
    objective = PyramidFlow(3, [1, 2, 1])
    shapes = objective.input_shapes(LatentShape(3, 4, 8, 12))
    assert sum(shape.share for shape in shapes) == pytest.approx(1)
    drawn = Counter()
    for number in range(2000):
        example = objective.prepare(clips(4, 1), NOTHING, draw(number, KEYS[:1])).input
        parts = tuple(tuple(part.latents.shape[1:]) for part in example.history)
        drawn[tuple(example.latents.shape[1:]), parts] += 1
    said = {}
    for shape in shapes:
        sizes = [(one.channels, one.frames, one.height, one.width) for one in (shape.latent, *shape.history)]
        said[sizes[0], tuple(sizes[1:])] = shape.share
    assert drawn.keys() == said.keys() and len(said) == 12
    assert all(drawn[shape] / 2000 == pytest.approx(share, abs=0.03) for shape, share in said.items())
    by_stage = [sum(s.share for s in shapes if s.latent.height == height) for height in (2, 4, 8)]
    assert by_stage == pytest.approx([0.25, 0.5, 0.25])
    first = sum(shape.share for shape in shapes if not shape.history)
    assert first == pytest.approx(1 / 9 + 8 / 9 / 4)  # images, and the first frames of videos


def test_shapes_of_the_paper_have_its_tokens():
    """Patches of 2 x 2 latents: 768p is 48 x 80 tokens."""
    shapes = PyramidFlow(3).input_shapes(LatentShape(16, 31, 96, 160))
    longest = [s for s in shapes if sum(part.frames for part in s.history) == 30]
    tokens = [sum(p.frames * p.height * p.width // 4 for p in (s.latent, *s.history)) for s in longest]
    assert tokens == [7440, 8880, 15360] == [token_total(30, stage, 3840, 3) for stage in range(3)]


def test_levels_are_on_the_grid(objective):
    for number in range(5):
        example = objective.prepare(clips(), NOTHING, draw(number)).input
        stage = objective.table[{2: 0, 4: 1, 8: 2}[example.latents.shape[3]]]
        r = (example.embedded_t - stage.t_end) / (stage.t_start - stage.t_end)
        torch.testing.assert_close(r * 1000, (r * 1000).round(), atol=0.05, rtol=0)
        assert r.min() > 0 and r.max() <= 1
        torch.testing.assert_close(example.t, example.embedded_t / 1000)


@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.parametrize("place", [1e-3, 0.4, 1.0])
def test_latents_and_noise_are_recovered_from_the_true_answer(either, stage, place):
    objective = either
    x0 = clips().double()
    levels = objective.table[stage].embedded(torch.full((2,), place, dtype=torch.float64)) / 1000
    example = objective.prepare_at(x0, levels, NOTHING, draw())
    found = objective.denoised(DenoiserOutput(example.target), example.input)
    noise = noise_pyramid(draw().normal("noise4", (3, 1, 8, 12)), 3)[stage]
    torch.testing.assert_close(found.x0, latent_pyramid(x0[:, :, 4:].float(), 3)[stage], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.epsilon, noise, atol=2e-3, rtol=1e-3)  # sigma is 0.0005 at the very end
    assert objective.loss(example, DenoiserOutput(example.target)).total == 0


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_the_error_of_latents_is_that_of_the_velocity_they_imply(stage):
    velocity, latents = PyramidFlow(3), PyramidFlow(3, prediction=StageLatents(min_sigma=0.05))
    levels = velocity.table[stage].embedded(torch.tensor([0.3, 0.9])) / 1000
    example = latents.prepare_at(clips(), levels, NOTHING, draw())
    answer = torch.randn(example.target.shape, generator=torch.Generator().manual_seed(1))
    implied = latents.velocity(answer, example.input)
    wanted = velocity.loss(velocity.prepare_at(clips(), levels, NOTHING, draw()), DenoiserOutput(implied))
    torch.testing.assert_close(latents.loss(example, DenoiserOutput(answer)).per_clip, wanted.per_clip)
    torch.testing.assert_close(latents.denoised(DenoiserOutput(answer), example.input).x0, answer, atol=1e-4, rtol=1e-3)


def test_near_the_end_the_error_of_latents_is_bounded():
    """At r = 0 of one stage sigma is 0; with a bound of 0.05, dv = -(1 / 0.05 + 1) e."""
    latents = PyramidFlow(1, prediction=StageLatents(0.05))
    example = latents.prepare_at(clips(), torch.full((2,), 1e-3), NOTHING, draw())
    loss = latents.loss(example, DenoiserOutput(example.target + 0.1))
    assert loss.total.item() == pytest.approx((0.1 * (1 / 0.05 + 1)) ** 2, rel=1e-3)
    with pytest.raises(UserError, match="min_sigma=0"):
        StageLatents(0)


def test_clips_of_odd_lowest_size_are_recovered_too():
    objective, x0 = PyramidFlow(2), clips()[..., :2, :2]
    example = objective.prepare_at(x0, torch.full((2,), 0.9), NOTHING, draw())
    assert example.input.latents.shape[3:] == (1, 1)
    found = objective.denoised(DenoiserOutput(example.target), example.input)
    torch.testing.assert_close(found.x0, latent_pyramid(x0[:, :, 4:], 2)[0], atol=1e-4, rtol=1e-4)


def test_a_given_level_trains_the_last_frame_after_clean_ones(objective):
    x0 = clips()
    example = objective.prepare_at(x0, torch.full((2,), 0.2), NOTHING, draw())
    pyramid = latent_pyramid(x0, 3)
    wanted = [pyramid[0][:, :, :2], pyramid[1][:, :, 2:3], pyramid[2][:, :, 3:4]]
    assert stage_of(example) == 2
    assert all(torch.equal(part.latents, one) for part, one in zip(example.input.history, wanted, strict=True))


def test_training_adds_noise_to_the_history_and_to_nothing_else():
    noisy, clean = (PyramidFlow(2, corruption=ConstantCorruption(most)) for most in (0.5, 0.0))
    number = next(n for n in range(50) if frame_of(noisy.prepare(clips(), NOTHING, draw(n))) > 1)
    one, other = (objective.prepare(clips(), NOTHING, draw(number)) for objective in (noisy, clean))
    assert torch.equal(one.input.latents, other.input.latents) and torch.equal(one.target, other.target)
    assert not any(
        torch.equal(a.latents, b.latents) for a, b in zip(one.input.history, other.input.history, strict=True)
    )


def test_known_frames_are_history_like_all_others(objective):
    x0 = clips()
    known = KnownLatents(x0, torch.zeros(2, 1, 5, 1, 1).index_fill(2, torch.tensor([0]), 1.0))
    for number in range(4):
        plain, told = (objective.prepare(x0, c, draw(number)) for c in (NOTHING, Conditions(known=known)))
        assert torch.equal(plain.input.latents, told.input.latents) and told.loss_mask is None


def test_validation_levels_go_through_every_stage(objective):
    stages = [stage_of(objective.prepare_at(clips(), t, NOTHING, draw())) for t in objective.validation_levels(draw())]
    assert stages == [0, 1, 2]
    for t in (0.0, 0.5, 1.0):
        example = objective.prepare_at(clips(), torch.full((2,), t), NOTHING, draw())
        assert example.input.latents.isfinite().all()


def test_batches_of_all_stages_count_alike(objective):
    counted = []
    for t in objective.validation_levels(draw()):
        example = objective.prepare_at(clips(), t, NOTHING, draw())
        loss = objective.loss(example, DenoiserOutput(torch.zeros_like(example.target)))
        torch.testing.assert_close(loss.per_clip, example.target.square().mean(dim=(1, 2, 3, 4)))
        counted.append(loss.counted.tolist())
    assert counted == [[3 * 8 * 12] * 2] * 3


def perfect(objective: PyramidFlow, x0: torch.Tensor):
    """A backbone that knows the clip: the velocity of the last stage from any input of it."""

    def backbone(input: DenoiserInput) -> DenoiserOutput:
        frame = sum(len(part.frame_index) for part in input.history)
        stage = objective.table[-1]
        r = ((input.embedded_t - stage.t_end) / (stage.t_start - stage.t_end)).view(-1, 1, 1, 1, 1)
        return DenoiserOutput((input.latents - x0[:, :, frame : frame + 1]) / r)

    return backbone


@pytest.mark.parametrize("log_snr", [-4.0, 0.0, 4.0])
def test_every_frame_is_predicted_at_full_resolution(objective, log_snr):
    x0 = clips()
    found = objective.predict_x0(perfect(objective, x0), x0, log_snr, NOTHING, draw())
    torch.testing.assert_close(found, x0, atol=1e-4, rtol=1e-4)


def test_the_noise_of_a_log_snr():
    """At +4, sigma = sigmoid(-2) = 0.1192 of the noise is left: x = ... + 0.1192 n."""
    objective, x0, seen = PyramidFlow(1), torch.zeros(2, 3, 1, 8, 12), []

    def backbone(input: DenoiserInput) -> DenoiserOutput:
        seen.append(input.latents)
        return DenoiserOutput(torch.zeros_like(input.latents))

    objective.predict_x0(backbone, x0, 4.0, NOTHING, draw())
    torch.testing.assert_close(seen[0], 0.11920292 * draw().normal("noise0", (3, 1, 8, 12)))


def test_gradients_reach_the_prediction_at_every_stage(objective):
    for t in objective.validation_levels(draw()):
        example = objective.prepare_at(clips(), t, NOTHING, draw())
        prediction = torch.zeros_like(example.target, requires_grad=True)
        objective.loss(example, DenoiserOutput(prediction)).total.backward()
        torch.testing.assert_close(prediction.grad, -2 * example.target / example.target.numel())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stages": 0}, r"objective\.stages=0"),
        ({"stages": 2, "stage_ratios": [1, 2, 1]}, "give 2 numbers"),
        ({"stages": 2, "stage_ratios": [0, 0]}, "stage_ratios"),
        ({"image_share": 1.5}, r"image_share=1\.5"),
        ({"gamma": 0.5}, r"gamma=0\.5"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(UserError, match=message):
        PyramidFlow(**settings)


def test_latents_that_cannot_be_halved(objective):
    with pytest.raises(UserError, match=r"latents of height 6 cannot be halved 2 times. Use objective\.stages=2"):
        objective.input_shapes(LatentShape(3, 4, 6, 8))
    with pytest.raises(UserError, match="cannot be halved"):
        objective.prepare(clips()[..., :6, :], NOTHING, draw())


def test_what_has_no_common_shape_is_refused(objective):
    with pytest.raises(ValueError, match="several stages"):
        objective.prepare_at(clips(), torch.tensor([0.1, 0.95]), NOTHING, draw())
    with pytest.raises(ValueError, match="one noise level per clip"):
        objective.prepare_at(clips(), torch.full((2, 5), 0.5), NOTHING, draw())
    controls = Controls(clips(), clips()[:, :1])
    with pytest.raises(ValueError, match="no controls"):
        objective.prepare(clips(), replace(NOTHING, controls=controls), draw())


def test_losses_name_their_stage(objective):
    names = set()
    for number in range(20):
        corrupted = objective.prepare(clips(), NOTHING, draw(number))
        loss = objective.loss(corrupted, DenoiserOutput(corrupted.target))
        assert loss.part == corrupted.part == f"stage_{stage_of(corrupted)}"
        names.add(loss.part)
    levels = objective.validation_levels(draw())
    held_out = [objective.prepare_at(clips(), t, NOTHING, draw()).part for t in levels]
    assert held_out == ["stage_0", "stage_1", "stage_2"] and names == set(held_out)
