from functools import partial

import pytest
import torch

from vidlab.backbones.dit import DiT
from vidlab.clip import LatentShape
from vidlab.cost import ModelCost, denoiser_cost, matmul_rate
from vidlab.layers.layouts import Full3D, LayerPlan, Spatial, Temporal

LATENT = LatentShape(channels=3, frames=4, height=4, width=6)
D, DEPTH, TEXT, S = 24, 2, 10, 5
TOKENS = 4 * 2 * 3  # patches of 1x2x2
PATCH = 12  # numbers in a patch


def counted(layouts, text_tokens=S) -> ModelCost:
    make = partial(DiT, layouts=LayerPlan(layouts), width=D, depth=DEPTH, heads=2, patch=(1, 2, 2))
    return denoiser_cost(make, LATENT, TEXT, text_tokens)


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


def test_training_is_three_times_the_forward_pass():
    assert ModelCost(parameters=1, tokens=1, forward_flops=10).training_flops == 30


def test_parameters_and_tokens():
    cost = counted((Full3D(),))
    attention = 4 * (D * D + D) + 2 * D // 2  # and two gains of one head's size
    block = 2 * attention + 8 * D * D + 5 * D + 6 * D
    once = PATCH * D + D + D * PATCH + PATCH  # embedding and head
    once += 256 * D + D + D * D + D + 2 * (TEXT * D + D) + 6 * (D * D + D) + 2 * (D * D + D) + 2 * D
    assert cost.parameters == DEPTH * block + once
    assert cost.tokens == TOKENS


def test_planning_touches_no_memory():
    huge = partial(DiT, layouts=LayerPlan((Full3D(),)), width=8192, depth=64, heads=64, patch=(1, 2, 2))
    cost = denoiser_cost(huge, LatentShape(16, 32, 64, 64), 4096)
    assert cost.parameters > 50e9 and cost.tokens == 32 * 32 * 32


def test_the_measured_rate_is_that_of_matrix_products():
    seconds = matmul_rate(torch.float32, "cpu", size=128, seconds=0.05)
    assert 1e8 < seconds < 1e14
