import itertools

import pytest
import torch

from vidlab.lab.reports.layout_report import main
from vidlab.layers.layout_metrics import closed_form_distance, group_ids, measured_distance
from vidlab.layers.layouts import Full3D, Grid, GroupSkip, SingleSkip, Spatial, Temporal, Window

LARGE = Grid(24, 32, 32)


def skiparse(k):
    return (SingleSkip(k), GroupSkip(k))


def by_search(layouts, grid) -> float:
    """Average attention distance by breadth-first search from every token."""
    ids = [group_ids(layout, grid).tolist() for layout in layouts]
    total = 0
    for start in range(grid.tokens):
        distance, frontier = {start: 0}, {start}
        while frontier:
            near = {
                b for a, b in itertools.product(frontier, range(grid.tokens))
                if b not in distance and any(group[a] == group[b] for group in ids)
            }  # fmt: skip
            distance |= dict.fromkeys(near, 1 + max(distance.values()))
            frontier = near
        total += sum(distance.values())
    return total / grid.tokens**2


@pytest.mark.parametrize(
    ("layouts", "grid"),
    [
        ((Full3D(),), Grid(2, 2, 3)),
        ((Spatial(), Temporal()), Grid(3, 2, 4)),
        (skiparse(2), Grid(1, 4, 4)),
        (skiparse(3), Grid(2, 3, 6)),
        ((SingleSkip(4), Window(4)), Grid(2, 4, 4)),
    ],
)
def test_three_ways_agree(layouts, grid):
    assert closed_form_distance(layouts, grid) == pytest.approx(by_search(layouts, grid), abs=1e-12)
    assert measured_distance(layouts, grid) == pytest.approx(by_search(layouts, grid), abs=1e-12)


@pytest.mark.parametrize(("layouts", "grid"), [(skiparse(2), Grid(1, 1, 10)), (skiparse(4), Grid(1, 5, 7))])
def test_padded_layouts_are_measured(layouts, grid):
    assert measured_distance(layouts, grid) == pytest.approx(by_search(layouts, grid), abs=1e-12)
    with pytest.raises(ValueError, match="without padding"):
        closed_form_distance(layouts, grid)


@pytest.mark.parametrize(
    ("layouts", "grid", "expected"),
    [
        # 2 - 2/k + 1/k^2 - 1/L
        (skiparse(2), Grid(1, 4, 4), 1.1875),
        (skiparse(4), Grid(4, 4, 4), 1.546875),
        # Open-Sora Plan v1.3, Table 2, at its 24 x 32 x 32
        ((Full3D(),), LARGE, 0.99996),
        ((Spatial(), Temporal()), LARGE, 1.95736),
        (skiparse(2), LARGE, 1.24996),
        (skiparse(4), LARGE, 1.56246),
        (skiparse(8), LARGE, 1.76558),
        ((SingleSkip(4), Window(4)), LARGE, 1.74984),
    ],
)
def test_published_distances(layouts, grid, expected):
    assert closed_form_distance(layouts, grid) == pytest.approx(expected, abs=6e-6)
    if isinstance(layouts[-1], GroupSkip | Full3D):  # few groups: counted in no time
        assert measured_distance(layouts, grid) == pytest.approx(expected, abs=6e-6)


def test_unconnected_layouts_are_refused():
    with pytest.raises(ValueError, match="never reach"):
        measured_distance((Spatial(),), Grid(2, 2, 2))
    with pytest.raises(ValueError, match="no closed form"):
        closed_form_distance((Spatial(), Window(2)), Grid(2, 2, 2))


def test_group_ids_follow_the_partition():
    assert torch.equal(group_ids(Spatial(), Grid(2, 1, 3)), torch.tensor([0, 0, 0, 1, 1, 1]))
    assert group_ids(GroupSkip(2), Grid(1, 1, 10)).tolist() == [0, 0, 1, 1, 0, 0, 1, 1, 0, 0]


def test_the_table(capsys):
    main(["--shape", "4", "4", "4"])
    lines = {line[:18].strip(): line[18:].split() for line in capsys.readouterr().out.splitlines()}
    assert lines["Skiparse k=4"] == ["1.547", "1.547", "16/16", "0.2500"]
    assert lines["2+1D"] == ["1.688", "1.688", "16/4", "0.1562"]  # 2 - (16 + 4) / 64
    with pytest.raises(SystemExit):
        main(["--shape", "0", "4", "4"])
