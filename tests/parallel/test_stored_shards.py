"""Shards read back: rows of tensors from files that several processes would have written, sound or not."""

import copy
import pickle
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from training.test_checkpoint_io import Hostile
from vidlab.errors import UserError
from vidlab.lab.stages.trained import weights_digest
from vidlab.parallel.stored_shards import SHARDS, Part, StoredTensor, recorded
from vidlab.training.checkpoint_io import AtomicCheckpointIO, load_checkpoint, shards_in_use

WEIGHT, TABLE = torch.arange(20.0).reshape(5, 4), torch.arange(3)
REST = {"state_dict": {"bias": torch.ones(2), "weight": None}, "ema": {"table": None}, "global_step": 3}


def stored(folder: Path, tensor: Tensor, *rows: int) -> StoredTensor:
    """A tensor in as many files, one after the other in each."""
    parts = []
    for number, part in enumerate(tensor.split(rows)):
        with (folder / f"__{number}_0.distcp").open("ab") as file:
            start = file.seek(0, 2)
            torch.save(part.clone(), file)
            parts.append(Part(len(part), f"__{number}_0.distcp", start, file.tell() - start))
    return StoredTensor(folder, tuple(tensor.shape), tensor.dtype, tuple(parts))


def sharded(path: Path, number: int = 1) -> dict[str, Any]:
    """What is to be the file of a checkpoint whose shards lie beside it."""
    folder = path.with_name(f"last.shards-{number}")
    folder.mkdir(parents=True)
    weight, table = stored(folder, WEIGHT, 2, 2, 1), stored(folder, TABLE, 1, 2)
    tensors = [recorded(("state_dict", "weight"), weight), recorded(("ema", "table"), table)]
    return {**copy.deepcopy(REST), SHARDS: {"folder": folder.name, "tensors": tensors}}


@pytest.fixture
def last(tmp_path: Path) -> Path:
    path = tmp_path / "checkpoints" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(sharded(path), path)
    return path


def test_any_rows_of_a_tensor(tmp_path: Path) -> None:
    found = stored(tmp_path, WEIGHT, 2, 2, 1)
    for first in range(6):
        for end in range(first, 6):
            assert torch.equal(found.rows(first, end), WEIGHT[first:end])
    assert torch.equal(found.whole(), WEIGHT)
    assert found.rows(0, 1).untyped_storage().nbytes() == 16  # and no other rows in memory


def test_a_checkpoint_with_shards_is_read_as_one_file(last: Path) -> None:
    found = load_checkpoint(last)
    assert list(found) == ["state_dict", "ema", "global_step"] and list(found["state_dict"]) == ["bias", "weight"]
    assert torch.equal(found["state_dict"]["weight"], WEIGHT) and torch.equal(found["ema"]["table"], TABLE)
    assert isinstance(load_checkpoint(last, on_disk=True)["ema"]["table"], StoredTensor)
    assert load_checkpoint(last, read=lambda one: one.rows(1, 2))["ema"]["table"].tolist() == [1]


def test_the_digest_of_weights_is_that_of_one_file(last: Path, tmp_path: Path) -> None:
    torch.save(load_checkpoint(last), tmp_path / "one.ckpt")
    assert weights_digest(last) == weights_digest(tmp_path / "one.ckpt")


def test_a_save_that_was_killed_leaves_the_checkpoint_and_the_next_removes_its_rest(last: Path) -> None:
    half = sharded(last, 2)
    (last.parent / "last.shards-2" / "__2_0.distcp").unlink()
    (last.parent / "lasting.shards-2").mkdir()  # another checkpoint's
    assert shards_in_use(last) == "last.shards-1" and torch.equal(load_checkpoint(last)["ema"]["table"], TABLE)
    assert half[SHARDS]["folder"] == "last.shards-2"
    AtomicCheckpointIO().save_checkpoint(sharded(last, 3), last)
    assert names(last) == ["last.ckpt", "last.shards-3", "lasting.shards-2"]
    AtomicCheckpointIO().save_checkpoint({"state_dict": {}}, last)
    assert names(last) == ["last.ckpt", "lasting.shards-2"] and shards_in_use(last) is None


def test_removing_a_checkpoint_removes_its_shards(last: Path) -> None:
    AtomicCheckpointIO().remove_checkpoint(last)
    assert names(last) == []


def names(last: Path) -> list[str]:
    return sorted(path.name for path in last.parent.iterdir())


def test_a_file_that_was_copied_without_its_shards(last: Path, tmp_path: Path) -> None:
    alone = Path(last.rename(tmp_path / "last.ckpt"))
    with pytest.raises(UserError, match=r"There is no .*__0_0.distcp.*the folder last.shards-1 beside it. Copy both"):
        load_checkpoint(alone)


def test_a_pickle_among_shards_is_refused_and_never_runs(last: Path, tmp_path: Path) -> None:
    """Not as a shard, and not as DCP's own ``.metadata``, which is not opened."""
    proof = tmp_path / "it ran"
    folder = last.parent / "last.shards-1"
    (folder / ".metadata").write_bytes(pickle.dumps(Hostile(proof)))
    assert torch.equal(load_checkpoint(last)["ema"]["table"], TABLE)
    for save in (pickle.dump, torch.save):
        with (folder / "hostile").open("wb") as file:
            save(Hostile(proof), file)
        part = Part(3, "hostile", 0, (folder / "hostile").stat().st_size)
        with pytest.raises(UserError, match=r"hostile cannot be read as shards of a checkpoint"):
            StoredTensor(folder, (3,), torch.uint8, (part,)).whole()
    assert not proof.exists()


def test_damaged_shards_are_refused_or_change_nothing(last: Path) -> None:
    path, draw, refused = last.parent / "last.shards-1" / "__0_0.distcp", random.Random(0), 0
    good = path.read_bytes()
    for _ in range(40):
        bad = bytearray(good)
        bad[draw.randrange(len(bad))] ^= 1 << draw.randrange(8)
        path.write_bytes(bad)
        try:
            assert torch.equal(load_checkpoint(last)["state_dict"]["weight"], WEIGHT)
        except UserError as error:
            refused += "\n" not in str(error) and "beside last.shards-1." in str(error)
    assert refused > 8  # the others hit dates and paddings
    path.write_bytes(good[:-1])
    with pytest.raises(UserError, match="it is cut off"):
        load_checkpoint(last)


ONE = {"place": ["ema", "table"], "dtype": "int64", "shape": [3], "parts": [[3, "__0_0.distcp", 0, 2000]]}
NONSENSE: dict[str, dict[str, Any]] = {
    "a folder elsewhere": {"folder": "../last.shards-1"},
    "a folder of another kind": {"folder": "checkpoints"},
    "no list": {"tensors": 3},
    "no tensor there": {"tensors": [{**ONE, "place": ["ema", "other"]}]},
    "something else there": {"tensors": [{**ONE, "place": ["global_step"]}]},
    "no place": {"tensors": [{**ONE, "place": []}]},
    "no numbers": {"tensors": [{**ONE, "dtype": "load"}]},
    "rows missing": {"tensors": [{**ONE, "shape": [4]}]},
    "rows without end": {"tensors": [{**ONE, "shape": [10**15], "parts": [[10**15, "__0_0.distcp", 0, 2000]]}]},
    "a file elsewhere": {"tensors": [{**ONE, "parts": [[3, "../last.ckpt", 0, 2000]]}]},
    "before its file": {"tensors": [{**ONE, "parts": [[3, "__0_0.distcp", -5, 2000]]}]},
    "no part": {"tensors": [{**ONE, "parts": [[3]]}]},
}


@pytest.mark.parametrize("case", NONSENSE)
def test_what_a_file_says_of_its_shards_is_not_believed(last: Path, case: str) -> None:
    content = torch.load(last, weights_only=True)
    torch.save({**content, SHARDS: {**content[SHARDS], **NONSENSE[case]}}, last)
    with pytest.raises(UserError, match=r"last.ckpt cannot be read as a checkpoint, it is damaged"):
        load_checkpoint(last)


def test_shards_of_another_shape_than_said(last: Path) -> None:
    content = torch.load(last, weights_only=True)
    content[SHARDS]["tensors"][0]["shape"], content[SHARDS]["tensors"][1]["dtype"] = [5, 2], "float64"
    torch.save(content, last)
    with pytest.raises(UserError, match="holds other rows than those that were written"):
        load_checkpoint(last)
