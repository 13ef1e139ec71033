import pytest
import torch

from vidlab.errors import UserError
from vidlab.layers.mixers.scan_orders import ScanOrders, frames_order, inverse, scan_order

# 2 rows of 3, drawn by hand
SERPENTINE = {
    "a": [0, 3, 4, 1, 2, 5], "b": [0, 1, 2, 5, 4, 3], "c": [3, 0, 1, 4, 5, 2], "d": [3, 4, 5, 2, 1, 0],
    "e": [5, 2, 1, 4, 3, 0], "f": [5, 4, 3, 0, 1, 2], "g": [2, 5, 4, 1, 0, 3], "h": [2, 1, 0, 3, 4, 5],
}  # fmt: skip
RASTER = {
    "a": [0, 3, 1, 4, 2, 5], "b": [0, 1, 2, 3, 4, 5], "c": [3, 0, 4, 1, 5, 2], "d": [3, 4, 5, 0, 1, 2],
    "e": [5, 2, 4, 1, 3, 0], "f": [5, 4, 3, 2, 1, 0], "g": [2, 5, 1, 4, 0, 3], "h": [2, 1, 0, 5, 4, 3],
}  # fmt: skip


@pytest.mark.parametrize("path", "abcdefgh")
@pytest.mark.parametrize(("table", "serpentine"), [(SERPENTINE, True), (RASTER, False)])
def test_two_rows_of_three(table, serpentine, path):
    assert scan_order(path, 2, 3, serpentine).tolist() == table[path]


def test_a_square_of_four():
    assert scan_order("b", 4, 4).tolist() == [0, 1, 2, 3, 7, 6, 5, 4, 8, 9, 10, 11, 15, 14, 13, 12]


@pytest.mark.parametrize("style", ["serpentine", "raster"])
@pytest.mark.parametrize("sizes", [[(1, 1)], [(1, 7)], [(5, 1)], [(2, 3), (4, 6), (3, 5)]])
def test_the_inverse_undoes_every_path(style, sizes):
    orders = ScanOrders(style=style)
    tokens = torch.randn(2, sum(h * w for h, w in sizes), 3)
    for layer in range(8):
        order = orders.order(layer, sizes)
        assert torch.equal(tokens[:, order][:, inverse(order)], tokens)


def test_steps_of_a_serpentine_lead_to_neighbors():
    for path in "abcdefgh":
        order = scan_order(path, 5, 4)
        row, column = order // 4, order % 4
        assert (row.diff().abs() + column.diff().abs() == 1).all()


def test_frames_follow_each_other():
    assert frames_order("b", [(1, 2), (2, 2)]).tolist() == [0, 1, 2, 3, 5, 4]
    assert frames_order("f", [(1, 2), (2, 2)], serpentine=False).tolist() == [1, 0, 5, 4, 3, 2]


def test_layers_take_the_paths_in_turn():
    orders, one = ScanOrders(), ScanOrders(paths="b", style="raster")
    for layer, path in enumerate("abcdefghab"):
        assert orders.order(layer, [(3, 2)]).tolist() == scan_order(path, 3, 2).tolist()
        assert one.order(layer, [(3, 2)]).tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("wrong", [{"paths": "abz"}, {"paths": ""}, {"style": "hilbert"}])
def test_unknown_paths_and_styles_are_refused(wrong):
    with pytest.raises(UserError, match=r"scan (paths|style)"):
        ScanOrders(**wrong)
