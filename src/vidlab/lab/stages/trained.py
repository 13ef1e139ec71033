"""What a finished stage leaves beside its run: the digest of its weights, and what they were trained from."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from vidlab.errors import UserError
from vidlab.files import write_json
from vidlab.lab.stages.graph import Stage
from vidlab.parallel.stored_shards import StoredTensor
from vidlab.training.checkpoint_io import load_checkpoint

RECORD, WEIGHTS = "stage.json", "checkpoints/last.ckpt"
SHOWN = 8  # digits of a key in the name of a folder
# Where metrics are written is no part of what is trained.
NOT_TRAINED = ("logger",)


@dataclass(frozen=True)
class TrainedStage:
    """A stage whose training has ended.

    Args:
        stage: its name.
        key: from ``stage_key``, of what it was trained from.
        digest: of its averaged weights.
        words: its command line.
        parents: for each parent the part it gave and the digest of its weights.
        size: bytes of its checkpoint.
        written: when that was written, in nanoseconds.
    """

    stage: str
    key: str
    digest: str
    words: tuple[str, ...]
    parents: Mapping[str, tuple[str, str]]
    size: int
    written: int


def stage_key(stage: Stage, parents: Mapping[str, str]) -> str:
    """A digest of all that a stage is trained from: its words, and its parents' weights.

    Args:
        stage: the stage.
        parents: digests of the weights of its parents.
    """
    words = [word for word in stage.words() if word.lstrip("+~").partition("=")[0].split(".")[0] not in NOT_TRAINED]
    content = {"words": words, "parents": {name: [part, parents[name]] for name, part in stage.parents.items()}}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def place_of(stage: Stage, key: str) -> str:
    """The name of the folder of a stage as it is described; another description has another."""
    return f"{stage.name}-{key[:SHOWN]}"


def weights_digest(checkpoint: Path) -> str:
    """SHA-256 of the weights that a next stage starts from: the averaged ones in place of the trained.

    Raises:
        UserError: the file is damaged or no checkpoint.
    """
    state = load_checkpoint(checkpoint, on_disk=True)
    weights = {**state["state_dict"], **state.get("ema", {})}
    found = hashlib.sha256()
    for name in sorted(weights):
        stored = weights[name]
        value = (stored.whole() if isinstance(stored, StoredTensor) else stored.detach().cpu()).contiguous()
        found.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
        found.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def record_trained(stage: Stage, key: str, parents: Mapping[str, str], folder: Path) -> TrainedStage:
    """Write ``stage.json`` of a stage that has ended in its folder; ``parents`` are digests of weights.

    Raises:
        UserError: it left no checkpoint, or a damaged one.
    """
    checkpoint = folder / WEIGHTS
    if not checkpoint.is_file():
        raise UserError(f"stage {stage.name} ended without {checkpoint}: it needs callbacks.checkpoint.")
    stat = checkpoint.stat()
    given = {name: (part, parents[name]) for name, part in stage.parents.items()}
    digest = weights_digest(checkpoint)
    found = TrainedStage(stage.name, key, digest, stage.words(), given, stat.st_size, stat.st_mtime_ns)
    write_json(folder / RECORD, asdict(found))
    return found


def read_trained(folder: Path, key: str) -> TrainedStage | None:
    """The stage that has ended in a folder; None where none has, or one of another description.

    Raises:
        UserError: its weights are not those that it ended with.
    """
    path, checkpoint = folder / RECORD, folder / WEIGHTS
    try:
        found = _read(json.loads(path.read_text("utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}: {error}); delete it to go on.") from None
    if found.key != key:
        return None
    if not checkpoint.is_file():
        raise UserError(f"{checkpoint} is gone, which other stages start from: delete {path} to train it again.")
    stat = checkpoint.stat()
    same = (stat.st_size, stat.st_mtime_ns) == (found.size, found.written)
    if not same and weights_digest(checkpoint) != found.digest:
        raise UserError(
            f"{checkpoint} is no longer what stage {found.stage} ended with, as when its run was trained further. "
            f"Delete {path} to take it as it is, and what follows is trained again; or the folder, to train it again."
        )
    return found


def _read(content: Mapping[str, Any]) -> TrainedStage:
    parents = {str(name): (str(part), str(digest)) for name, (part, digest) in content["parents"].items()}
    stage, key, digest = (str(content[name]) for name in ("stage", "key", "digest"))
    words, size, written = tuple(map(str, content["words"])), int(content["size"]), int(content["written"])
    return TrainedStage(stage, key, digest, words, parents, size, written)
