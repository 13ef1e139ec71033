import multiprocessing
import os
import pickle
import random
import resource
import signal
from pathlib import Path

import pytest
import torch

from vidlab.errors import UserError
from vidlab.training.checkpoint_io import AtomicCheckpointIO, load_checkpoint

STATE = {"state_dict": {"w": torch.arange(4.0)}, "global_step": 3, "ema": {"w": torch.zeros(4)}}


class Hostile:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.fixture
def last(tmp_path) -> Path:
    path = tmp_path / "checkpoints" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(STATE, path)
    return path


def test_what_is_saved_is_loaded(last):
    loaded = AtomicCheckpointIO().load_checkpoint(last)
    assert loaded["global_step"] == 3 and torch.equal(loaded["state_dict"]["w"], torch.arange(4.0))
    assert [path.name for path in last.parent.iterdir()] == ["last.ckpt"]


def test_a_new_save_replaces_the_old(last):
    AtomicCheckpointIO().save_checkpoint(STATE | {"global_step": 4}, last)
    assert load_checkpoint(last)["global_step"] == 4


def test_the_old_file_is_never_written_to(last, tmp_path):
    # a second name of the old file: it keeps the old content only if the new file took the name by renaming
    (tmp_path / "old.ckpt").hardlink_to(last)
    AtomicCheckpointIO().save_checkpoint(STATE | {"global_step": 4}, last)
    assert load_checkpoint(tmp_path / "old.ckpt")["global_step"] == 3


def test_removing(last):
    AtomicCheckpointIO().remove_checkpoint(last)
    AtomicCheckpointIO().remove_checkpoint(last)
    assert not last.exists()


def intact(last: Path) -> bool:
    return load_checkpoint(last)["global_step"] == 3 and [p.name for p in last.parent.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), RuntimeError("PytorchStreamWriter failed writing file")]
)
def test_a_failing_write_leaves_the_old_file_and_nothing_else(last, monkeypatch, error):
    def half(checkpoint, file):
        file.write(b"half a checkpoint")
        raise error

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(UserError, match=r"last.ckpt could not be written .*resume with ckpt_path=last"):
        AtomicCheckpointIO().save_checkpoint(STATE, last)
    assert intact(last)


@pytest.mark.parametrize("error", [KeyboardInterrupt, pickle.PicklingError, TypeError])
def test_whatever_stops_a_write_leaves_no_half_file(last, monkeypatch, error):
    def half(checkpoint, file):
        file.write(b"half a checkpoint")
        raise error("stopped")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(error):
        AtomicCheckpointIO().save_checkpoint(STATE, last)
    assert intact(last)


def test_a_full_disk_leaves_the_old_file(last):
    # the kernel refuses to grow a file beyond this size, as a full disk would: torch's real writer fails
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        with pytest.raises(UserError, match="could not be written"):
            AtomicCheckpointIO().save_checkpoint({"state_dict": {"w": torch.zeros(1_000_000)}}, last)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert intact(last)


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "checkpoints").write_text("in the way")
    with pytest.raises(UserError, match="could not be written"):
        AtomicCheckpointIO().save_checkpoint(STATE, tmp_path / "checkpoints" / "last.ckpt")


def test_a_kill_in_the_middle_leaves_the_old_file(last):
    def die_half_way(checkpoint, file):
        file.write(b"half a checkpoint")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    def save():
        torch.save = die_half_way
        AtomicCheckpointIO().save_checkpoint({"state_dict": {}}, last)

    process = multiprocessing.get_context("fork").Process(target=save)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert load_checkpoint(last)["global_step"] == 3


@pytest.mark.parametrize("save", [pickle.dump, torch.save], ids=["pickle", "torch"])
def test_a_hostile_file_is_refused_and_never_runs(tmp_path, save):
    path, proof = tmp_path / "evil.ckpt", tmp_path / "it ran"
    with path.open("wb") as file:
        save({"state_dict": {}, "payload": Hostile(proof)}, file)
    for load in (load_checkpoint, AtomicCheckpointIO().load_checkpoint):
        with pytest.raises(UserError, match="never loads"):
            load(path)
    with pytest.raises(UserError):
        AtomicCheckpointIO().load_checkpoint(path, weights_only=False)  # asking does not help
    assert not proof.exists()
    pickle.loads(pickle.dumps(Hostile(proof))).close()
    assert proof.exists()  # it would have


def test_a_truncated_file(last):
    content = last.read_bytes()
    for share in (0.0, 0.1, 0.5, 0.9, 0.99):
        last.write_bytes(content[: int(share * len(content))])
        with pytest.raises(
            UserError, match=r"last.ckpt cannot be read as a checkpoint.*(cut off|truncated).*best.ckpt"
        ):
            load_checkpoint(last)


def test_garbage(tmp_path):
    path = tmp_path / "some.ckpt"
    generator = torch.Generator().manual_seed(0)
    for length in range(1, 200):
        path.write_bytes(bytes(torch.randint(256, (length,), generator=generator).tolist()))
        with pytest.raises(UserError, match="cannot be read"):
            load_checkpoint(path)
    for text in ("hello", "{}", "(dp0\nS'state_dict'\np1\n.", "cos\nsystem\n(S'echo'\ntR.", "\x80\x02}q\x00."):
        path.write_text(text, encoding="latin-1")
        with pytest.raises(UserError):
            load_checkpoint(path)


def test_no_file_and_no_state_dict(tmp_path):
    with pytest.raises(UserError, match=r"There is no checkpoint .*none.ckpt"):
        load_checkpoint(tmp_path / "none.ckpt")
    with pytest.raises(UserError, match="cannot be read"):
        load_checkpoint(tmp_path)
    for other in ({"w": torch.zeros(1)}, torch.zeros(1)):
        torch.save(other, tmp_path / "weights.pt")
        with pytest.raises(UserError, match="no state_dict"):
            load_checkpoint(tmp_path / "weights.pt")


@pytest.mark.parametrize("by", ["vidlab", "torch"])
def test_damage_is_refused_or_changes_nothing(tmp_path, by):
    """Wrong bits anywhere, also in files of earlier versions and of other programs: torch.load reads on."""
    path, draw = tmp_path / "last.ckpt", random.Random(0)
    state = STATE | {"config": "model: {width: 8}\n" * 20, "w": torch.arange(100.0)}
    AtomicCheckpointIO().save_checkpoint(state, path) if by == "vidlab" else torch.save(state, path)
    good, expected, refused = path.read_bytes(), plain(load_checkpoint(path)), 0
    for _ in range(60):
        bad = bytearray(good)
        bad[draw.randrange(len(bad))] ^= 1 << draw.randrange(8)
        path.write_bytes(bad)
        try:
            assert plain(load_checkpoint(path)) == expected
        except UserError as error:
            refused += "\n" not in str(error) and str(error).endswith("Try best.ckpt or last.ckpt beside it.")
    assert refused > 30  # the others hit dates and paddings, or nothing would be found


def plain(content) -> object:
    if isinstance(content, dict):
        return {name: plain(value) for name, value in content.items()}
    return (content.dtype, content.tolist()) if isinstance(content, torch.Tensor) else content
