import itertools

import pytest
import torch

from vidlab.layers.attention import SelfAttention
from vidlab.layers.layouts import Full3D, Grid, Spatial, Temporal, TokenLayout
from vidlab.layers.rope import rotation

GRID = Grid(3, 2, 4)
LAYOUTS = [Full3D(), Spatial(), Temporal()]
# which tokens, by their (t, y, x), attend to each other
RULES = {
    Full3D: lambda a, b: True,
    Spatial: lambda a, b: a[0] == b[0],
    Temporal: lambda a, b: a[1:] == b[1:],
}
GROUPS = {Full3D: (1, 24), Spatial: (3, 8), Temporal: (8, 3)}
each = pytest.mark.parametrize("layout", LAYOUTS, ids=lambda x: type(x).__name__)


def places() -> list[tuple[int, int, int]]:
    return list(itertools.product(range(GRID.frames), range(GRID.height), range(GRID.width)))


@each
@pytest.mark.parametrize("trailing", [(), (5,), (2, 3)])
def test_a_layout_is_reversible_and_keeps_trailing_axes(layout, trailing):
    x = torch.arange(2.0 * GRID.tokens).view(2, -1)
    x = x.view(2, GRID.tokens, *(1 for _ in trailing)).expand(2, GRID.tokens, *trailing)
    groups, size = GROUPS[type(layout)]
    parts = layout.partition(x, GRID)
    assert parts.shape == (2 * groups, size, *trailing)
    assert torch.equal(layout.restore(parts, GRID), x)


@each
def test_a_group_holds_the_tokens_that_belong_together(layout):
    ids = torch.arange(GRID.tokens).float().view(1, -1)
    for group in layout.partition(ids, GRID).int().tolist():
        found = {b for b in range(GRID.tokens) if RULES[type(layout)](places()[group[0]], places()[b])}
        assert set(group) == found


@each
def test_influence_through_attention_is_exactly_that_of_the_layout(layout):
    attend = SelfAttention(12, heads=2)
    x = torch.randn(1, GRID.tokens, 12, requires_grad=True)
    y = attend(x, layout, GRID, rotation(GRID, 6))
    allowed = torch.tensor([[RULES[type(layout)](a, b) for b in places()] for a in places()])
    for number in range(GRID.tokens):
        (gradient,) = torch.autograd.grad(y[0, number].sum(), x, retain_graph=True)
        assert torch.equal(gradient[0].abs().amax(-1) > 0, allowed[number])


def test_positions_do_not_depend_on_the_layout():
    # one row of tokens in one frame: the spatial group is the whole sequence
    grid, attend = Grid(1, 2, 4), SelfAttention(12, heads=2)
    x, by = torch.randn(2, 8, 12), rotation(Grid(1, 2, 4), 6)
    torch.testing.assert_close(attend(x, Spatial(), grid, by), attend(x, Full3D(), grid, by))


@each
def test_it_is_a_layout(layout):
    assert isinstance(layout, TokenLayout)
