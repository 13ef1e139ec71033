"""Every model on two processes: trained, evaluated, saved, resumed by any number of them, and exported."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cli.command import Commands
from parallel.every_model import MODELS, Fit, composed
from parallel.test_several_processes import meet, part
from parallel.trained import launched
from processes import run_ranks
from vidlab.errors import UserError
from vidlab.lab.compose import build_module
from vidlab.lab.export import main as export
from vidlab.tensors import read_tensors

WAYS = {"fsdp2": ("fsdp2", 1), "ddp": ("ddp", 1), "shared": ("ddp", 2), "fsdp2 shared": ("fsdp2", 2)}
ALONE = ("mmdim", "harivo", "harivo_image")  # cannot share a clip


def of_two(one: Fit, way: str) -> Fit:
    trainer, share = WAYS[way]
    return replace(one, trainer=trainer, processes=2, share=share)


def worker(rank: int, folder: str, begun: Fit, ended: Fit, ways: tuple[str, ...]) -> None:
    """Every way: from the start to step 2, saved, and from step 2 of one process to step 4."""
    place = Path(folder)
    meet(rank, 2, place)
    launched(rank, 2)
    for way in ways:
        of_two(begun, way).run(place / way, save="two.ckpt")
        weights = of_two(ended, way).run(place / way, resume="../one.ckpt")
        if rank == 0:
            torch.save(weights, place / way / "weights.pt")
    part()


def check(expected: dict[str, torch.Tensor], found: dict[str, torch.Tensor], start: dict[str, torch.Tensor]) -> None:
    """Nearer than a thousandth of what training has moved."""
    assert found.keys() == expected.keys()
    moved = max((expected[name] - start[name]).abs().max().item() for name in expected)
    wrong = max((found[name] - value).abs().max().item() for name, value in expected.items())
    assert wrong < 1e-3 * moved, (wrong, moved)


def exported(checkpoint: Path, folder: Path) -> dict[str, torch.Tensor]:
    export([str(checkpoint), str(folder)])
    files = sorted(folder.rglob("*.safetensors"))
    return {f"{file.name} {name}": one for file in files for name, one in read_tensors(file, "").items()}


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_two_processes_do_all_that_one_does(commands: Commands, tmp_path: Path, model: str) -> None:
    ways = tuple(way for way in WAYS if model not in ALONE or WAYS[way][1] == 1)
    begun, ended = Fit(model, steps=2), Fit(model, steps=4)
    before = begun.run(tmp_path, save="one.ckpt")
    expected = ended.run(tmp_path, resume="one.ckpt")
    given = exported(tmp_path / "one.ckpt", tmp_path / "one")
    run_ranks(commands, tmp_path, worker, (str(tmp_path), begun, ended, ways))
    for way in ways:
        check(expected, torch.load(tmp_path / way / "weights.pt"), before)
        check(expected, ended.run(tmp_path / way, resume="two.ckpt"), before)
        found = exported(tmp_path / way / "two.ckpt", tmp_path / way / "exported")
        assert given.keys() == found.keys()
        assert len(list((tmp_path / way / "evaluation" / "videos").iterdir())) == 3
        for name, value in given.items():
            torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4, msg=f"{way}: {name}")


@pytest.mark.parametrize("model", ALONE)
def test_a_model_that_reads_tokens_in_order_refuses_to_share_them(model: str) -> None:
    module = build_module(composed("train", *Fit(model, "ddp", 2, 2).words))
    with pytest.raises(UserError, match=r"trainer.sequence_parallel=2: .*Use trainer.sequence_parallel=1"):
        module.check_sharing(2)
