import itertools

import pytest
import torch

from vidlab.errors import UserError
from vidlab.layers.attention import SelfAttention
from vidlab.layers.kernels import sdpa
from vidlab.layers.layouts import (
    Full3D,
    Grid,
    GroupSkip,
    LayerPlan,
    SingleSkip,
    Spatial,
    Temporal,
    TokenLayout,
    Window,
)
from vidlab.layers.rope import rotation

GRID = Grid(3, 2, 4)
LAYOUTS = [
    Full3D(), Spatial(), Temporal(), SingleSkip(1), SingleSkip(2), SingleSkip(4), SingleSkip(5), GroupSkip(1),
    GroupSkip(2), GroupSkip(3), GroupSkip(5), Window(1), Window(4), Window(7),
]  # fmt: skip
PLACES = list(itertools.product(range(GRID.frames), range(GRID.height), range(GRID.width)))


def together(layout: TokenLayout, a: int, b: int) -> bool:
    """Whether tokens a and b attend to each other, by the layout's definition."""
    match layout:
        case Full3D():
            return True
        case Spatial():
            return PLACES[a][0] == PLACES[b][0]
        case Temporal():
            return PLACES[a][1:] == PLACES[b][1:]
        case SingleSkip(k):
            return a % k == b % k
        case GroupSkip(k):
            return a // k % k == b // k % k
        case Window(size):
            return a // size == b // size
        case _:
            raise TypeError(layout)


each = pytest.mark.parametrize("layout", LAYOUTS, ids=str)


def rows(layout: TokenLayout, grid: Grid) -> list[list[int]]:
    """Token numbers of each group, -1 for padding."""
    numbers = torch.arange(1, grid.tokens + 1).view(1, -1, 1, 1)
    return (layout.partition(numbers, grid)[..., 0].transpose(1, 2).flatten(0, 1) - 1).tolist()


@each
@pytest.mark.parametrize("heads", [1, 3])
def test_a_layout_is_reversible(layout, heads):
    x = torch.randn(2, GRID.tokens, heads, 5)
    parts = layout.partition(x, GRID)
    assert parts.shape[1] == layout.sequence_length(GRID)
    assert parts.shape[0] * parts.shape[2] == 2 * heads * layout.groups(GRID)
    assert torch.equal(layout.restore(parts, GRID), x)


@each
def test_a_group_holds_the_tokens_that_belong_together(layout):
    seen = set()
    for row in rows(layout, GRID):
        real = [number for number in row if number >= 0]
        assert all(set(real) == {b for b in range(GRID.tokens) if together(layout, a, b)} for a in real)
        seen |= set(real)
    assert seen == set(range(GRID.tokens))


@each
def test_influence_through_attention_is_exactly_that_of_the_layout(layout):
    attend = SelfAttention(12, heads=2)
    x = torch.randn(2, GRID.tokens, 12, requires_grad=True)
    y = attend(x, layout, GRID, rotation(GRID, 6))
    allowed = torch.tensor([[together(layout, a, b) for b in range(GRID.tokens)] for a in range(GRID.tokens)])
    for number in range(GRID.tokens):
        (gradient,) = torch.autograd.grad(y[1, number].sum(), x, retain_graph=True)
        assert torch.equal(gradient[1].abs().amax(-1) > 0, allowed[number])
        assert not gradient[0].any()


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_within_a_layout_is_dense_attention_with_its_mask(layout, dtype):
    attend = SelfAttention(12, heads=2).to(dtype)
    x, by = torch.randn(3, GRID.tokens, 12, dtype=dtype), rotation(GRID, 6)
    allowed = torch.tensor([[together(layout, a, b) for b in range(GRID.tokens)] for a in range(GRID.tokens)])
    found = attend(x, layout, GRID, by)
    attend.kernel = lambda q, k, v, mask=None: sdpa(q, k, v, allowed[None, None])
    torch.testing.assert_close(
        found, attend(x, Full3D(), GRID, by), atol=1e-5 if dtype == torch.float32 else 0.02, rtol=0
    )


def test_skiparse_rows_by_hand():
    # Open-Sora Plan v1.3: sixteen tokens, k = 2
    line = Grid(1, 1, 16)
    assert rows(SingleSkip(2), line) == [list(range(0, 16, 2)), list(range(1, 16, 2))]
    assert rows(GroupSkip(2), line) == [[0, 1, 4, 5, 8, 9, 12, 13], [2, 3, 6, 7, 10, 11, 14, 15]]
    # ten tokens are padded to twelve; 32 with k = 4; k^2 = L gives contiguous windows
    assert rows(GroupSkip(2), Grid(1, 1, 10)) == [[0, 1, 4, 5, 8, 9], [2, 3, 6, 7, -1, -1]]
    assert rows(GroupSkip(4), Grid(1, 1, 32))[0] == [0, 1, 2, 3, 16, 17, 18, 19]
    assert rows(GroupSkip(4), line) == rows(Window(4), line)


def test_a_mask_is_built_only_where_something_is_padded():
    for layout in LAYOUTS:
        mask = layout.key_mask(GRID, batch=2, heads=3)
        assert (mask is None) == (layout.padded(GRID) == GRID.tokens)
        if mask is not None:
            parts = layout.partition(torch.randn(2, GRID.tokens, 3, 4), GRID)
            assert mask.shape == (parts.shape[0], parts.shape[2], 1, parts.shape[1])
            assert mask.sum() == 2 * 3 * GRID.tokens
    assert {type(x) for x in LAYOUTS if x.key_mask(GRID, 1, 1) is not None} == {SingleSkip, GroupSkip, Window}


@pytest.mark.parametrize("layout", [Full3D(), Spatial(), Temporal(), SingleSkip(4), Window(4)], ids=str)
def test_most_partitions_copy_nothing(layout):
    x = torch.randn(2, GRID.tokens, 3, 4)
    assert layout.partition(x, GRID).untyped_storage().data_ptr() == x.untyped_storage().data_ptr()


def test_attention_flops_by_hand():
    # 24 tokens, width 10: 4 D sum l^2
    flops = {
        str(x): x.attention_flops(GRID, 10) for x in (Full3D(), Spatial(), Temporal(), SingleSkip(4), GroupSkip(5))
    }
    assert flops == {
        "Full3D()": 40 * 24**2, "Spatial()": 40 * 3 * 8**2, "Temporal()": 40 * 8 * 3**2,
        "SingleSkip(k=4)": 40 * 4 * 6**2, "GroupSkip(k=5)": 40 * 5 * 5**2,
    }  # fmt: skip


def test_a_plan_counts_layers_from_the_first():
    # Open-Sora Plan v1.3: full attention in blocks 0, 1, 30, 31; even blocks single, odd ones group
    layers = LayerPlan((SingleSkip(4), GroupSkip(4)), full_first=2, full_last=2).layers(32)
    assert [i for i, x in enumerate(layers) if x == Full3D()] == [0, 1, 30, 31]
    assert layers[2:6] == (SingleSkip(4), GroupSkip(4), SingleSkip(4), GroupSkip(4)) and layers[29] == GroupSkip(4)
    assert LayerPlan((Spatial(),), full_first=3, full_last=3).layers(4) == (Full3D(),) * 4


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LayerPlan(()), "cycle is empty"),
        (lambda: LayerPlan((Full3D(),), full_last=-1), "full_last=-1"),
        (lambda: SingleSkip(0), "k=0 must be at least 1"),
        (lambda: GroupSkip(-2), "k=-2"),
        (lambda: Window(0), "size=0"),
    ],
)
def test_what_is_no_layout(make, message):
    with pytest.raises(UserError, match=message):
        make()


COMPILED = """
import torch
from vidlab.layers.attention import SelfAttention
from vidlab.layers.layouts import Full3D, Grid, GroupSkip, SingleSkip, Spatial, Temporal, Window
from vidlab.layers.rope import rotation

grid = Grid(3, 2, 4)
for layout in (Full3D(), Spatial(), Temporal(), SingleSkip(5), GroupSkip(2), GroupSkip(5), Window(7)):
    attend = SelfAttention(12, heads=2)
    x, by = torch.randn(2, grid.tokens, 12), rotation(grid, 6)
    compiled = torch.compile(lambda x: attend(x, layout, grid, by), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), attend(x, layout, grid, by))
print("same")
"""


@pytest.mark.slow
def test_layouts_compile_whole_and_give_the_same(commands, tmp_path):
    # in a process of its own: the shape checks of the tests cannot be compiled
    done = commands.run_code(COMPILED, cwd=tmp_path)
    assert done.out == "same\n", done.err


def test_positions_do_not_depend_on_the_layout():
    # one row of tokens in one frame: the spatial group is the whole sequence
    grid, attend = Grid(1, 2, 4), SelfAttention(12, heads=2)
    x, by = torch.randn(2, 8, 12), rotation(Grid(1, 2, 4), 6)
    torch.testing.assert_close(attend(x, Spatial(), grid, by), attend(x, Full3D(), grid, by))
