"""Re-composition against the example of M4V's figure 2 and against its definition, token by token."""

import torch

from vidlab.layers.mixers.recomposition import (
    FrameGrids,
    Recomposition,
    frame_of_token,
    scan_tables,
    text_ends,
    unscan_tables,
)
from vidlab.layers.mixers.scan_orders import ScanOrders

ROW_BY_ROW, BACKWARDS, DOWN_THE_COLUMNS = (ScanOrders(path, "raster") for path in "bfa")
FIGURE = FrameGrids(((1, 2), (1, 3), (1, 4)), predicted=1)  # frames of 2, 3 and 4 tokens
FOUR_OF_SEVEN = torch.tensor([[True] * 4 + [False] * 3])


def recomposition(frames, mask, orders=ROW_BY_ROW, registers=None, both=True) -> Recomposition:
    chosen = registers or tuple(range(len(frames.sizes)))
    return Recomposition(
        scan=scan_tables(frames, chosen, max(chosen) + 1, orders, 1)[0],
        unscan=unscan_tables(frames, orders, 1)[0],
        text=None if mask is None else text_ends(mask, both),
    )


def numbered(count: int) -> torch.Tensor:
    """Tokens 1, 2, ... of one channel."""
    return torch.arange(1.0, count + 1).view(1, count, 1)


def test_the_example_of_figure_2():
    """Text 1 to 4 and pads 5 to 7; frames 8-9, 10-12 and 13-16; registers -1, -2, -3."""
    made = recomposition(FIGURE, FOUR_OF_SEVEN)
    sequence = made.apply(numbered(16), torch.tensor([[-1.0], [-2.0], [-3.0]]))
    pads_first, pads_last = [5, 6, 7, 1, 2, 3, 4], [1, 2, 3, 4, 5, 6, 7]
    assert sequence.flatten().tolist() == [*pads_first, -1, 8, 9, -2, 10, 11, 12, -3, 13, 14, 15, 16, *pads_last]
    assert sequence.shape[1] == 7 + (1 + 2) + (1 + 3) + (1 + 4) + 7 == 26
    assert made.real().flatten().tolist() == [False] * 3 + [True] * 20 + [False] * 3


def test_the_inverse_gives_the_text_twice_and_the_frames_once():
    frames = FrameGrids(((2, 3), (2, 3), (4, 6)), predicted=1)
    mask = torch.tensor([[True] * 5, [True] * 2 + [False] * 3, [True, False, True, True, False]])
    for orders in (ROW_BY_ROW, BACKWARDS, DOWN_THE_COLUMNS):
        made = recomposition(frames, mask, orders, registers=(1, 1, 2))
        x, registers = torch.randn(3, 5 + 36, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
        back = made.invert(made.apply(x, registers))
        assert torch.equal(back[:, :5], 2 * x[:, :5]) and torch.equal(back[:, 5:], x[:, 5:])


def test_each_text_of_a_batch_is_moved_by_its_own_length():
    mask = torch.tensor([[True, True, True], [True, False, False]])
    made = recomposition(FrameGrids(((1, 1),), 1), mask)
    x = torch.tensor([[1.0, 2, 3, 9], [4, 5, 6, 8]])[..., None]
    sequence = made.apply(x, torch.zeros(1, 1))[..., 0]
    assert sequence.tolist() == [[1, 2, 3, 0, 9, 1, 2, 3], [5, 6, 4, 0, 8, 4, 5, 6]]
    assert made.real().tolist() == [[True] * 8, [False, False] + [True] * 4 + [False, False]]


def test_every_frame_is_walked_along_its_own_grid_behind_its_register():
    frames = FrameGrids(((2, 2), (2, 3)), predicted=1)
    made = recomposition(frames, None, DOWN_THE_COLUMNS, registers=(2, 0))
    sequence = made.apply(numbered(10), torch.tensor([[-1.0], [-2.0], [-3.0]])).flatten().tolist()
    assert sequence == [-3, 1, 3, 2, 4, -1, 5, 8, 6, 9, 7, 10]
    assert made.real() is None and torch.equal(made.invert(made.apply(numbered(10), torch.zeros(3, 1))), numbered(10))


def test_the_right_end_may_be_left_out():
    made = recomposition(FIGURE, FOUR_OF_SEVEN, both=False)
    x, registers = numbered(16), torch.zeros(3, 1)
    assert made.apply(x, registers).shape[1] == made.real().shape[1] == 19
    assert torch.equal(made.invert(made.apply(x, registers)), x)


def test_gradients_are_those_of_a_permutation():
    made = recomposition(FIGURE, FOUR_OF_SEVEN, BACKWARDS)
    x = torch.randn(1, 16, 2, dtype=torch.float64, requires_grad=True)
    registers = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: made.invert(made.apply(a, b).sin()), (x, registers))
    made.apply(x, registers).sum().backward()
    assert torch.equal(x.grad, torch.tensor([2.0] * 7 + [1.0] * 9, dtype=torch.float64).view(1, 16, 1).expand(1, 16, 2))
    assert torch.equal(registers.grad, torch.ones(3, 2, dtype=torch.float64))


def test_frames_know_their_tokens():
    assert FIGURE.places == (2, 3, 4) and FIGURE.tokens == 9 and FIGURE.history == 2
    assert frame_of_token(FIGURE).tolist() == [0, 0, 1, 1, 1, 2, 2, 2, 2]
