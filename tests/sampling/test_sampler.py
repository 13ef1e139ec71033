import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from vidlab.clip import Conditions, Controls, DenoiserInput, DenoiserOutput, TextEmbedding
from vidlab.diffusion.betas import LinearBetas
from vidlab.diffusion.gaussian import GaussianObjective
from vidlab.diffusion.parameterizations import Velocity, VPrediction, X0Prediction
from vidlab.diffusion.schedules import LinearPath, VariancePreserving
from vidlab.diffusion.time_samplers import Uniform
from vidlab.diffusion.weightings import Constant
from vidlab.errors import UserError
from vidlab.randomness import KeyedRNG
from vidlab.sampling.gaussian import GaussianSampler
from vidlab.sampling.guidance import ClassifierFreeGuidance, NoGuidance
from vidlab.sampling.guided import GuidedDenoiser, concatenate, concatenate_texts
from vidlab.sampling.solvers import DDIM, AncestralEuler, DPMSolverPlusPlus2M, Euler, Heun
from vidlab.sampling.spacings import Leading, Linspace

SHAPE = (3, 4, 4, 6)
PATH = (LinearPath(), Velocity())


def objective(parameterization=None) -> GaussianObjective:
    return GaussianObjective(LinearPath(), parameterization or Velocity(), Constant(), Uniform())


def gaussian_denoiser(mean: float, std: float, parameterization) -> Callable[[DenoiserInput], DenoiserOutput]:
    """The exact answer for data N(mean, std^2): x0 is its posterior mean, noise is what then remains."""

    def denoise(input: DenoiserInput) -> DenoiserOutput:
        path = LinearPath().coefficients(input.t).like(input.latents)
        variance = path.alpha**2 * std**2 + path.sigma**2
        gain = path.alpha * std**2 / variance
        x0 = mean + gain * (input.latents - path.alpha * mean)
        epsilon = path.sigma / variance * (input.latents - path.alpha * mean)
        return DenoiserOutput(parameterization.target(x0, epsilon, path))

    return denoise


def error_at(steps: int, parameterization, mean=0.7, std=0.4) -> float:
    noise = torch.linspace(-2, 2, 24, dtype=torch.float64).view(1, 1, 1, 4, 6)
    sampled = GaussianSampler(Euler(), steps).sample(
        gaussian_denoiser(mean, std, parameterization), objective(parameterization), NoGuidance(), noise,
        {"full": Conditions()},
    )  # fmt: skip
    # z_t = (1 - t) mean + sqrt((1 - t)^2 std^2 + t^2) z_1 solves the ODE, so z_0 = mean + std z_1
    return (sampled - (mean + std * noise)).abs().max().item()


@pytest.mark.parametrize("parameterization", [Velocity(), VPrediction(), X0Prediction()], ids=lambda p: p.name)
def test_euler_converges_at_first_order_to_the_gaussian_solution(parameterization):
    errors = [error_at(steps, parameterization) for steps in (50, 100, 200)]
    assert errors[0] < 0.05
    assert 1.8 < errors[0] / errors[1] < 2.2
    assert 1.8 < errors[1] / errors[2] < 2.2


def test_one_value_is_reached_in_one_step():
    # data without spread: the path to it is straight
    assert error_at(1, Velocity(), std=0.0) < 1e-6


def test_one_euler_step_by_hand():
    # z = 2 at t = 3/4 with velocity 3: at t = 1/2 z = 2 - 3/4
    z = torch.full((1, 1, 1, 1, 1), 2.0)

    def denoise(z, t):
        assert t == 0.75
        input = DenoiserInput(z, torch.tensor([t]), torch.tensor([t]))
        return objective().denoised(DenoiserOutput(torch.full_like(z, 3.0)), input)

    step = Euler().stepper(LinearPath(), lambda number: z)
    assert step(z, 0.75, 0.5, denoise).item() == pytest.approx(1.25, abs=1e-6)


def test_shift_takes_more_steps_at_high_noise():
    # t = 3 u / (1 + 2 u) at u = 1, 3/4, 1/2, 1/4, 0
    assert GaussianSampler(Euler(), 4, shift=3.0).times(LinearPath()) == pytest.approx([1, 0.9, 0.75, 0.5, 0])


@pytest.mark.parametrize("solver", [DPMSolverPlusPlus2M(), Heun(), AncestralEuler()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("shift", [0.08, 0.2, 0.41, 0.9, 1.7, 3.3, 12.0])
def test_every_shift_starts_at_one(shift, solver):
    # 0.41 * 1 / (1 + (0.41 - 1) * 1) is 1 + 2^-52, where the straight path has no signal to take a logarithm of
    sampler = GaussianSampler(solver, 4, shift=shift)
    assert sampler.times(LinearPath())[0] == 1.0
    zero = lambda input: DenoiserOutput(torch.zeros_like(input.latents))  # noqa: E731
    noise, draw = torch.randn(1, *SHAPE), KeyedRNG(0, ("a",), (0,))
    assert sampler.sample(zero, objective(), NoGuidance(), noise, {"full": Conditions()}, draw=draw).isfinite().all()


def test_noise_of_unit_variance_below_the_noisiest_level():
    # levels 0.3 and 0.1 of a grid of ten, from noise that is taken as it is: with velocity 0 nothing changes
    zero = lambda input: DenoiserOutput(torch.zeros_like(input.latents))  # noqa: E731
    noise = torch.randn(1, *SHAPE)
    for start, factor in (("unit", 1.0), ("level", 0.7)):
        sampler = GaussianSampler(Euler(), 2, spacing=Leading(10, offset=1, end="first"), start=start)
        assert sampler.times(LinearPath()) == pytest.approx([0.7, 0.2, 0.1])
        made = sampler.sample(zero, objective(), NoGuidance(), noise, {"full": Conditions()})
        torch.testing.assert_close(made, factor * noise)
    with pytest.raises(UserError, match=r"sampler\.start=half: choose level or unit"):
        GaussianSampler(Euler(), 2, start="half")


def test_a_bound_of_alpha_is_for_constant_variance():
    sampler = GaussianSampler(AncestralEuler(), 2, least_alpha=2**-12)
    with pytest.raises(UserError, match=r"sampler.least_alpha=0.000244140625 is for .* LinearPath is none"):
        sampler.sample(lambda _: None, objective(), NoGuidance(), torch.zeros(1, *SHAPE), {"full": Conditions()})


@pytest.mark.parametrize(
    ("spacing", "steps"), [({"offset": 0, "end": "first"}, 10), ({"offset": 1}, 10), ({"offset": 5, "end": "first"}, 5)]
)
def test_leading_levels_stay_on_the_grid(spacing, steps):
    with pytest.raises(UserError, match=f"offset={spacing['offset']}, .*sampler.steps={steps} leave the 10 levels"):
        Leading(10, **spacing).times(steps, LinearPath())


def test_shift_is_positive():
    with pytest.raises(UserError, match=r"sampler.shift=0"):
        GaussianSampler(Euler(), 4, shift=0.0)


def test_levels_run_from_noise_to_data_in_equal_steps():
    assert GaussianSampler(Euler(), 4).times(LinearPath()) == [1, 0.75, 0.5, 0.25, 0]
    seen = []

    def backbone(input: DenoiserInput) -> DenoiserOutput:
        seen.append((input.t.tolist(), input.embedded_t.tolist()))
        return DenoiserOutput(torch.zeros_like(input.latents))

    done = []
    noise = torch.randn(2, *SHAPE)
    result = GaussianSampler(Euler(), 2).sample(
        backbone, objective(), NoGuidance(), noise, {"full": Conditions()}, lambda *x: done.append(x)
    )
    assert seen == [([1, 1], [1000, 1000]), ([0.5, 0.5], [500, 500])]
    assert done == [(1, 2), (2, 2)]
    torch.testing.assert_close(result, noise)  # velocity 0


def test_at_least_one_step():
    with pytest.raises(UserError, match=r"sampler.steps=0"):
        GaussianSampler(Euler(), 0)


@pytest.fixture
def awake_dit(make_dit):
    """A denoiser whose every branch speaks."""
    dit = make_dit().eval()
    for parameter in dit.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return dit


class Counting:
    """A backbone that remembers what it was given."""

    def __init__(self, backbone):
        self.backbone = backbone
        self.inputs: list[DenoiserInput] = []

    def __call__(self, input: DenoiserInput) -> DenoiserOutput:
        self.inputs.append(input)
        return self.backbone(input)


def test_both_conditions_in_one_batch_equal_two_evaluations(awake_dit, make_text):
    conditions = {"full": Conditions(make_text((5, 2))), "null": Conditions(make_text((1, 1)))}
    z, counting = torch.randn(2, *SHAPE), Counting(awake_dit)
    with torch.no_grad():
        joint = GuidedDenoiser(counting, *PATH, ClassifierFreeGuidance(3), conditions)(z, 0.5)
        apart = {
            name: GuidedDenoiser(awake_dit, *PATH, NoGuidance(), {"full": condition})(z, 0.5)
            for name, condition in conditions.items()
        }
    assert [len(input.latents) for input in counting.inputs] == [4]
    # conversions are linear, so guidance may as well be applied to x0
    expected = apart["null"].x0 + 3 * (apart["full"].x0 - apart["null"].x0)
    torch.testing.assert_close(joint.x0, expected, rtol=1e-4, atol=1e-4)
    assert (apart["full"].x0 - apart["null"].x0).abs().max() > 1e-2  # else nothing was tested


def test_no_guidance_evaluates_the_prompt_alone(awake_dit, make_text):
    conditions = {"full": Conditions(make_text((5, 2))), "null": Conditions(make_text((1, 1)))}
    z, counting = torch.randn(2, *SHAPE), Counting(awake_dit)
    with torch.no_grad():
        one = GuidedDenoiser(counting, *PATH, ClassifierFreeGuidance(1), conditions)(z, 0.5)
        none = GuidedDenoiser(counting, *PATH, NoGuidance(), conditions)(z, 0.5)
    assert [len(input.latents) for input in counting.inputs] == [2, 2]
    assert torch.equal(one.x0, none.x0)


def test_a_missing_condition_is_named(awake_dit):
    denoise = GuidedDenoiser(awake_dit, *PATH, ClassifierFreeGuidance(2), {"full": Conditions()})
    with pytest.raises(ValueError, match=r"\['null'\], given are \['full'\]"):
        denoise(torch.randn(1, *SHAPE), 0.5)


def test_guidance_without_any_text(awake_dit):
    conditions = {"full": Conditions(), "null": Conditions()}
    z = torch.randn(1, *SHAPE)
    with torch.no_grad():
        guided = GuidedDenoiser(awake_dit, *PATH, ClassifierFreeGuidance(2), conditions)(z, 0.5)
        plain = GuidedDenoiser(awake_dit, *PATH, NoGuidance(), conditions)(z, 0.5)
    torch.testing.assert_close(guided.x0, plain.x0)


def test_texts_of_different_lengths_are_padded_with_hidden_zeros():
    a = TextEmbedding(torch.ones(1, 1, 2), torch.tensor([[True]]), torch.tensor([[1.0, 2.0]]))
    b = TextEmbedding(torch.full((1, 3, 2), 5.0), torch.tensor([[True, True, False]]), torch.tensor([[3.0, 4.0]]))
    both = concatenate_texts([a, b])
    assert both.tokens[..., 0].tolist() == [[1, 0, 0], [5, 5, 5]]
    assert both.mask.tolist() == [[True, False, False], [True, True, False]]
    assert both.pooled.tolist() == [[1, 2], [3, 4]]


def test_what_cannot_share_a_batch_is_refused(make_text):
    text = Conditions(make_text((2,)))
    with pytest.raises(ValueError, match="some conditions have text and some have none"):
        concatenate([text, Conditions()])
    controls = Controls(torch.zeros(1, 1, 1, 1, 1), torch.zeros(1, 1, 1, 1, 1))
    controls = Controls(torch.zeros(1, 1, 1, 1, 1), torch.zeros(1, 1, 1, 1, 1))
    with pytest.raises(ValueError, match="some conditions have controls and some have none"):
        concatenate([text, replace(text, controls=controls)])


def test_sampling_leaves_no_graph(awake_dit):
    noise = torch.randn(1, *SHAPE)
    latents = GaussianSampler(Euler(), 2).sample(awake_dit, objective(), NoGuidance(), noise, {"full": Conditions()})
    assert not latents.requires_grad and math.isfinite(latents.sum().item())


def silent(input: DenoiserInput) -> DenoiserOutput:
    """A network that always answers zero."""
    return DenoiserOutput(torch.zeros_like(input.latents))


def test_the_first_level_need_not_be_pure_noise():
    schedule, seen = VariancePreserving(LinearBetas()), []

    def backbone(input: DenoiserInput) -> DenoiserOutput:
        seen.append(input)
        return silent(input)

    chosen = GaussianObjective(schedule, VPrediction(), Constant(), Uniform())
    noise = torch.randn(2, *SHAPE)
    sampler = GaussianSampler(Euler(), 4, spacing=Leading())
    sampler.sample(backbone, chosen, NoGuidance(), noise, {"full": Conditions()})
    assert [input.embedded_t[0].item() for input in seen] == pytest.approx([750, 500, 250, 0], abs=1e-3)
    torch.testing.assert_close(seen[0].latents, schedule.coefficients(torch.tensor(0.751)).sigma * noise)


def test_fresh_noise_is_keyed_by_clip_and_step(make_draw):
    noise, draw = torch.randn(2, *SHAPE), make_draw()
    arguments = (silent, objective(X0Prediction()), NoGuidance(), noise, {"full": Conditions()})
    # x0 = 0 throughout and eta = 1: at t = 1/2 half of the fresh noise of the first step is left, then clean data
    seen = []

    def backbone(input: DenoiserInput) -> DenoiserOutput:
        seen.append(input.latents)
        return silent(input)

    GaussianSampler(DDIM(1.0), 2).sample(backbone, *arguments[1:], draw=draw)
    torch.testing.assert_close(seen[1], draw.normal("step0", SHAPE) / 2)
    sampler = GaussianSampler(AncestralEuler(), 3)
    assert torch.equal(sampler.sample(*arguments, draw=draw), sampler.sample(*arguments, draw=draw))


def test_a_solver_that_adds_noise_needs_a_draw():
    arguments = (silent, objective(), NoGuidance(), torch.randn(1, *SHAPE), {"full": Conditions()})
    with pytest.raises(ValueError, match="AncestralEuler adds noise at every step and needs draw="):
        GaussianSampler(AncestralEuler(), 3).sample(*arguments)
    GaussianSampler(DDIM(), 3).sample(*arguments)


def test_shift_belongs_to_even_levels():
    with pytest.raises(UserError, match=r"sampler.shift=2.0 would move the levels of sampler.spacing=Linspace"):
        GaussianSampler(Euler(), 4, shift=2.0, spacing=Linspace()).times(LinearPath())
