"""Frame by frame and stage by stage: with a network that knows the answer, and with one that shows what it reads."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from vidlab.backbones.mmdim import MMDiM
from vidlab.clip import Conditions, DenoiserInput, DenoiserOutput, KnownLatents, LatentShape, TextEmbedding
from vidlab.diffusion.gaussian import GaussianObjective
from vidlab.diffusion.objective import Objective
from vidlab.diffusion.parameterizations import Velocity
from vidlab.diffusion.pyramid_flow import PyramidFlow
from vidlab.diffusion.pyramid_resolutions import latent_pyramid, noise_pyramid
from vidlab.diffusion.schedules import LinearPath
from vidlab.diffusion.time_samplers import Uniform
from vidlab.diffusion.weightings import Constant
from vidlab.errors import UserError
from vidlab.layers.mixers.ssd_mixer import SSDMixer
from vidlab.randomness import KeyedRNG
from vidlab.sampling.base import Sampler, check_belong
from vidlab.sampling.frame_guidance import FirstAndLater, SelfQuality
from vidlab.sampling.gaussian import GaussianSampler
from vidlab.sampling.guidance import ClassifierFreeGuidance, NoGuidance
from vidlab.sampling.pyramid import PyramidSampler, first_frames
from vidlab.sampling.solvers import Euler

OBJECTIVE = PyramidFlow(3)
SAMPLER = PyramidSampler(steps=2)
CFG = ClassifierFreeGuidance(3.0)
DRAW = KeyedRNG(0, ("a", "b"), (0, 0))
GAUSSIAN = GaussianObjective(LinearPath(), Velocity(), Constant(), Uniform())


def text(value: float) -> TextEmbedding:
    return TextEmbedding(torch.full((2, 1, 1), value), torch.ones(2, 1, dtype=torch.bool), torch.zeros(2, 1))


CONDITIONS = {"full": Conditions(text(1.0)), "null": Conditions(text(0.0))}


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Spy:
    """Answers with zeros, or by a function, and keeps what it was given."""

    def __init__(self, answer=lambda input: torch.zeros_like(input.latents)) -> None:
        self.inputs: list[DenoiserInput] = []
        self.answer = answer

    def __call__(self, input: DenoiserInput) -> DenoiserOutput:
        self.inputs.append(input)
        return DenoiserOutput(self.answer(input))


def oracle(x0: torch.Tensor) -> Spy:
    """Knows the clip: at every stage it answers with the straight way to that stage's end for noise of zero."""

    def answer(input: DenoiserInput) -> torch.Tensor:
        frame = sum(len(part.frame_index) for part in input.history)
        number = {2: 0, 4: 1, 8: 2}[input.latents.shape[3]]
        stage = OBJECTIVE.table[number]
        r = ((input.embedded_t - stage.t_end) / (stage.t_start - stage.t_end)).view(-1, 1, 1, 1, 1)
        end = (1 - stage.sigma_end) * latent_pyramid(x0[:, :, frame : frame + 1], 3)[number]
        return (input.latents - end) / r

    return Spy(answer)


def sampled(backbone, guidance=None, sampler=SAMPLER, frames=4, conditions=CONDITIONS, **more) -> torch.Tensor:
    noise = normal(2, 3, frames, 8, 8)
    return sampler.sample(backbone, OBJECTIVE, guidance or NoGuidance(), noise, conditions, draw=DRAW, **more)


def test_it_belongs_to_pyramid_flow_and_to_nothing_else():
    assert isinstance(SAMPLER, Sampler) and SAMPLER.name == "Pyramid"
    check_belong(OBJECTIVE, SAMPLER, ClassifierFreeGuidance(3.0))
    with pytest.raises(UserError, match="undoes the pyramid process and objective=GaussianObjective"):
        check_belong(GAUSSIAN, SAMPLER, NoGuidance())
    with pytest.raises(UserError, match="undoes the gaussian process and objective=PyramidFlow"):
        check_belong(OBJECTIVE, GaussianSampler(Euler()), NoGuidance())

    class Bare(Objective):
        process = "pyramid"

    with pytest.raises(UserError, match="tells no table"):
        check_belong(Bare(), SAMPLER, NoGuidance())


def test_a_network_that_knows_the_clip_makes_it():
    x0 = normal(2, 3, 4, 8, 8, seed=1)
    torch.testing.assert_close(sampled(oracle(x0)), x0, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("first", "count"), [(None, 4), (3, 3)])
def test_steps_of_the_first_frame_and_of_the_others(first, count):
    spy, ticks = Spy(), []
    sampled(spy, sampler=PyramidSampler(2, first), frames=3, progress=lambda *tick: ticks.append(tick))
    assert [len(input.history) > 0 for input in spy.inputs] == [False] * 3 * count + [True] * 3 * 4
    assert ticks == [(n + 1, 3 * count + 12) for n in range(3 * count + 12)]
    assert [input.latents.shape[3] for input in spy.inputs[: 3 * count]] == [2] * count + [4] * count + [8] * count


def test_the_numbers_embedded():
    spy = Spy()
    sampled(spy, sampler=PyramidSampler(2, 2), frames=1)
    found = [input.embedded_t[0].item() for input in spy.inputs]
    assert found == pytest.approx([1000, 744.256, 744, 386.358, 386, 1.385], abs=1e-3)
    assert [input.t[0].item() * 1000 for input in spy.inputs] == pytest.approx(found, abs=1e-3)


def test_the_history_is_what_was_made_clean_and_at_falling_resolution():
    x0 = normal(2, 3, 4, 8, 8, seed=1)
    spy = oracle(x0)
    sampled(spy)
    last = spy.inputs[-1].history
    assert [part.frame_index.tolist() for part in last] == [[0], [1], [2]]
    pyramid = latent_pyramid(x0, 3)
    for level, part in enumerate(last):
        torch.testing.assert_close(part.latents, pyramid[level][:, :, level : level + 1], atol=1e-4, rtol=1e-4)


def test_it_starts_from_the_noise_at_the_lowest_resolution_and_jumps_with_new_noise():
    spy = Spy()
    sampled(spy, sampler=PyramidSampler(1, 1), frames=1)
    low, middle, _ = spy.inputs
    start = noise_pyramid(normal(2, 3, 1, 8, 8), 3)[0]
    assert torch.equal(low.latents, start)
    wanted = OBJECTIVE.table[1].jump.apply(start, DRAW.normal("jump0.1", (3, 1, 4, 4)))
    torch.testing.assert_close(middle.latents, wanted)
    with pytest.raises(ValueError, match="needs draw="):
        SAMPLER.sample(Spy(), OBJECTIVE, NoGuidance(), normal(2, 3, 1, 8, 8), CONDITIONS)


def test_longer_videos_keep_a_window_of_history():
    spy = Spy()
    assert sampled(spy, sampler=PyramidSampler(1, 1, window=2), frames=9).shape[2] == 9
    assert {tuple(i.item() for part in input.history for i in part.frame_index) for input in spy.inputs} == {
        (), (0,), (0, 1)
    }  # fmt: skip
    assert PyramidSampler(1, window=9).window == 9


def test_a_video_does_not_depend_on_its_batch():
    wave = Spy(lambda input: input.latents.sin() + sum(part.latents.mean() * 0 for part in input.history))
    both = sampled(wave)
    one = {name: replace(c, text=TextEmbedding(c.text.tokens[:1], c.text.mask[:1], c.text.pooled[:1]))
           for name, c in CONDITIONS.items()}  # fmt: skip
    alone = SAMPLER.sample(
        wave, OBJECTIVE, NoGuidance(), normal(2, 3, 4, 8, 8)[:1], one, draw=KeyedRNG(0, ("a",), (0,))
    )
    torch.testing.assert_close(alone, both[:1])


def known(x0: torch.Tensor, *frames: int) -> KnownLatents:
    mask = torch.zeros(2, 1, x0.shape[2], 1, 1)
    mask[:, :, list(frames)] = 1
    return KnownLatents(x0, mask)


def test_given_frames_are_history_and_come_back_as_they_are():
    x0, spy = normal(2, 3, 4, 8, 8, seed=1), Spy()
    conditions = {"full": replace(CONDITIONS["full"], known=known(x0, 0, 1)), "null": CONDITIONS["null"]}
    made = sampled(spy, ClassifierFreeGuidance(2.0), conditions=conditions)
    assert torch.equal(made[:, :, :2], x0[:, :, :2])
    assert len(spy.inputs) == 2 * 3 * 2  # both other frames, 3 stages, 2 steps; both passes in one call
    assert torch.equal(spy.inputs[-1].history[0].latents[:2, :, 0], latent_pyramid(x0, 3)[0][:, :, 0])
    assert torch.equal(spy.inputs[0].history[-1].latents[:2], spy.inputs[0].history[-1].latents[2:])


@pytest.mark.parametrize("frames", [(1,), (0, 3)])
def test_only_first_frames_can_be_given(frames):
    with pytest.raises(UserError, match="only the first frames can be given"):
        first_frames(known(normal(2, 3, 4, 8, 8), *frames))


def test_nothing_given():
    assert first_frames(None) == () and first_frames(known(normal(2, 3, 4, 8, 8))) == ()


def answers_text(input: DenoiserInput) -> torch.Tensor:
    """1 + 10 for the prompt, 1 for none; 100 more where there is history."""
    value = 1 + 10 * input.text.tokens[:, 0, 0] + (100 if input.history else 0)
    return value.view(-1, 1, 1, 1, 1).expand_as(input.latents)


@pytest.mark.parametrize(("frame", "wanted"), [(0, 1 + 7 * 10), (1, 101 + 5 * 10)])
def test_first_and_later_frames_have_a_scale_each(frame, wanted):
    guidance = FirstAndLater(ClassifierFreeGuidance(7.0), ClassifierFreeGuidance(5.0))
    check_belong(OBJECTIVE, SAMPLER, guidance)
    assert SAMPLER.passes(guidance) == {"full", "null"}
    with pytest.raises(UserError, match="of the first frame"):
        check_belong(GAUSSIAN, GaussianSampler(Euler()), guidance)
    latents = normal(2, 3, 2, 8, 8)
    flat = PyramidFlow(1)
    made = PyramidSampler(1, 1).sample(Spy(answers_text), flat, guidance, latents, CONDITIONS, draw=DRAW)
    torch.testing.assert_close(latents[:, :, frame] - made[:, :, frame], torch.full((2, 3, 8, 8), float(wanted)))


def test_self_quality_compares_with_no_history():
    """v_l = 101 + 2 * 10, v_h = 1 + 2 * 10: 0.3 of the way to it, from frame 1 on and below t = 0.5."""
    guidance = SelfQuality(ClassifierFreeGuidance(2.0), 0.3, first_frame=1, high=0.5)
    check_belong(OBJECTIVE, SAMPLER, guidance)
    with pytest.raises(UserError, match="without history"):
        check_belong(GAUSSIAN, GaussianSampler(Euler()), guidance)
    latents, flat = normal(2, 3, 2, 8, 8), PyramidFlow(1)
    made = PyramidSampler(2, 2).sample(Spy(answers_text), flat, guidance, latents, CONDITIONS, draw=DRAW)
    moved = (latents - made).mean(dim=(0, 1, 3, 4))
    r = 0.001  # two steps: from 1 to 0.001, above 0.5; and to 0, below
    assert moved.tolist() == pytest.approx([21.0, (1 - r) * 121 + r * (121 - 30)], rel=1e-5)


@pytest.mark.parametrize(("weight", "wanted"), [(0.0, 21.0), (1.0, 11.0), (0.5, 16.0)])
def test_the_weight_of_self_quality(weight, wanted):
    guidance = SelfQuality(NoGuidance(), weight)
    predictions = {"full": torch.full((1, 1, 1, 1, 1), 21.0), "full without history": torch.full((1, 1, 1, 1, 1), 11.0)}
    assert guidance.needs(0.1) == tuple(predictions) and guidance.needs(0.8) == ("full",)
    assert guidance.combine(predictions, 0.1).item() == pytest.approx(wanted)
    assert guidance.combine({"full": predictions["full"]}, 0.8).item() == 21.0
    assert guidance.at_frame(7) == NoGuidance() and guidance.at_frame(8) == guidance


@pytest.mark.parametrize("settings", [{"steps": 0}, {"first_steps": 0}, {"window": 0}, {"max_batch": 0}])
def test_settings_below_one(settings):
    with pytest.raises(UserError, match=f"sampler.{next(iter(settings))}=0 must be at least 1"):
        PyramidSampler(**settings)


@pytest.mark.parametrize("settings", [{"weight": -1.0}, {"first_frame": 0}, {"high": 2.0}])
def test_guidance_out_of_range(settings):
    with pytest.raises(UserError, match=f"guidance.{next(iter(settings))}="):
        SelfQuality(NoGuidance(), **settings)


def resumable(**settings):
    torch.manual_seed(0)
    model = MMDiM(
        latent=LatentShape(3, 1, 8, 8), text_width=1, mixer=partial(SSDMixer), width=24, depth=2, heads=2,
        patch=(1, 2, 2), dual_depth=1, text_ends="left", **settings,
    ).double()  # fmt: skip
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def double(conditions):
    return {
        name: Conditions(TextEmbedding(c.text.tokens.double(), c.text.mask, c.text.pooled.double()))
        for name, c in conditions.items()
    }


@pytest.mark.parametrize("max_batch", [None, 3])
@pytest.mark.parametrize(
    "guidance", [ClassifierFreeGuidance(3.0), SelfQuality(ClassifierFreeGuidance(2.0), first_frame=1)]
)
def test_a_history_that_is_kept_makes_the_same_video(guidance, max_batch):
    model, noise = resumable(history_timestep="clean"), normal(2, 3, 4, 8, 8).double()
    made, calls = [], []
    remember = model.remember
    model.remember = lambda input: calls.append(len(input.latents)) or remember(input)
    for cache in (False, True):
        sampler = PyramidSampler(steps=2, first_steps=1, max_batch=max_batch, cache=cache)
        video = sampler.sample(model, PyramidFlow(2), guidance, noise, double(CONDITIONS), draw=DRAW)
        made.append(video)
        if not cache:
            assert not calls
    torch.testing.assert_close(made[1], made[0], rtol=1e-9, atol=1e-9)
    # once for each stage of the three frames that have a history, in as many calls as rows need, not once for each step
    assert calls == ([4] if max_batch is None else [3, 1]) * 2 * 3


def test_a_model_that_reads_the_level_everywhere_is_never_asked_to_remember():
    model, noise = resumable(), normal(2, 3, 2, 8, 8).double()
    plain, kept = (
        PyramidSampler(steps=1, cache=cache).sample(
            model, PyramidFlow(2), NoGuidance(), noise, double(CONDITIONS), draw=DRAW
        )
        for cache in (False, True)
    )
    assert torch.equal(plain, kept)
