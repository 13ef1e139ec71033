"""Step by step beside diffusers, wherever the formulas are the same. It computes in float32, hence the tolerances."""

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from vidlab.clip import Conditions, DenoiserInput, DenoiserOutput
from vidlab.diffusion.betas import CosineBetas, LinearBetas, ScaledLinearBetas, ZeroTerminalSNR
from vidlab.diffusion.gaussian import GaussianObjective
from vidlab.diffusion.parameterizations import Denoised, Epsilon, Velocity, VPrediction
from vidlab.diffusion.schedules import BoundedAlpha, LinearPath, PathCoefficients, VariancePreserving
from vidlab.diffusion.time_samplers import Uniform
from vidlab.diffusion.weightings import Constant
from vidlab.lab.cli.hydra_main import instantiate
from vidlab.randomness import KeyedRNG
from vidlab.sampling.gaussian import GaussianSampler
from vidlab.sampling.guidance import NoGuidance
from vidlab.sampling.solvers import DDIM, AncestralEuler, DPMSolverPlusPlus2M, Euler, Heun, Solver, level
from vidlab.sampling.spacings import Karras, Leading, Linspace, Trailing

diffusers = pytest.importorskip("diffusers")

CONF = Path(__file__).parents[2] / "conf"
DDPM = VariancePreserving(LinearBetas())
ZERO_SNR = VariancePreserving(ZeroTerminalSNR(LinearBetas()))
START = torch.linspace(-2, 2, 24).view(1, 1, 1, 4, 6)
VIDEO_V = {"prediction_type": "v_prediction", "timestep_spacing": "trailing"}


def network(z: torch.Tensor) -> torch.Tensor:
    """Stands for any network; both sides read the same latents through it."""
    return 0.5 * torch.sin(2 * z) + 0.1


def denoiser(schedule, parameterization) -> Callable:
    def denoise(z: torch.Tensor, t: float) -> Denoised:
        path = schedule.coefficients(torch.full((z.shape[0],), t, dtype=torch.float64)).like(z)
        return parameterization.denoised(network(z), z, path)

    return denoise


def trajectory(solver: Solver, schedule, times: list[float], parameterization, noises=()) -> list[torch.Tensor]:
    step, z = solver.stepper(schedule, lambda number: noises[number]), START
    seen = []
    for t, s in itertools.pairwise(times):
        z = step(z, t, s, denoiser(schedule, parameterization))
        seen.append(z)
    return seen


def same(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    assert len(found) == len(expected) > 3
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-4)


def noises(count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(START.shape, generator=generator) for _ in range(count)]


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("schedule", [DDPM, ZERO_SNR], ids=["ddpm", "zero_snr"])
def test_ddim(eta, schedule):
    scheduler = diffusers.DDIMScheduler(
        beta_schedule="linear", clip_sample=False, rescale_betas_zero_snr=schedule is ZERO_SNR, **VIDEO_V
    )
    scheduler.set_timesteps(20)
    z, expected, given = START, [], noises(20)
    for number, t in enumerate(scheduler.timesteps):
        z = scheduler.step(network(z), int(t), z, eta=eta, variance_noise=given[number]).prev_sample
        expected.append(z)
    same(trajectory(DDIM(eta), schedule, Trailing().times(20, schedule), VPrediction(), given), expected)


def in_ratio_space(scheduler, schedule, times: list[float], **settings) -> list[torch.Tensor]:
    """Runs a scheduler that keeps z / alpha, and returns z."""
    alphas = [level(schedule, t)[0] for t in times]
    y, seen = START / alphas[0], []
    for t, now, then in zip(scheduler.timesteps, alphas[:-1], alphas[1:], strict=True):
        z = scheduler.scale_model_input(y, t)
        torch.testing.assert_close(z, now * y, rtol=1e-4, atol=1e-6)
        y = scheduler.step(network(z), t, y, **settings).prev_sample
        seen.append(then * y)
    return seen


def test_euler_discrete():
    scheduler = diffusers.EulerDiscreteScheduler(beta_schedule="linear", **VIDEO_V)
    scheduler.set_timesteps(20)
    times = Trailing().times(20, DDPM)
    same(trajectory(Euler(), DDPM, times, VPrediction()), in_ratio_space(scheduler, DDPM, times))


def test_euler_ancestral_discrete():
    scheduler = diffusers.EulerAncestralDiscreteScheduler(beta_schedule="linear", **VIDEO_V)
    scheduler.set_timesteps(20)
    times = Trailing().times(20, DDPM)
    expected = in_ratio_space(scheduler, DDPM, times, generator=torch.Generator().manual_seed(3))
    same(trajectory(AncestralEuler(), DDPM, times, VPrediction(), noises(20)), expected)


def test_the_published_start_of_open_sora_plan():
    # diffusers gives a schedule of zero terminal SNR alpha = 2^-12 at t = 1, where the paper has 0
    settings = {"beta_schedule": "linear", "rescale_betas_zero_snr": True, **VIDEO_V}
    scheduler = diffusers.EulerAncestralDiscreteScheduler(**settings)
    scheduler.set_timesteps(20)
    schedule, times = BoundedAlpha(ZERO_SNR, 2.0**-12), Trailing().times(20, ZERO_SNR)
    assert level(schedule, 1.0) == (2.0**-12, pytest.approx(1 - 2.0**-25, abs=1e-12))
    expected = in_ratio_space(scheduler, schedule, times, generator=torch.Generator().manual_seed(3))
    found = trajectory(AncestralEuler(), schedule, times, VPrediction(), noises(20))
    torch.testing.assert_close(found[0], expected[0], rtol=0, atol=2e-3)  # float32 at sigma / alpha = 4096
    as_in_the_paper = trajectory(AncestralEuler(), ZERO_SNR, times, VPrediction(), noises(20))
    assert not torch.allclose(as_in_the_paper[0], expected[0], rtol=0, atol=2e-3)


# beta tables of Stable Diffusion, and of AnimateDiff and HARIVO, by diffusers' names
SD_BETAS = {"scaled_linear": ScaledLinearBetas(), "linear": LinearBetas(1000, 0.00085, 0.012)}


def sd_scheduler(betas: str) -> diffusers.DDIMScheduler:
    settings = {"beta_schedule": betas, "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False}
    return diffusers.DDIMScheduler(steps_offset=1, set_alpha_to_one=False, **settings)


@pytest.mark.parametrize(("steps", "betas"), itertools.product([10, 25, 50], SD_BETAS))
def test_ddim_of_stable_diffusion(steps, betas):
    scheduler = sd_scheduler(betas)
    scheduler.set_timesteps(steps)
    schedule, spacing = VariancePreserving(SD_BETAS[betas]), Leading(offset=1, end="first")
    times = spacing.times(steps, schedule)
    assert [round(1000 * t - 1) for t in times[:-1]] == scheduler.timesteps.tolist() and times[-1] == 1 / 1000
    z, expected = START * scheduler.init_noise_sigma, []
    for t in scheduler.timesteps:
        z = scheduler.step(network(z), int(t), z).prev_sample
        expected.append(z)
    same(trajectory(DDIM(), schedule, times, Epsilon()), expected)


@pytest.mark.parametrize(("betas", "eta"), itertools.product(SD_BETAS, [0.0, 1.0]))
def test_the_shipped_ddim_of_stable_diffusion_is_diffusers_from_noise_to_result(betas, eta):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", ["sampler=ddim_stable_diffusion", "sampler.steps=25", f"sampler.solver.eta={eta}"])
    sampler = instantiate(cfg.sampler, "sampler")
    scheduler, draw = sd_scheduler(betas), KeyedRNG(0, ("a",), (0,))
    scheduler.set_timesteps(25)
    assert scheduler.timesteps.tolist() == list(range(961, 0, -40))
    noise, seen = draw.normal("noise", tuple(START.shape[1:])), []

    def backbone(input: DenoiserInput) -> DenoiserOutput:
        seen.append((input.t.item(), input.embedded_t.item(), input.latents))
        return DenoiserOutput(network(input.latents))

    objective = GaussianObjective(VariancePreserving(SD_BETAS[betas]), Epsilon(), Constant(), Uniform())
    found = sampler.sample(backbone, objective, NoGuidance(), noise, {"full": Conditions()}, draw=draw)
    z = noise * scheduler.init_noise_sigma  # 1, though the first level is not pure noise
    for step, (t, (level_t, embedded, latents)) in enumerate(zip(scheduler.timesteps, seen, strict=True)):
        assert (level_t, embedded) == (pytest.approx((int(t) + 1) / 1000), pytest.approx(int(t), abs=1e-3))
        torch.testing.assert_close(latents, z, rtol=0, atol=2e-4)
        fresh = draw.normal(f"step{step}", tuple(START.shape[1:]))
        z = scheduler.step(network(z), int(t), z, eta=eta, variance_noise=fresh).prev_sample
    torch.testing.assert_close(found, z, rtol=0, atol=2e-4)


@pytest.mark.parametrize("steps", [10, 20])
def test_dpm_solver_multistep(steps):
    scheduler = diffusers.DPMSolverMultistepScheduler(beta_schedule="linear", final_sigmas_type="zero", **VIDEO_V)
    scheduler.set_timesteps(steps)
    z, expected = START, []
    for t in scheduler.timesteps:
        z = scheduler.step(network(z), t, z).prev_sample
        expected.append(z)
    same(trajectory(DPMSolverPlusPlus2M(), DDPM, Trailing().times(steps, DDPM), VPrediction()), expected)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_match_euler(shift):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(20, sigmas=Trailing().times(20, LinearPath())[:-1])
    times = GaussianSampler(Euler(), 20, shift).times(LinearPath())
    torch.testing.assert_close(torch.tensor(times), scheduler.sigmas)
    z, expected = START, []
    for t in scheduler.timesteps:
        z = scheduler.step(network(z), t, z).prev_sample
        expected.append(z)
    same(trajectory(Euler(), LinearPath(), times, Velocity()), expected)


def test_flow_match_heun():
    scheduler = diffusers.FlowMatchHeunDiscreteScheduler()
    scheduler.set_timesteps(10)
    z, expected = START, []
    for number, t in enumerate(scheduler.timesteps):
        z = scheduler.step(network(z), t, z).prev_sample
        if number % 2 or number == len(scheduler.timesteps) - 1:  # every other call only looks ahead
            expected.append(z)
    times = [*scheduler.sigmas[:-1].tolist()[::2], 0.0]
    same(trajectory(Heun(), LinearPath(), times, Velocity()), expected)


class Exploding:
    """alpha = 1 and sigma = t, so that z is what schedulers in ratio space keep."""

    def coefficients(self, t: torch.Tensor) -> PathCoefficients:
        return PathCoefficients(torch.ones_like(t), t, torch.zeros_like(t), torch.ones_like(t))

    def embedded(self, t: torch.Tensor) -> torch.Tensor:
        return t

    def t_at_log_snr(self, log_snr: torch.Tensor) -> torch.Tensor:
        return (-log_snr / 2).exp()


def test_heun_discrete():
    # diffusers integrates z / alpha with the trapezoidal rule, which differs from integrating z; on a path with
    # alpha = 1 the two are one
    scheduler = diffusers.HeunDiscreteScheduler(beta_schedule="linear", timestep_spacing="trailing")
    scheduler.set_timesteps(10)
    y, expected = START * scheduler.sigmas[0], []

    def noise_of(y: torch.Tensor, t: float) -> torch.Tensor:
        return network(y / (1 + t**2) ** 0.5)

    for number, t in enumerate(scheduler.timesteps):
        y = scheduler.step(network(scheduler.scale_model_input(y, t)), t, y).prev_sample
        if number % 2 or number == len(scheduler.timesteps) - 1:
            expected.append(y)
    z, found = START * scheduler.sigmas[0], []
    step = Heun().stepper(Exploding(), lambda number: START)
    times = [*scheduler.sigmas[:-1].tolist()[::2], 0.0]
    for t, s in itertools.pairwise(times):
        z = step(z, t, s, lambda z, t: Denoised(z - t * noise_of(z, t), noise_of(z, t)))
        found.append(z)
    same(found, expected)


@pytest.mark.parametrize(
    ("spacing", "name", "steps"),
    [(Leading(), "leading", n) for n in (1, 7, 20, 50)]
    + [(Linspace(), "linspace", n) for n in (2, 7, 20, 50)]
    + [(Trailing(), "trailing", n) for n in (1, 8, 20, 50)],
)
def test_spacings(spacing, name, steps):
    scheduler = diffusers.DDIMScheduler(timestep_spacing=name)
    scheduler.set_timesteps(steps)
    found = [1000 * t - 1 for t in spacing.times(steps, DDPM)[:-1]]
    assert found == pytest.approx(scheduler.timesteps.tolist(), abs=1e-9)


def test_karras_spacing():
    scheduler = diffusers.EulerDiscreteScheduler(beta_schedule="linear", use_karras_sigmas=True)
    scheduler.set_timesteps(12)
    ratios = [sigma / alpha for alpha, sigma in (level(DDPM, t) for t in Karras().times(12, DDPM))]
    torch.testing.assert_close(torch.tensor(ratios), scheduler.sigmas, rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    ("betas", "settings"),
    [
        (LinearBetas(), {"beta_schedule": "linear"}),
        (ScaledLinearBetas(), {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}),
        (CosineBetas(), {"beta_schedule": "squaredcos_cap_v2"}),
        (ZeroTerminalSNR(LinearBetas()), {"beta_schedule": "linear", "rescale_betas_zero_snr": True}),
    ],
    ids=lambda x: type(x).__name__,
)
def test_betas(betas, settings):
    expected = diffusers.DDIMScheduler(**settings).betas
    torch.testing.assert_close(betas.values().float(), expected, rtol=1e-3, atol=1e-6)
