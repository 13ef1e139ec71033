"""Reading and writing checkpoint files without losing one and without running code from one."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO

from vidlab.digests import DamagedError, check_archive
from vidlab.errors import UserError, first_line
from vidlab.files import remove_leftovers, written_aside
from vidlab.parallel.shard_files import remove_shards
from vidlab.parallel.stored_shards import SHARDS, StoredTensor, folder_of, put_together

PLAIN_DATA = "/data.pkl"  # what torch calls the record of everything but the tensors' numbers
BESIDE = "Try best.ckpt or last.ckpt beside it."


def load_checkpoint(
    path: Path | str,
    map_location: Any = "cpu",
    on_disk: bool = False,
    read: Callable[[StoredTensor], Any] = StoredTensor.whole,
) -> dict[str, Any]:
    """Read a checkpoint as data only (``weights_only=True``), compared with its checksums.

    Args:
        path: the file; a sharded checkpoint is read whole.
        map_location: as of ``torch.load``.
        on_disk: leave tensors on the disk until they are used, and verify only what is not tensors: for those who want
            no more than that. Sharded ones are then ``StoredTensor``.
        read: what to read of a sharded tensor.

    Raises:
        UserError: no such file, not a checkpoint, damaged, or holding anything but tensors and plain data.
    """
    path = Path(path)
    try:
        checkpoint = _read_file(path, map_location, on_disk)
        put_together(checkpoint, path, (lambda stored: stored) if on_disk else read)
    except DamagedError as error:
        raise UserError(f"{path} cannot be read as a checkpoint, it is damaged: {error}. {BESIDE}") from None
    return checkpoint


def _read_file(path: Path, map_location: Any, on_disk: bool) -> dict[str, Any]:
    try:
        check_archive(path, PLAIN_DATA if on_disk else "")
        checkpoint = torch.load(path, map_location=map_location, weights_only=True, mmap=on_disk)
    except FileNotFoundError:
        raise UserError(f"There is no checkpoint {path}.") from None
    except DamagedError:
        raise
    except Exception as error:  # bytes of another kind raise whatever the unpickler stumbles over
        reason = first_line(error)
        raise UserError(
            f"{path} cannot be read as a checkpoint: it is truncated, of another kind, or holds more than tensors and "
            f"plain data, which vidlab never loads ({reason}). {BESIDE}"
        ) from None
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise UserError(f"{path} is a file of tensors but not a vidlab checkpoint: it has no state_dict.")
    return checkpoint


def shards_in_use(path: Path) -> str | None:
    """The folder of shards that a checkpoint's file names; None without such a file, or of one that is not sharded.

    Raises:
        UserError: the file is damaged.
        DamagedError: so are its checksums, or its entry of shards.
    """
    record = _read_file(path, "cpu", on_disk=True).get(SHARDS) if path.exists() else None
    return None if record is None else folder_of(record)


def not_written(path: Path, error: object) -> UserError:
    """The message for a checkpoint that could not be written."""
    return UserError(
        f"The checkpoint {path} could not be written ({error}). Earlier checkpoints are intact. Free disk "
        f"space or make the folder writable, then resume with ckpt_path=last."
    )


class AtomicCheckpointIO(CheckpointIO):
    """Writes to a temporary file in the same folder, then renames: a full disk or a kill leaves the old file whole.

    The shards of a checkpoint lie beside its file, which names them: they are written before it, and those that it
    named before are removed after it.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write a checkpoint.

        Raises:
            UserError: the folder cannot be written or the disk is full.
        """
        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            remove_leftovers(path.parent, quiet=0)  # the lock on the run keeps others out
            with written_aside(path) as aside, aside.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
        except (OSError, RuntimeError) as error:
            raise not_written(path, error) from error
        remove_shards(path, folder_of(checkpoint[SHARDS]) if SHARDS in checkpoint else None)

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint; ``weights_only`` is always on."""
        return load_checkpoint(path, map_location or "cpu")

    def remove_checkpoint(self, path: Any) -> None:
        """Delete a checkpoint file, and its shards."""
        Path(path).unlink(missing_ok=True)
        remove_shards(Path(path))
