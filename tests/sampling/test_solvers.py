import itertools
import math
from collections.abc import Callable

import pytest
import torch

from vidlab.diffusion.betas import LinearBetas, ZeroTerminalSNR
from vidlab.diffusion.parameterizations import Denoised, Velocity, VPrediction, X0Prediction, noised
from vidlab.diffusion.schedules import LinearPath, Schedule, VariancePreserving
from vidlab.errors import UserError
from vidlab.sampling.solvers import DDIM, AncestralEuler, DPMSolverPlusPlus2M, Euler, Heun, Solver, level

ZERO_SNR = VariancePreserving(ZeroTerminalSNR(LinearBetas()))
DDPM = VariancePreserving(LinearBetas())
SCHEDULES = {"linear": LinearPath(), "zero_snr": ZERO_SNR, "ddpm": DDPM}
SOLVERS = [Euler(), Heun(), DDIM(), DDIM(1.0), AncestralEuler(), DPMSolverPlusPlus2M()]
schedules = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
solvers = pytest.mark.parametrize("solver", SOLVERS, ids=repr)
MEAN, STD = 0.7, 0.4
NOISE = torch.linspace(-2, 2, 24, dtype=torch.float64).view(1, 1, 1, 4, 6)


def no_noise(step: int) -> torch.Tensor:
    raise AssertionError(f"step {step} asks for noise")


def keyed_noise(shape: tuple[int, ...], dtype=torch.float64) -> Callable[[int], torch.Tensor]:
    return lambda step: torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(1000 + step))


def gaussian(schedule: Schedule, mean: float = MEAN, std: float = STD, parameterization=None):
    """The exact answer for data N(mean, std^2), by way of a parameterization if one is given."""

    def denoise(z: torch.Tensor, t: float) -> Denoised:
        path = schedule.coefficients(torch.full((z.shape[0],), t, dtype=z.dtype)).like(z)
        rest = (z - path.alpha * mean) / (path.alpha**2 * std**2 + path.sigma**2)
        answer = Denoised(mean + path.alpha * std**2 * rest, path.sigma * rest)
        if parameterization is None:
            return answer
        return parameterization.denoised(parameterization.target(answer.x0, answer.epsilon, path), z, path)

    return denoise


def run(solver: Solver, schedule: Schedule, times: list[float], z, denoise, noise=no_noise) -> torch.Tensor:
    step = solver.stepper(schedule, noise)
    for t, s in itertools.pairwise(times):
        z = step(z, t, s, denoise)
    return z


def even(steps: int) -> list[float]:
    return torch.linspace(1, 0, steps + 1, dtype=torch.float64).tolist()


def even_in_angle(steps: int, schedule: Schedule) -> list[float]:
    """From t = 1 to 0 in equal steps of atan(sigma / alpha), in which every path is smooth; a table's t is not."""
    alpha, sigma = level(schedule, 1.0)
    angles = torch.linspace(math.atan2(sigma, alpha), 0, steps + 1, dtype=torch.float64)[1:-1]
    return [1.0, *schedule.t_at_log_snr(-2 * angles.tan().log()).tolist(), 0.0]


def even_in_log_snr(steps: int, schedule: Schedule) -> list[float]:
    """Within the path, from a log SNR of -6 to 6."""
    return schedule.t_at_log_snr(torch.linspace(-6, 6, steps + 1, dtype=torch.float64)).tolist()


def error_at(solver: Solver, schedule: Schedule, times: list[float], parameterization=None) -> float:
    z = level(schedule, times[0])[1] * NOISE
    found = run(solver, schedule, times, z, gaussian(schedule, parameterization=parameterization))

    def closed_form(t: float, constant: torch.Tensor | float) -> torch.Tensor:
        # z_t = alpha mean + sqrt(alpha^2 std^2 + sigma^2) c with constant c solves the ODE
        alpha, sigma = level(schedule, t)
        return alpha * MEAN + math.sqrt(alpha**2 * STD**2 + sigma**2) * constant

    zero, one = closed_form(times[0], torch.zeros_like(NOISE)), closed_form(times[0], torch.ones_like(NOISE))
    return (found - closed_form(times[-1], (z - zero) / (one - zero))).abs().max().item()


@schedules
@pytest.mark.parametrize(
    ("solver", "order"),
    [(Euler(), 1), (DDIM(), 1), (AncestralEuler(0.0), 1), (Heun(), 2), (DPMSolverPlusPlus2M(), 2)],
    ids=repr,
)
def test_the_order_of_convergence_to_the_gaussian_solution(solver, order, schedule):
    errors = [error_at(solver, schedule, even_in_log_snr(steps, schedule)) for steps in (100, 200)]
    assert order - 0.1 < math.log2(errors[0] / errors[1]) < order + 0.1
    assert errors[1] < (0.02 if order == 1 else 1e-3)


@schedules
@pytest.mark.parametrize(
    # the multistep solver's first and last steps are long in log SNR, so that it nears its second order slowly
    ("solver", "low", "high"),
    [(Euler(), 0.9, 1.1), (Heun(), 1.9, 2.1), (DPMSolverPlusPlus2M(), 1.15, 2.1)],
    ids=repr,
)
def test_from_pure_noise_to_clean_data(solver, low, high, schedule):
    errors = [error_at(solver, schedule, even_in_angle(steps, schedule)) for steps in (50, 100, 200)]
    assert errors[2] < 0.01
    for coarse, fine in itertools.pairwise(errors):
        assert low < math.log2(coarse / fine) < high


@pytest.mark.parametrize("solver", [Euler(), Heun(), DPMSolverPlusPlus2M()], ids=repr)
@pytest.mark.parametrize("parameterization", [Velocity(), VPrediction(), X0Prediction()], ids=lambda p: p.name)
def test_what_the_network_predicts_makes_no_difference(solver, parameterization):
    for schedule in (LinearPath(), ZERO_SNR):
        found, expected = (error_at(solver, schedule, even(20), kind) for kind in (parameterization, None))
        assert found == pytest.approx(expected, abs=1e-9)


@schedules
@solvers
def test_data_that_is_one_point_is_reached_at_once(solver, schedule):
    z = level(schedule, 1.0)[1] * NOISE
    for steps in (1, 2, 3):
        found = run(solver, schedule, even(steps), z, gaussian(schedule, std=0.0), keyed_noise(NOISE.shape))
        torch.testing.assert_close(found, torch.full_like(found, MEAN), rtol=0, atol=1e-9)


@schedules
@solvers
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_steps_are_finite_and_keep_the_precision_of_the_latents(solver, schedule, dtype):
    z = NOISE.to(dtype)
    in_single = gaussian(schedule, parameterization=VPrediction())

    def denoise(z, t):  # a network's answer is float32 whatever the latents are
        answer = in_single(z.float(), t)
        return Denoised(answer.x0, answer.epsilon)

    found = run(solver, schedule, even(7), z, denoise, keyed_noise(NOISE.shape))
    assert found.dtype == dtype and found.isfinite().all()
    assert isinstance(solver, Solver)


@schedules
def test_euler_ddim_and_ancestral_are_one_step(schedule):
    z = level(schedule, 1.0)[1] * NOISE
    arguments = (schedule, even(6), z, gaussian(schedule), keyed_noise(NOISE.shape))
    without = [run(solver, *arguments) for solver in (Euler(), DDIM(0.0), AncestralEuler(0.0))]
    for other in without[1:]:
        torch.testing.assert_close(other, without[0], rtol=0, atol=1e-12)
    for eta in (0.3, 1.0):
        torch.testing.assert_close(
            run(DDIM(eta), *arguments), run(AncestralEuler(eta), *arguments), rtol=0, atol=1e-12
        )  # fmt: skip
    assert (run(DDIM(1.0), *arguments) - without[0]).abs().max() > 0.1


@schedules
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0, 1.5])
def test_ancestral_is_that_of_k_diffusion(schedule, eta):
    t, s = 0.8, 0.5
    (alpha_t, sigma_t), (alpha_s, sigma_s) = level(schedule, t), level(schedule, s)
    r_t, r_s = sigma_t / alpha_t, sigma_s / alpha_s
    up = min(r_s, eta * math.sqrt(r_s**2 * (r_t**2 - r_s**2) / r_t**2))
    down = math.sqrt(r_s**2 - up**2)
    answer, noise = gaussian(schedule)(NOISE, t), keyed_noise(NOISE.shape)
    y = NOISE / alpha_t
    expected = alpha_s * (y + (down - r_t) * (y - answer.x0) / r_t + up * noise(0))
    found = AncestralEuler(eta).stepper(schedule, noise)(NOISE, t, s, gaussian(schedule))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_by_the_published_formula(eta):
    # Song et al. 2021, eq. 12 and 16, with their alpha our alpha^2
    t, s = 0.8, 0.5
    now, then = (level(DDPM, at)[0] ** 2 for at in (t, s))
    spread = eta * math.sqrt((1 - then) / (1 - now)) * math.sqrt(1 - now / then)
    answer, noise = gaussian(DDPM)(NOISE, t), keyed_noise(NOISE.shape)
    expected = math.sqrt(then) * (NOISE - math.sqrt(1 - now) * answer.epsilon) / math.sqrt(now)
    expected = expected + math.sqrt(1 - then - spread**2) * answer.epsilon + spread * noise(0)
    found = DDIM(eta).stepper(DDPM, noise)(NOISE, t, s, gaussian(DDPM))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


@schedules
@pytest.mark.parametrize("solver", [DDIM(0.5), DDIM(1.0), AncestralEuler(), AncestralEuler(3.0)], ids=repr)
def test_one_noisy_step_keeps_the_marginal(solver, schedule):
    # data that is one point: z_t ~ N(alpha mean, sigma^2) goes to N(alpha_s mean, sigma_s^2) exactly
    t, s = 0.9, 0.4
    shape = (1, 1, 1, 200, 200)
    z = noised(torch.full(shape, MEAN), torch.randn(shape), schedule.coefficients(torch.full((1, 1, 1, 1, 1), t)))
    moved = solver.stepper(schedule, keyed_noise(shape, torch.float32))(z, t, s, gaussian(schedule, std=0.0))
    alpha, sigma = level(schedule, s)
    assert moved.mean().item() == pytest.approx(alpha * MEAN, abs=5 * sigma / 200)
    assert moved.std().item() == pytest.approx(sigma, rel=0.02)


@schedules
@pytest.mark.parametrize("solver", [DDIM(1.0), AncestralEuler()], ids=repr)
def test_many_noisy_steps_sample_the_data(solver, schedule):
    shape = (1, 1, 1, 100, 100)
    alpha, sigma = level(schedule, 1.0)
    z = alpha * MEAN + math.sqrt(alpha**2 * STD**2 + sigma**2) * torch.randn(shape)
    times = even_in_angle(200, schedule)
    found = run(solver, schedule, times, z, gaussian(schedule), keyed_noise(shape, torch.float32))
    assert found.mean().item() == pytest.approx(MEAN, abs=0.02)
    assert found.std().item() == pytest.approx(STD, rel=0.04)
    # the noise is fresh: little is left of where the sample started
    correlation = torch.corrcoef(torch.stack([found.flatten(), z.flatten()]))[0, 1]
    assert correlation.abs() < 0.05


def test_noise_is_asked_for_by_the_number_of_the_step():
    asked = []

    def noise(step: int) -> torch.Tensor:
        asked.append(step)
        return torch.zeros_like(NOISE)

    solver = DDIM(1.0)
    for _ in range(2):  # a run starts anew
        run(solver, LinearPath(), even(4), NOISE, gaussian(LinearPath()), noise)
    assert asked == [0, 1, 2, 0, 1, 2]  # the step to clean data has no noise to add


def test_a_run_remembers_nothing_of_the_one_before():
    solver = DPMSolverPlusPlus2M()
    first, second = (run(solver, DDPM, even(5), NOISE, gaussian(DDPM)) for _ in range(2))
    assert torch.equal(first, second)


def test_evaluations():
    seen = []

    def denoise(z, t):
        seen.append(t)
        return gaussian(LinearPath())(z, t)

    for solver in (Euler(), DPMSolverPlusPlus2M(), Heun()):
        run(solver, LinearPath(), [1.0, 0.5, 0.25, 0.0], NOISE, denoise)
    assert seen == [1, 0.5, 0.25, 1, 0.5, 0.25, 1, 0.5, 0.5, 0.25, 0.25]


@pytest.mark.parametrize(
    ("make", "message"),
    [(lambda: DDIM(1.1), "eta=1.1"), (lambda: DDIM(-0.1), "eta=-0.1"), (lambda: AncestralEuler(-1.0), "eta=-1")],
)
def test_the_share_of_fresh_noise(make, message):
    with pytest.raises(UserError, match=rf"sampler\.solver\.{message}"):
        make()
