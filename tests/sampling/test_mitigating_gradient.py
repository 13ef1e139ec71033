"""Mitigating gradients: numbers by hand, the gradient by autograd, and their place around other guidance."""

import itertools
import math
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from vidlab.clip import Conditions, DenoiserOutput, KnownLatents
from vidlab.diffusion.betas import LinearBetas, ScaledLinearBetas
from vidlab.diffusion.gaussian import GaussianObjective
from vidlab.diffusion.parameterizations import Denoised, Epsilon, Velocity
from vidlab.diffusion.pyramid_flow import PyramidFlow
from vidlab.diffusion.schedules import LinearPath, VariancePreserving
from vidlab.diffusion.time_samplers import Uniform
from vidlab.diffusion.weightings import Constant
from vidlab.errors import UserError
from vidlab.lab.cli.hydra_main import instantiate
from vidlab.randomness import KeyedRNG
from vidlab.sampling.base import check_belong
from vidlab.sampling.gaussian import GaussianSampler
from vidlab.sampling.guidance import ClassifierFreeGuidance, Interval, NoGuidance, Rescale
from vidlab.sampling.guidance_scales import EarlyScale
from vidlab.sampling.guided import GuidedDenoiser
from vidlab.sampling.mitigating_gradient import MitigatingGradient, mitigating_gradient
from vidlab.sampling.solvers import DDIM, DPMSolverPlusPlus2M, Euler, Heun
from vidlab.sampling.spacings import Leading

CONF = Path(__file__).parents[2] / "conf"
SD = VariancePreserving(ScaledLinearBetas())


def scalar(*frames: float) -> torch.Tensor:
    return torch.tensor(frames, dtype=torch.float64).view(1, 1, -1, 1, 1)


def random_x0(batch=2, frames=6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, 2, frames, 3, 3, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        # differences 1, 2, 3: median 2, S = 4 / ln 3 = 3.640957
        ((0.0, 1.0, 3.0, 6.0), (0.0, 0.417382, 0.366204, 0.139128)),
        # differences 1, 2: the lower middle 1, S = 1 / ln 2 = 1.442695
        ((0.0, 1.0, 3.0), (0.0, 0.693147, 0.173287)),
    ],
)
def test_numbers_by_hand(frames, expected):
    assert mitigating_gradient(scalar(*frames)).flatten().tolist() == pytest.approx(expected, abs=1e-6)


def test_the_kernel_at_the_median():
    # 24 frames, all differences alike: exp(-ln 23) = 1/23, and |G| n / w = 2 ln 23 / 23
    x0 = scalar(*range(24))
    found = mitigating_gradient(3 * x0).flatten()[1:] * 3
    assert found.tolist() == pytest.approx([2 * math.log(23) / 23] * 23, abs=1e-12)
    assert found[0].item() == pytest.approx(0.272652, abs=1e-6)


def kernels(x0: torch.Tensor, earlier: torch.Tensor) -> torch.Tensor:
    """sum_j exp(-|x0_j - earlier_(j-1)|^2 / S) with S as it is, not differentiated."""
    change = x0[:, :, 1:] - earlier[:, :, :-1]
    squared = change.square().sum(dim=(1, 3, 4))
    bandwidth = squared.detach().median(dim=1, keepdim=True).values / math.log(x0.shape[2] - 1)
    return torch.exp(-squared / bandwidth).sum()


def test_it_is_minus_the_gradient_to_the_later_frame_of_each_pair():
    x0 = random_x0().requires_grad_()
    (gradient,) = torch.autograd.grad(kernels(x0, x0.detach()), x0)
    torch.testing.assert_close(mitigating_gradient(x0.detach()), -gradient, rtol=0, atol=1e-12)


def test_both_is_minus_the_gradient_to_all_frames():
    x0 = random_x0().requires_grad_()
    (gradient,) = torch.autograd.grad(kernels(x0, x0), x0)
    found = mitigating_gradient(x0.detach(), both=True)
    torch.testing.assert_close(found, -gradient, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.sum(dim=2), torch.zeros_like(found[:, :, 0]), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "x0",
    [random_x0(frames=1), random_x0(frames=2), random_x0(frames=1).expand(-1, -1, 8, -1, -1), scalar(0, 0, 0, 0, 5)],
    ids=["one", "two", "identical", "mostly identical"],
)
def test_where_there_is_no_bandwidth_nothing_moves(x0):
    assert not mitigating_gradient(x0).any() and not mitigating_gradient(x0, both=True).any()


def test_each_video_has_a_bandwidth_of_its_own():
    x0 = random_x0()
    x0[1] *= 100
    found = mitigating_gradient(x0)
    for one in (0, 1):
        torch.testing.assert_close(found[one : one + 1], mitigating_gradient(x0[one : one + 1]))
    still = torch.cat([x0[:1], x0[:1, :, :1].expand(-1, -1, 6, -1, -1)])
    assert mitigating_gradient(still)[0].any() and not mitigating_gradient(still)[1].any()


@pytest.mark.parametrize("schedule", [SD, LinearPath()], ids=["stable diffusion", "linear path"])
def test_x0_moves_by_the_ratio_and_noise_and_latents_stay_consistent(schedule):
    x0, epsilon = random_x0(), random_x0()
    path = schedule.coefficients(torch.tensor([0.4, 0.9], dtype=torch.float64)).like(x0)
    ratio = path.sigma / path.alpha
    found = MitigatingGradient(NoGuidance(), scale=40.0).corrected(Denoised(x0, epsilon), path)
    shift = 40 * ratio * mitigating_gradient(x0)
    torch.testing.assert_close(found.epsilon, epsilon + shift)
    torch.testing.assert_close(found.x0, x0 - ratio * shift)
    z = path.alpha * x0 + path.sigma * epsilon
    torch.testing.assert_close(path.alpha * found.x0 + path.sigma * found.epsilon, z)
    little = MitigatingGradient(NoGuidance(), scale=0.01).corrected(Denoised(x0, epsilon), path).x0
    assert (little.diff(dim=2).square().sum(dim=(1, 2, 3, 4)) < x0.diff(dim=2).square().sum(dim=(1, 2, 3, 4))).all()


def test_pure_noise_tells_nothing_of_frames():
    x0, epsilon = random_x0(), random_x0()
    path = LinearPath().coefficients(torch.ones(2, dtype=torch.float64)).like(x0)
    found = MitigatingGradient(NoGuidance()).corrected(Denoised(x0, epsilon), path)
    assert torch.equal(found.x0, x0) and torch.equal(found.epsilon, epsilon)
    path = LinearPath().coefficients(torch.full((2,), 0.97, dtype=torch.float64)).like(x0)  # sigma / alpha = 32
    assert torch.equal(MitigatingGradient(NoGuidance()).corrected(Denoised(x0, epsilon), path).x0, x0)
    wider = MitigatingGradient(NoGuidance(), max_ratio=40.0).corrected(Denoised(x0, epsilon), path)
    assert not torch.equal(wider.x0, x0)


def test_ratios_of_the_paper_stay_below_the_limit():
    for betas, largest, at_961 in (
        (LinearBetas(1000, 0.00085, 0.012), 25.15, 20.062),
        (ScaledLinearBetas(), 14.61, 11.676),
    ):
        path = VariancePreserving(betas).coefficients(torch.tensor([1.0, 0.962], dtype=torch.float64))
        ratio = (path.sigma / path.alpha).tolist()
        assert ratio == [pytest.approx(largest, abs=5e-3), pytest.approx(at_961, abs=5e-4)]
        assert ratio[0] < MitigatingGradient(NoGuidance()).max_ratio


# in sampling


def objective(parameterization, schedule) -> GaussianObjective:
    return GaussianObjective(schedule, parameterization, Constant(), Uniform())


def backbone(input) -> DenoiserOutput:
    return DenoiserOutput(0.5 * torch.sin(2 * input.latents) + 0.1)


SOLVERS = [Euler(), Heun(), DDIM(0.5), DPMSolverPlusPlus2M()]
OBJECTIVES = [objective(Epsilon(), SD), objective(Velocity(), LinearPath())]


@pytest.mark.parametrize(("solver", "trained"), itertools.product(SOLVERS, OBJECTIVES))
@pytest.mark.parametrize("frames", [1, 2, 5])
def test_every_solver_and_objective_takes_it(solver, trained, frames):
    draw = KeyedRNG(0, ("a",), (0,))
    noise, conditions = draw.normal("noise", (2, frames, 3, 3)), {"full": Conditions(), "null": Conditions()}
    inner, sampler = ClassifierFreeGuidance(3.0), GaussianSampler(solver, 6)
    plain, found, off = (
        sampler.sample(backbone, trained, guidance, noise, conditions, draw=draw)
        for guidance in (inner, MitigatingGradient(inner), MitigatingGradient(inner, scale=0.0))
    )
    assert found.isfinite().all() and torch.equal(off, plain)
    assert torch.equal(found, plain) == (frames < 3)


def test_the_clean_latents_are_those_after_guidance():
    z, conditions = random_x0().float(), {"full": Conditions(), "null": Conditions()}
    inner = ClassifierFreeGuidance(3.0)
    plain = GuidedDenoiser(backbone, SD, Epsilon(), inner, conditions)(z, 0.5)
    found = GuidedDenoiser(backbone, SD, Epsilon(), MitigatingGradient(inner), conditions)(z, 0.5)
    path = SD.coefficients(torch.tensor(0.5))
    shift = 40 * path.sigma / path.alpha * mitigating_gradient(plain.x0)
    torch.testing.assert_close(found.epsilon - plain.epsilon, shift, rtol=1e-4, atol=1e-6)


def test_given_frames_stay():
    z = random_x0(frames=6).float()
    mask = torch.zeros(2, 1, 6, 1, 1)
    mask[:, :, 2] = 1
    known = Conditions(known=KnownLatents(torch.zeros_like(z), mask))
    conditions = {"full": known, "null": Conditions()}
    inner = ClassifierFreeGuidance(3.0)
    plain, found = (
        GuidedDenoiser(backbone, SD, Epsilon(), guidance, conditions)(z, 0.5)
        for guidance in (inner, MitigatingGradient(inner))
    )
    for before, after in ((plain.x0, found.x0), (plain.epsilon, found.epsilon)):
        assert torch.equal(before[:, :, 2], after[:, :, 2]) and not torch.equal(before[:, :, 3], after[:, :, 3])


# the scale of the paper


def test_strong_guidance_down_to_a_level():
    scale = EarlyScale(15.0, 10.0, 7.5, 0.7)
    assert [scale.at(t) for t in (1.0, 0.85, 0.7, 0.699, 0.0)] == [15, pytest.approx(12.5), 10, 7.5, 7.5]
    assert EarlyScale(12.0, 12.0).at(0.8) == 12


@pytest.mark.parametrize("spacing", [Leading(offset=1, end="first")])
def test_seven_of_25_steps_are_strong(spacing):
    times = spacing.times(25, SD)[:-1]
    assert [round(1000 * t - 1) for t in times[:3]] == [961, 921, 881] and len(times) == 25
    assert sum(EarlyScale().at(t) > 7.5 for t in times) == 7


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EarlyScale(start=-1.0), r"guidance\.scale\.start=-1\.0"),
        (lambda: EarlyScale(until=1.0), r"guidance\.scale\.until=1\.0"),
        (lambda: MitigatingGradient(NoGuidance(), scale=-1.0), r"guidance\.scale=-1\.0"),
        (lambda: MitigatingGradient(NoGuidance(), max_ratio=0.0), r"guidance\.max_ratio=0\.0"),
    ],
)
def test_settings_out_of_range(make, message):
    with pytest.raises(UserError, match=message):
        make()


# what goes with it


@pytest.mark.parametrize("outer", [lambda inner: Interval(inner, 0.2, 0.8), lambda inner: Rescale(Rescale(inner))])
def test_within_another_guidance_it_is_refused(outer):
    guidance = outer(MitigatingGradient(NoGuidance()))
    with pytest.raises(UserError, match=r"MitigatingGradient stands within .*, where it would not act"):
        check_belong(OBJECTIVES[0], GaussianSampler(Euler()), guidance)


def test_frame_by_frame_it_is_refused():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", ["objective=pyramid_flow"])
    trained, sampler = instantiate(cfg.objective, "objective"), instantiate(cfg.sampler, "sampler")
    assert isinstance(trained, PyramidFlow)
    with pytest.raises(UserError, match="compares all frames of a video"):
        check_belong(trained, sampler, MitigatingGradient(ClassifierFreeGuidance()))


def test_the_guidance_within_is_chosen_by_name():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", ["guidance=mitigating_gradient", "guidance@guidance.inner=cfg_early"])
    found = instantiate(cfg.guidance, "guidance")
    assert found == MitigatingGradient(ClassifierFreeGuidance(EarlyScale()))
