import copy

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from vidlab.layers.layouts import Grid
from vidlab.layers.positions import fourier_positions
from vidlab.layers.tables import KEPT, Tables

CPU = torch.device("cpu")


class Build:
    """Counts how often a table is built."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, size: int, device: torch.device) -> torch.Tensor:
        self.calls += 1
        return torch.arange(size, device=device, dtype=torch.float32)


@pytest.fixture
def build():
    return Build()


def test_a_table_is_built_once_for_its_settings(build):
    tables = Tables()
    first, again, other = (tables.get(build, size, device=CPU) for size in (3, 3, 4))
    assert first is again and first.tolist() == [0, 1, 2] and other.tolist() == [0, 1, 2, 3] and build.calls == 2


def test_a_table_of_validation_serves_training(build):
    tables, weight = Tables(), torch.ones(3, requires_grad=True)
    with torch.inference_mode():
        tables.get(build, 3, device=CPU)
    (weight * tables.get(build, 3, device=CPU)).sum().backward()
    assert weight.grad is not None and weight.grad.tolist() == [0, 1, 2] and build.calls == 1


def test_hollow_tables_are_not_kept(build):
    tables = Tables()
    assert tables.get(build, 3, device=torch.device("meta")).is_meta
    with FakeTensorMode():
        tables.get(build, 3, device=CPU)
    assert type(tables.get(build, 3, device=CPU)) is torch.Tensor and build.calls == 3


def test_the_oldest_table_goes_and_a_copy_has_none(build):
    tables = Tables()
    for size in (*range(KEPT), KEPT, 0):
        tables.get(build, size, device=CPU)
    assert build.calls == KEPT + 2
    copy.deepcopy(tables).get(build, KEPT, device=CPU)
    assert build.calls == KEPT + 3


def test_the_same_numbers_as_without():
    grid = Grid(2, 3, 4)
    found = Tables().get(fourier_positions, grid, 8, (1.0, 2.0, 1.0), device=CPU)
    assert torch.equal(found, fourier_positions(grid, 8, (1.0, 2.0, 1.0), CPU))


class Operations(TorchDispatchMode):
    """Names of what is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_a_second_step_builds_no_rotations_and_no_positions(make_module, make_batch):
    module, operations = make_module(), Operations()
    held_out = module.measures.held_out(make_batch())
    module.measures.loss_at(held_out, held_out.draw.uniform("validation_t"))
    with operations:
        module.measures.loss_at(held_out, held_out.draw.uniform("validation_t"))
    assert "addmm" in operations.names and not {"polar", "meshgrid"} & set(operations.names)
