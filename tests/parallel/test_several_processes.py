"""Clips and weights on several gloo processes: what comes out is what one process gives."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from cli.command import Commands
from parallel.shared_cases import CASES, Case, errors_of
from parallel.trained import MUON, Training, launched, train
from processes import run_ranks
from vidlab.parallel.exchange import make_team
from vidlab.parallel.stored_shards import StoredTensor
from vidlab.training.checkpoint_io import load_checkpoint
from vidlab.training.optimization.fully_sharded import FullyShardedStrategy

Errors = dict[str, list[float]]
ONE, ONE_MUON = Training("one"), Training("one muon", optimizer=MUON)
SHARDED = Training("fsdp2", FullyShardedStrategy, 2)


def trainings() -> tuple[Training, ...]:
    return (
        Training("ddp, shared clips", "ddp", 2, share=2),
        SHARDED,
        Training("fsdp2, shared clips", FullyShardedStrategy, 2, share=2),
        Training("fsdp2, muon", FullyShardedStrategy, 2, optimizer=MUON),
    )


NAMES = [training.name for training in trainings()]
SHARDED_NAMES = [name for name in NAMES if name.startswith("fsdp2")]


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
    for way in ("", "gathered ") if trained else ():
        weights = train(SHARDED, "ab"[rank], 4, place, resume=place / f"{way}{SHARDED.name}.ckpt")
        if rank == 0:
            torch.save(weights, place / f"resumed {way}.pt")
    part()


def of_two_by_four(rank: int, folder: str, begun: str) -> None:
    """Step 2 of two processes to step 4, by four of which two share a clip."""
    place = Path(folder)
    meet(rank, 4, place)
    launched(rank, 4)
    weights = train(Training("four", FullyShardedStrategy, 4, share=2), "ab"[rank // 2], 4, place, resume=Path(begun))
    if rank == 0:
        torch.save(weights, place / "four.pt")
    part()


@pytest.fixture(scope="module")
def of_two(commands: Commands, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    run_ranks(commands, folder, worker, (2, str(folder), False))
    return folder


@pytest.fixture(scope="module")
def trained_by_two(commands: Commands, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
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


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_two_processes_resume_what_one_has_begun(trained_by_two: Path, name: str) -> None:
    check_weights(trained_by_two, name, torch.load(trained_by_two / f"{name}.pt"))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_one_process_resumes_what_two_have_begun(trained_by_two: Path, name: str) -> None:
    training = ONE_MUON if "muon" in name else ONE
    check_weights(
        trained_by_two, name, train(training, "ab", 4, trained_by_two, resume=trained_by_two / f"{name}.ckpt")
    )


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_four_processes_are_as_one(of_four: Path, case: Case) -> None:
    check(of_four, case)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHARDED_NAMES)
def test_shards_are_what_would_have_been_gathered(trained_by_two: Path, name: str) -> None:
    """All of a checkpoint: weights, their average, optimizer state, and what is no tensor; to the last bit."""
    path = trained_by_two / f"{name}.ckpt"
    sharded, gathered = load_checkpoint(path), load_checkpoint(trained_by_two / f"gathered {name}.ckpt")
    expected, found = leaves(gathered), leaves(sharded)
    assert list(found) == list(expected)
    assert [place for place, value in expected.items() if not same(value, found[place])] == []
    stored = leaves(load_checkpoint(path, on_disk=True))
    for part in ("state_dict", "ema", "optimizer_states"):  # a part of each process
        parts = [value.parts for place, value in stored.items() if place[0] == part and isinstance(value, StoredTensor)]
        assert parts and {len(one) for one in parts} == {2}
    files = {one.name: one.stat().st_size for one in (trained_by_two / f"{name}.shards-1").iterdir()}
    assert set(files) == {".metadata", "__0_0.distcp", "__1_0.distcp"}
    assert files["__0_0.distcp"] == pytest.approx(files["__1_0.distcp"], rel=0.1)


@pytest.mark.slow
def test_training_goes_on_from_shards_as_from_one_file(trained_by_two: Path) -> None:
    sharded, gathered = (torch.load(trained_by_two / f"resumed {way}.pt") for way in ("", "gathered "))
    assert sharded.keys() == gathered.keys() and all(torch.equal(sharded[name], gathered[name]) for name in sharded)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["", "gathered "])
def test_four_processes_resume_what_two_have_begun(
    trained_by_two: Path, commands: Commands, tmp_path: Path, way: str
) -> None:
    run_ranks(commands, tmp_path, of_two_by_four, (str(tmp_path), str(trained_by_two / f"{way}fsdp2.ckpt")), 4)
    check_weights(trained_by_two, "fsdp2", torch.load(tmp_path / "four.pt"))


def leaves(tree: Any, place: tuple[Any, ...] = ()) -> dict[tuple[Any, ...], Any]:
    """What is no dictionary or list, by the keys that lead to it."""
    if not isinstance(tree, dict | list):
        return {place: tree}
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    return {inner: leaf for key, value in items for inner, leaf in leaves(value, (*place, key)).items()}


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return bool(one == other)
