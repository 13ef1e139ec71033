"""A clip on several gloo processes is computed as on one: losses and gradients, for every layout."""

import json
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from parallel.shared_cases import CASES, Case, errors_of
from processes import run_ranks
from vidlab.parallel.exchange import make_team


def worker(rank: int, ranks: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=ranks)
    torch.set_num_threads(1)
    team = make_team(ranks)
    found = {case.name: errors_of(case, team) for case in CASES}
    if rank == 0:
        (Path(folder) / "errors.json").write_text(json.dumps(found))
    dist.barrier()
    time.sleep(0.5)  # gloo's threads drop tensors late, and abort where Python has ended before them
    dist.destroy_process_group()


def errors(folder: Path, ranks: int) -> dict[str, list[float]]:
    run_ranks(worker, (ranks, str(folder)), ranks)
    found: dict[str, list[float]] = json.loads((folder / "errors.json").read_text())
    return found


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    return errors(tmp_path_factory.mktemp("two"), 2)


@pytest.fixture(scope="module")
def of_four(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    return errors(tmp_path_factory.mktemp("four"), 4)


def check(found: dict[str, list[float]], case: Case) -> None:
    loss, gradient, *_ = found[case.name]
    assert max(loss, gradient) < (1e-10 if case.dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_two_processes_are_as_one(of_two: dict[str, list[float]], case: Case) -> None:
    check(of_two, case)


@pytest.mark.parametrize("case", [one for one in CASES if not one.uncounted], ids=lambda case: case.name)
def test_what_is_sent_is_what_is_planned(of_two: dict[str, list[float]], case: Case) -> None:
    _, _, sent, planned = of_two[case.name]
    assert sent == planned > 0


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_four_processes_are_as_one(of_four: dict[str, list[float]], case: Case) -> None:
    check(of_four, case)
