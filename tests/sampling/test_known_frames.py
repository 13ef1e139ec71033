"""Sampling with given latents: they are put in at each step, and guidance never reads an untrained prediction."""

from dataclasses import replace

import pytest
import torch

from vidlab.clip import Conditions, Controls, DenoiserInput, DenoiserOutput, KnownLatents
from vidlab.diffusion.gaussian import GaussianObjective
from vidlab.diffusion.parameterizations import Velocity
from vidlab.diffusion.schedules import LinearPath
from vidlab.diffusion.time_samplers import Uniform
from vidlab.diffusion.weightings import Constant
from vidlab.errors import UserError
from vidlab.sampling.gaussian import GaussianSampler
from vidlab.sampling.guidance import ClassifierFreeGuidance, Interval, NoGuidance
from vidlab.sampling.guided import GuidedDenoiser, concatenate
from vidlab.sampling.solvers import Euler, Heun

OBJECTIVE = GaussianObjective(LinearPath(), Velocity(), Constant(), Uniform())
PATH = (OBJECTIVE.schedule, OBJECTIVE.parameterization)
SHAPE = (1, 2, 3, 1, 1)


def known(value: float = 5.0, follows_image: bool = False) -> KnownLatents:
    mask = torch.tensor([1.0, 0.0, 0.0]).view(1, 1, 3, 1, 1)
    return KnownLatents(torch.full(SHAPE, value), mask, follows_image)


def conditions(given: KnownLatents) -> dict[str, Conditions]:
    return {"full": Conditions(known=given), "image": Conditions(known=given), "null": Conditions()}


class Recorder:
    """Velocity 1 in passes that see the image, 3 in those that do not, and 1000 at given frames."""

    def __init__(self) -> None:
        self.inputs: list[torch.Tensor] = []

    def __call__(self, input: DenoiserInput) -> DenoiserOutput:
        self.inputs.append(input.latents)
        sees = (input.latents[:, :, :1] == 5.0).all(dim=1, keepdim=True)
        answer = torch.where(sees, 1.0, 3.0).expand_as(input.latents).clone()
        answer[:, :, 0] = torch.where(sees[:, :, 0], 1000.0, 3.0)
        return DenoiserOutput(answer)


@pytest.mark.parametrize("solver", [Euler(), Heun()], ids=str)
@pytest.mark.parametrize("follows_image", [False, True])
@pytest.mark.parametrize("guidance", [NoGuidance(), ClassifierFreeGuidance(2.0)], ids=str)
def test_given_frames_are_in_every_input_and_in_the_result(solver, follows_image, guidance):
    backbone, noise = Recorder(), torch.randn(SHAPE)
    told = conditions(known(5.0, follows_image))
    result = GaussianSampler(solver, 4).sample(backbone, OBJECTIVE, guidance, noise, told)
    assert all((latents[0, :, 0] == 5).all() for latents in backbone.inputs)  # row 0 is the pass that sees it
    assert (result[:, :, 0] == 5).all() and result.isfinite().all() and result.abs().max() < 20
    if isinstance(guidance, ClassifierFreeGuidance):
        assert all((latents[1, :, 0] != 5).any() for latents in backbone.inputs[1:])


def test_the_unconditional_pass_has_its_own_first_frame():
    # own: its velocity 3 carries the frame along; noised: the frame follows the image's straight path from the noise
    noise = torch.zeros(SHAPE)
    for follows_image, expected in ((False, -0.75), (True, 5 * 0.25)):
        backbone = Recorder()
        GaussianSampler(Euler(), 4).sample(
            backbone, OBJECTIVE, ClassifierFreeGuidance(2.0), noise, conditions(known(5.0, follows_image))
        )
        torch.testing.assert_close(backbone.inputs[1][1, :, 0].flatten(), torch.full((2,), expected))


def test_its_own_state_is_carried_through_levels_without_guidance():
    # guidance from t = 0.5 down; before, the frame still goes along with the velocity 3 of a pass that does not see it
    backbone = Recorder()
    GaussianSampler(Euler(), 4).sample(
        backbone, OBJECTIVE, Interval(ClassifierFreeGuidance(2.0), 0.0, 0.5), torch.zeros(SHAPE), conditions(known())
    )
    states = [latents[-1, :, 0].flatten().tolist() for latents in backbone.inputs]
    assert states == [[0.0, 0.0], [-0.75, -0.75], [-1.5, -1.5], [-2.25, -2.25]]


def test_guidance_by_hand_away_from_the_given_frame():
    # null 3, full 1, scale 2: 3 + 2 (1 - 3) = -1
    denoise = GuidedDenoiser(Recorder(), *PATH, ClassifierFreeGuidance(2.0), conditions(known()))
    z = torch.zeros(SHAPE)
    denoised = denoise(z, 0.5)
    velocity = denoised.epsilon - denoised.x0
    assert velocity[0, :, 1:].unique().tolist() == [-1.0]
    assert velocity[0, :, 0].unique().tolist() == [3.0]  # and not 2000


@pytest.mark.parametrize("rows", [1, 2, 3, None])
def test_pieces_of_a_batch_give_the_same(rows):
    calls = []

    def backbone(input: DenoiserInput) -> DenoiserOutput:
        calls.append(len(input.latents))
        controls = 0 if input.controls is None else input.controls.channels
        return DenoiserOutput(input.latents * 2 + controls + input.micro["size"].view(-1, 1, 1, 1, 1))

    def controls(value: float) -> Controls:
        return Controls(torch.full((2, 2, 3, 1, 1), value), torch.zeros(2, 1, 3, 1, 1))

    given = {
        name: Conditions(controls=controls(value), micro={"size": torch.tensor([1.0, 2.0])})
        for name, value in (("full", 1.0), ("null", 0.0))
    }
    z = torch.randn(2, 2, 3, 1, 1)
    result = GuidedDenoiser(backbone, *PATH, ClassifierFreeGuidance(3.0), given, rows)(z, 0.5)
    expected = z * 2 + torch.tensor([1.0, 2.0]).view(-1, 1, 1, 1, 1) + 3.0
    torch.testing.assert_close(result.epsilon - result.x0, expected)
    assert max(calls) <= (rows or 4) and sum(calls) == 4


def test_conditions_that_do_not_fit_together():
    one = Controls(torch.zeros(1, 2, 3, 1, 1), torch.zeros(1, 1, 3, 1, 1))
    with pytest.raises(ValueError, match="some conditions have controls"):
        concatenate([Conditions(controls=one), Conditions()])
    with pytest.raises(ValueError, match="different micro-conditions"):
        concatenate([Conditions(micro={"a": torch.zeros(1)}), Conditions()])
    with pytest.raises(UserError, match=r"sampler.max_batch=0"):
        replace(GaussianSampler(Euler(), 2), max_batch=0)
