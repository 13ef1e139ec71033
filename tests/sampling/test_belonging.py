"""Objectives, samplers and guidances that do not belong together are refused by name; histories reach the backbone."""

import pytest
import torch

from vidlab.clip import Conditions, DenoiserInput, DenoiserOutput, History
from vidlab.diffusion.gaussian import GaussianObjective
from vidlab.diffusion.objective import Objective
from vidlab.diffusion.parameterizations import Velocity
from vidlab.diffusion.schedules import LinearPath
from vidlab.diffusion.time_samplers import Uniform
from vidlab.diffusion.weightings import Constant
from vidlab.errors import UserError
from vidlab.sampling.base import Sampler, check_belong
from vidlab.sampling.gaussian import GaussianSampler
from vidlab.sampling.guidance import ClassifierFreeGuidance, Guidance, NoGuidance, Renormalize
from vidlab.sampling.guided import concatenate, predict
from vidlab.sampling.solvers import Euler
from vidlab.sampling.spacings import Linspace


class Steps(GaussianObjective):
    process = "steps"


class Bare(Objective):
    """A Gaussian objective by name that does not tell its path."""

    process = "gaussian"


class OfHistory(NoGuidance):
    @property
    def passes(self) -> tuple[str, ...]:
        return ("full", "no_history")


PARTS = LinearPath(), Velocity(), Constant(), Uniform()
SAMPLER = GaussianSampler(Euler(), 2)


def test_gaussian_parts_belong_together():
    assert isinstance(GaussianObjective(*PARTS), Objective) and isinstance(SAMPLER, Sampler)
    check_belong(GaussianObjective(*PARTS), SAMPLER, ClassifierFreeGuidance(2.0))
    assert SAMPLER.passes(ClassifierFreeGuidance(2.0)) == {"full", "null"} and SAMPLER.name == "Euler"


@pytest.mark.parametrize(
    ("objective", "sampler", "guidance", "message"),
    [
        (Steps(*PARTS), SAMPLER, NoGuidance(), "undoes the gaussian process and objective=Steps is"),
        (Bare(), SAMPLER, NoGuidance(), "objective=Bare is of the gaussian process and has no schedule"),
        (
            GaussianObjective(*PARTS), SAMPLER, Renormalize(OfHistory()),
            "guidance=Renormalize combines passes under no_history, of which sampler=GaussianSampler knows nothing. It "
            "can combine full, image, null",
        ),
        (GaussianObjective(*PARTS), GaussianSampler(Euler(), 1, spacing=Linspace()), NoGuidance(), "sampler.steps=1"),
    ],
)  # fmt: skip
def test_what_does_not_belong_together_is_refused(objective, sampler, guidance: Guidance, message):
    with pytest.raises(UserError, match=message):
        check_belong(objective, sampler, guidance)


def history(value: float, count: int = 1, frames: int = 2) -> tuple[History, ...]:
    old = History(torch.full((count, 3, frames, 2, 2), value), torch.arange(frames))
    return old, History(torch.full((count, 3, 1, 4, 4), value + 0.5), torch.tensor([frames]))


def echo(input: DenoiserInput) -> DenoiserOutput:
    """What it read of the history: row by row the sum of its parts' means."""
    told = sum(part.latents.mean(dim=(1, 2, 3, 4)) for part in input.history)
    return DenoiserOutput(input.latents * 0 + told.view(-1, 1, 1, 1, 1))


@pytest.mark.parametrize("rows", [None, 1, 3])
def test_every_pass_reads_its_own_history(rows):
    levels = torch.full((2,), 0.5)
    single = DenoiserInput(torch.zeros(2, 3, 1, 4, 4), levels, levels)
    passes = [Conditions(history=history(1.0, 2)), Conditions(history=history(4.0, 2))]
    first, second = predict(echo, single, passes, rows)
    assert first.unique().tolist() == [2.5] and second.unique().tolist() == [8.5]


def test_histories_of_other_sizes_are_evaluated_apart():
    with pytest.raises(ValueError, match="histories of different sizes"):
        concatenate([Conditions(history=history(1.0)), Conditions()])
    with pytest.raises(ValueError, match="histories of different sizes"):
        concatenate([Conditions(history=history(1.0)), Conditions(history=history(1.0, frames=3))])
    indices = [part.frame_index.tolist() for part in concatenate([Conditions(history=history(1.0))] * 2).history]
    assert indices == [[0, 1], [2]]
