from dataclasses import replace
from functools import partial

import pytest
import torch

from vidlab.backbones.dit import DiT
from vidlab.backbones.stiv import STIV
from vidlab.clip import LatentShape
from vidlab.cost.flops import DenoiserCounter, ModelCost, StepInput, mean_cost
from vidlab.diffusion.gaussian import GaussianObjective
from vidlab.diffusion.objective import InputShape
from vidlab.diffusion.parameterizations import Velocity
from vidlab.diffusion.schedules import LinearPath
from vidlab.diffusion.time_samplers import Uniform
from vidlab.diffusion.weightings import Constant
from vidlab.layers.layouts import Full3D, LayerPlan, Spatial, Temporal
from vidlab.training.denoiser_plan import DenoiserPlan

LATENT = LatentShape(channels=3, frames=4, height=4, width=6)
READ = InputShape(LATENT)
D, DEPTH, TEXT, S = 24, 2, 10, 5
TOKENS = 4 * 2 * 3  # patches of 1x2x2
PATCH = 12  # numbers in a patch


def counter_of(make, latent=LATENT, text_width=TEXT) -> DenoiserCounter:
    with torch.device("meta"):
        return DenoiserCounter(make(latent=latent, text_width=text_width), text_width)


def counted(layouts, text_tokens=S) -> ModelCost:
    make = partial(DiT, layouts=LayerPlan(layouts), width=D, depth=DEPTH, heads=2, patch=(1, 2, 2))
    return counter_of(make, LATENT, TEXT).cost(StepInput(READ, text_tokens))


def by_hand(group: int, s: int = S) -> int:
    """Multiply-adds of one clip when every token attends to ``group`` tokens, and to ``s`` of the caption."""
    block = TOKENS * D * D * (3 + 1)  # q, k, v and out
    block += 2 * TOKENS * group * D  # scores and weighted sums
    block += TOKENS * D * D * 2 + s * D * D * 2 + 2 * TOKENS * s * D  # cross-attention
    block += TOKENS * D * D * 4 * 2  # feed-forward
    once = 2 * TOKENS * PATCH * D  # embedding and head
    once += 256 * D + D * D + TEXT * D + s * TEXT * D  # time, pooled text, text tokens
    once += D * 6 * D + D * 2 * D  # modulation of the blocks and of the head
    return DEPTH * block + once


@pytest.mark.parametrize(
    ("layout", "group"), [(Full3D(), TOKENS), (Spatial(), 6), (Temporal(), 4)], ids=lambda x: type(x).__name__
)
def test_flops_by_hand(layout, group):
    assert counted((layout,)).forward_flops == 2 * by_hand(group)


def test_longer_captions_cost_more():
    extra = counted((Full3D(),), 2 * S).forward_flops - counted((Full3D(),)).forward_flops
    assert extra == 2 * (by_hand(TOKENS, 2 * S) - by_hand(TOKENS))


@pytest.mark.parametrize("text_gradient", [False, True])
def test_the_backward_pass_has_two_products_for_each_but_those_that_nobody_needs(text_gradient):
    """No gradient of the latents; of the text where its encoder is trained, whose pooled vector two layers read."""
    make = partial(DiT, layouts=LayerPlan((Full3D(),)), width=D, depth=DEPTH, heads=2, patch=(1, 2, 2))
    cost = counter_of(make).cost(StepInput(READ, S, text_gradient=text_gradient))
    needless = TOKENS * PATCH * D + 256 * D + (0 if text_gradient else TEXT * D + S * TEXT * D)
    assert cost.backward_flops == 2 * (2 * by_hand(TOKENS) - needless)
    assert cost.training_flops == cost.forward_flops + cost.backward_flops
    attention = DEPTH * (2 * TOKENS * TOKENS * D + 2 * TOKENS * S * D)  # scores and weighted sums
    assert cost.attention_flops == 3 * 2 * attention


def test_kinds_of_input_count_by_their_share():
    small, large = ModelCost(7, 4, 100, 300, 20), ModelCost(7, 12, 500, 700, 60)
    assert mean_cost([(0.25, small), (0.75, large)]) == ModelCost(7, 10, 400, 600, 50)
    assert mean_cost([(1.0, small)]) is small


class Reader(DiT):
    """A DiT whose history costs one product of its latents with themselves."""

    def forward(self, input):
        for part in input.history:
            part.latents.flatten(2) @ part.latents.flatten(2).transpose(1, 2)
        return super().forward(replace(input, history=()))


def test_a_history_counts():
    make = partial(Reader, layouts=LayerPlan((Full3D(),)), width=D, depth=1, heads=2, patch=(1, 2, 2))
    counter, past = counter_of(make, LATENT, TEXT), LatentShape(3, 2, 2, 4)
    plain, read = counter.cost(StepInput(READ, S)), counter.cost(StepInput(InputShape(LATENT, (past, past)), S))
    assert read.forward_flops - plain.forward_flops == 2 * 2 * 3 * 3 * (2 * 2 * 4)
    assert read.tokens == TOKENS + 2 * (2 * 1 * 2) and read.parameters == plain.parameters


def test_parameters_and_tokens():
    cost = counted((Full3D(),))
    attention = 4 * (D * D + D) + 2 * D // 2  # and two gains of one head's size
    block = 2 * attention + 8 * D * D + 5 * D + 6 * D
    once = PATCH * D + D + D * PATCH + PATCH  # embedding and head
    once += 256 * D + D + D * D + D + 2 * (TEXT * D + D) + 6 * (D * D + D) + 2 * (D * D + D) + 2 * D
    assert cost.parameters == DEPTH * block + once
    assert cost.tokens == TOKENS


@pytest.mark.parametrize("attention", ["auto", "sdpa", "flex"])
def test_every_kernel_counts_by_the_formula(attention):
    make = partial(DiT, layouts=LayerPlan((Full3D(),)), width=D, depth=DEPTH, heads=2, patch=(1, 2, 2))
    plan = DenoiserPlan(make, LATENT, TEXT, TEXT, {"attention": attention, "ssm": "auto"}, (), "none")
    objective = GaussianObjective(LinearPath(), Velocity(), Constant(), Uniform())
    cost = plan.mean_cost(objective, LATENT, lambda shape: StepInput(shape, S))
    assert cost.forward_flops == 2 * by_hand(TOKENS)


def test_tokens_that_training_drops_are_not_counted():
    """Without masking every block sees 24 tokens; with half of the places dropped all but the last see 12."""
    sizes = {"width": D, "depth": 3, "heads": 2, "patch": (1, 2, 2)}
    forward = {}
    for ratio in (0.0, 0.5):
        masked = partial(STIV, **sizes, mask_ratio=ratio, unmask_blocks=1) if ratio else partial(STIV, **sizes)
        forward[ratio] = counter_of(masked, LATENT, TEXT).cost(StepInput(READ, S)).forward_flops
    # of a block: q, k, v, out and a gated feed-forward in spatial and temporal parts all halve or more
    assert 0.55 < forward[0.5] / forward[0.0] < 0.75


def test_another_shape_and_length_are_counted_by_the_same_network():
    make = partial(DiT, layouts=LayerPlan((Full3D(),)), width=D, depth=DEPTH, heads=2, patch=(1, 2, 2))
    counter, half = counter_of(make, LATENT, TEXT), LatentShape(3, 2, 4, 6)
    longer, smaller = StepInput(InputShape(half), 2 * S), StepInput(InputShape(half), S)
    assert counter.cost(longer) == counter_of(make, half, TEXT).cost(longer)
    assert counter.cost(smaller).forward_flops < counter.cost(StepInput(READ, S)).forward_flops == 2 * by_hand(TOKENS)


def test_planning_touches_no_memory():
    huge = partial(DiT, layouts=LayerPlan((Full3D(),)), width=16384, depth=4, heads=64, patch=(1, 2, 2))
    latent = LatentShape(16, 32, 64, 64)
    cost = counter_of(huge, latent, 4096).cost(StepInput(InputShape(latent), 16))
    assert cost.parameters > 10e9 and cost.tokens == 32 * 32 * 32
