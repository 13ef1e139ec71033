"""Checks 1, 2, 4 and 5: the published table of stages, the jump between them, and the flow within one."""

import itertools

import pytest
import torch

from vidlab.diffusion.pyramid_resolutions import doubled, halved, latent_pyramid, noise_pyramid
from vidlab.diffusion.pyramid_stages import Jump, equal_bounds, euler_points, stage_table
from vidlab.errors import UserError

TABLE = stage_table(equal_bounds(3))


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    ("number", "start", "end", "t_start", "t_end"),
    [(0, 1.0, 0.667, 1000, 744), (1, 0.80024, 0.334, 744, 386), (2, 0.50075, 0.0, 386, 1)],
)
def test_the_published_table(number, start, end, t_start, t_end):
    stage = TABLE[number]
    assert (stage.sigma_start, stage.sigma_end) == pytest.approx((start, end), abs=1e-5)
    assert (stage.t_start, stage.t_end) == (t_start, t_end)


def test_shares_of_the_embedded_numbers():
    lengths = [stage.sigma_start - stage.sigma_end for stage in TABLE]
    assert lengths[0] / sum(lengths) == pytest.approx(0.25616, abs=1e-5)
    assert sum(lengths[:2]) / sum(lengths) == pytest.approx(0.61480, abs=1e-5)


def test_two_stages_by_hand():
    """e = 1/2: alpha = 1 / 1.5, so the second begins at 1 - 1/3; lengths 1/2 and 2/3, so a share of 3/7."""
    first, second = stage_table(equal_bounds(2))
    assert (first.sigma_end, second.sigma_start, second.jump.alpha) == pytest.approx((0.5, 2 / 3, 2 / 3))
    assert (first.t_end, second.t_start) == (1000 - 428, 1000 - 428)


def test_one_stage_is_plain_flow_matching():
    (only,) = stage_table(equal_bounds(1))
    assert (only.sigma_start, only.sigma_end, only.t_start, only.t_end, only.jump) == (1.0, 0.0, 1000, 1, None)


@pytest.mark.parametrize(("number", "alpha", "beta"), [(1, 0.599880, 0.693028), (2, 0.749625, 0.433662)])
def test_published_jumps(number, alpha, beta):
    jump = TABLE[number].jump
    assert (jump.alpha, jump.beta) == pytest.approx((alpha, beta), abs=1e-6)


@pytest.mark.parametrize("gamma", [0.05, 0.2, 1 / 3])
@pytest.mark.parametrize("number", [1, 2])
def test_a_jump_arrives_at_the_mean_and_covariance_of_the_start(number, gamma):
    table = stage_table(equal_bounds(3), gamma=gamma)
    before, stage = table[number - 1], table[number]
    alpha, beta = stage.jump.alpha, stage.jump.beta
    assert alpha * (1 - before.sigma_end) == pytest.approx(1 - stage.sigma_start, abs=1e-12)
    assert beta * gamma**0.5 == pytest.approx(alpha * before.sigma_end, abs=1e-12)  # off the diagonal
    assert beta * (1 + gamma) ** 0.5 == pytest.approx(stage.sigma_start, abs=1e-12)  # on it


def test_after_a_jump_noise_is_independent_again():
    """Var 0.64038 at stage 1 and nothing off the diagonal, over 200 000 blocks."""
    before, stage = TABLE[0], TABLE[1]
    low = before.sigma_end * normal(1, 1, 1, 100, 2000)
    z = stage.jump.apply(low, normal(1, 1, 1, 200, 4000, seed=1))
    blocks = z[0, 0, 0].unfold(0, 2, 2).unfold(1, 2, 2).reshape(-1, 4)
    covariance = blocks.T @ blocks / len(blocks)
    torch.testing.assert_close(covariance, 0.64038 * torch.eye(4, dtype=torch.float64), atol=0.01, rtol=0)


@pytest.fixture(params=[0, 1, 2])
def piece(request):
    latents = latent_pyramid(normal(2, 3, 1, 8, 12), 3)
    noise = noise_pyramid(normal(2, 3, 1, 8, 12, seed=1), 3)
    number = request.param
    coarser = latents[number - 1] if number else None
    return TABLE[number], TABLE[number].flow(latents[number], noise[number], coarser), latents[number], noise[number]


def test_both_ends(piece):
    _, flow, _, _ = piece
    one = torch.ones(2, dtype=torch.float64)
    torch.testing.assert_close(flow.at(one), flow.start, atol=0, rtol=0)
    torch.testing.assert_close(flow.at(0 * one), flow.end, atol=0, rtol=0)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_exact_steps_lead_from_start_to_end(piece, count):
    _, flow, _, _ = piece
    z = flow.start
    for here, there in itertools.pairwise(euler_points(count)):
        z = z + (there - here) * flow.velocity
    torch.testing.assert_close(z, flow.end, atol=1e-12, rtol=0)


@pytest.mark.parametrize("r", [1.0, 0.4, 0.0])
def test_clean_latents_of_an_exact_prediction(piece, r):
    stage, flow, latents, noise = piece
    level = torch.full((2,), r, dtype=torch.float64)
    found = stage.latents_of(flow.at(level) - r * flow.velocity, noise)
    torch.testing.assert_close(found, latents, atol=1e-12, rtol=0)


def test_the_end_of_a_stage_jumps_to_the_next_start_in_distribution():
    """Without noise both are (1 - sigma_start) Up(x): the jump moves the mean exactly."""
    latents, zero = latent_pyramid(normal(1, 1, 1, 4, 4), 2), torch.zeros(1, 1, 1, 4, 4, dtype=torch.float64)
    first, second = stage_table(equal_bounds(2))
    end = first.flow(latents[0], halved(zero), None).end
    start = second.flow(latents[1], zero, latents[0]).start
    torch.testing.assert_close(second.jump.apply(end, zero), start, atol=1e-12, rtol=0)
    torch.testing.assert_close(start, (1 - second.sigma_start) * doubled(latents[0]), atol=1e-12, rtol=0)


def test_embedded_numbers_of_inference():
    """The last of n steps sees 744.256, 386.358 and 1.385."""
    last = torch.tensor([euler_points(20)[-2]], dtype=torch.float64)
    assert [stage.embedded(last).item() for stage in TABLE] == pytest.approx([744.256, 386.358, 1.385])
    assert euler_points(3) == pytest.approx([1.0, 0.5005, 0.001, 0.0]) and euler_points(1) == [1.0, 0.0]


@pytest.mark.parametrize("bounds", [(0.0,), (0.0, 0.5), (0.1, 1.0), (0.0, 0.5, 0.5, 1.0)])
def test_bounds_that_do_not_rise(bounds):
    with pytest.raises(UserError, match="must rise from 0 to 1"):
        stage_table(bounds)


@pytest.mark.parametrize("gamma", [0.0, 0.4, -1 / 3])
def test_gamma_out_of_range(gamma):
    with pytest.raises(UserError, match=r"objective\.gamma"):
        stage_table(equal_bounds(2), gamma=gamma)


def test_no_stage():
    with pytest.raises(UserError, match=r"objective\.stages=0"):
        equal_bounds(0)


def test_a_jump_is_differentiable():
    latents = normal(1, 1, 1, 2, 2).requires_grad_()
    jump = Jump(0.5, 0.7, 0.2)
    assert torch.autograd.gradcheck(lambda z: jump.apply(z, normal(1, 1, 1, 4, 4)), (latents,))
