"""Clips and weights on several gloo processes: what comes out is what one process gives."""

import json
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from cli.command import Commands
from parallel.shared_cases import CASES, Case, errors_of
from parallel.trained import MUON, Training, launched, train
from processes import run_ranks
from vidlab.parallel.exchange import make_team
from vidlab.training.optimization.fully_sharded import FullyShardedStrategy

Errors = dict[str, list[float]]
ONE, ONE_MUON = Training("one"), Training("one muon", optimizer=MUON)


def trainings() -> tuple[Training, ...]:
    return (
        Training("ddp, shared clips", "ddp", 2, share=2),
        Training("fsdp2", FullyShardedStrategy, 2),
        Training("fsdp2, shared clips", FullyShardedStrategy, 2, share=2),
        Training("fsdp2, muon", FullyShardedStrategy, 2, optimizer=MUON),
    )


NAMES = [training.name for training in trainings()]


def meet(rank: int, ranks: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=ranks)


def part() -> None:
    dist.barrier()
    time.sleep(0.5)  # gloo's threads drop tensors late, and abort where Python has ended before them
    dist.destroy_process_group()


def worker(rank: int, ranks: int, folder: str, trained: bool) -> None:
    """Every case, and every training: from the start to step 2, saved, and from step 2 of one process to step 4."""
    place = Path(folder)
    meet(rank, ranks, place)
    team = make_team(ranks)
    found = {case.name: errors_of(case, team) for case in CASES}
    if rank == 0:
        (place / "errors.json").write_text(json.dumps(found))
    launched(rank, ranks)
    for training in trainings() if trained else ():
        keys = "ab" if training.share == 2 else "ab"[rank]
        train(training, keys, 2, place, save=f"{training.name}.ckpt")
        before = "muon.ckpt" if training.optimizer is MUON else "one.ckpt"
        weights = train(training, keys, 4, place, resume=place / before)
        if rank == 0:
            torch.save(weights, place / f"{training.name}.pt")
    part()


@pytest.fixture(scope="module")
def of_two(commands: Commands, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    for training, name in ((ONE, "one"), (ONE_MUON, "muon")):
        train(training, "ab", 2, folder, save=f"{name}.ckpt")
        torch.save(train(training, "ab", 4, folder, resume=folder / f"{name}.ckpt"), folder / f"{name}.pt")
    run_ranks(commands, folder, worker, (2, str(folder), True))
    return folder


@pytest.fixture(scope="module")
def of_four(commands: Commands, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("four")
    run_ranks(commands, folder, worker, (4, str(folder), False), 4)
    return folder


def errors(folder: Path, case: Case) -> tuple[float, float, int, int]:
    found: tuple[float, float, int, int] = json.loads((folder / "errors.json").read_text())[case.name]
    return found


def check(folder: Path, case: Case) -> None:
    loss, gradient, *_ = errors(folder, case)
    assert max(loss, gradient) < (1e-10 if case.dtype == torch.float64 else 1e-5)


def check_weights(folder: Path, name: str, found: dict[str, torch.Tensor]) -> None:
    """Nearer than a hundredth of what the last steps have moved: orthogonalization takes rounding further."""
    expected = torch.load(folder / ("muon.pt" if "muon" in name else "one.pt"))
    averaged = [name for name in expected if f"ema.{name}" in expected]
    assert found.keys() == expected.keys() and averaged
    moved = max((expected[name] - expected[f"ema.{name}"]).abs().max().item() for name in averaged)
    wrong = max((found[name] - value).abs().max().item() for name, value in expected.items())
    assert wrong < (1e-2 if "muon" in name else 1e-4) * moved


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_two_processes_are_as_one(of_two: Path, case: Case) -> None:
    check(of_two, case)


@pytest.mark.parametrize("case", [one for one in CASES if not one.uncounted], ids=lambda case: case.name)
def test_what_is_sent_is_what_is_planned(of_two: Path, case: Case) -> None:
    _, _, sent, planned = errors(of_two, case)
    assert sent == planned > 0


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_resume_what_one_has_begun(of_two: Path, name: str) -> None:
    check_weights(of_two, name, torch.load(of_two / f"{name}.pt"))


@pytest.mark.parametrize("name", NAMES)
def test_one_process_resumes_what_two_have_begun(of_two: Path, name: str) -> None:
    training = ONE_MUON if "muon" in name else ONE
    check_weights(of_two, name, train(training, "ab", 4, of_two, resume=of_two / f"{name}.ckpt"))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_four_processes_are_as_one(of_four: Path, case: Case) -> None:
    check(of_four, case)
