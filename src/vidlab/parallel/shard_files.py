"""Writing the shards of a checkpoint: every process its own rows, with ``torch.distributed.checkpoint``."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_map_only

from vidlab.parallel.shards import is_row_shard, whole
from vidlab.parallel.stored_shards import MARK, SHARDS, Part, StoredTensor, recorded

Place = tuple[Any, ...]


def new_folder(path: Path) -> Path:
    """A new folder for the shards of the checkpoint ``path``."""
    numbers = [int(folder.name.rpartition(MARK)[2]) for folder in folders_beside(path)]
    folder = path.with_name(f"{path.stem}{MARK}{max(numbers, default=0) + 1}")
    folder.mkdir(parents=True)
    return folder


def remove_shards(path: Path, in_use: str | None = None) -> None:
    """Remove all shards of the checkpoint ``path`` but those in the folder that is in use."""
    for folder in folders_beside(path):
        if folder.name != in_use:
            shutil.rmtree(folder, ignore_errors=True)


def folders_beside(path: Path) -> list[Path]:
    """The folders of shards of the checkpoint ``path``: that which it names, and what killed processes have left."""
    start = path.stem + MARK
    found = [one for one in path.parent.glob(f"*{MARK}*") if one.name.startswith(start)]
    return [one for one in found if one.name.removeprefix(start).isdigit() and one.is_dir()]


def size_of(folder: Path) -> int:
    """Bytes of a folder of shards."""
    return sum(file.stat().st_size for file in folder.iterdir())


def write_shards(checkpoint: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Write what is sharded of a checkpoint; every process must call this.

    Args:
        checkpoint: whose tensors that are dealt out in rows (``DTensor``) are written, wherever they are in it.
        folder: an empty one, the same on all processes.

    Returns:
        The rest, with None at the places of what was written, and an entry that says where it lies.

    Raises:
        torch.distributed.checkpoint.api.CheckpointException: on all processes, where one could not write.
        OSError: files of other processes are not there.
    """
    import torch.distributed.checkpoint as dcp

    shards: dict[Place, Tensor] = {}
    rest = _without_shards(checkpoint, (), shards)
    by_key = {"/".join(map(str, place)): place for place in shards}
    written = dcp.save(
        {key: shards[place] for key, place in by_key.items()},
        storage_writer=dcp.FileSystemWriter(folder, sync_files=True),
        planner=dcp.DefaultSavePlanner(flatten_state_dict=False),
    )
    tensors = [recorded(place, _found(written, key, folder)) for key, place in by_key.items()]
    for file in sorted({part[1] for one in tensors for part in one["parts"]}):
        (folder / file).stat()  # another machine's, where the folder is not shared
    return {**rest, SHARDS: {"folder": folder.name, "tensors": tensors}}


def _without_shards(tree: Any, place: Place, shards: dict[Place, Tensor]) -> Any:
    """The tree with None for each shard, which is put into ``shards``; what is not changed is not copied."""
    if isinstance(tree, dict | list):
        items = list(tree.items() if isinstance(tree, dict) else enumerate(tree))
        kept = [(key, _without_shards(value, (*place, key), shards)) for key, value in items]
        if all(new is old for (_, new), (_, old) in zip(kept, items, strict=True)):
            return tree
        return dict(kept) if isinstance(tree, dict) else [value for _, value in kept]
    if isinstance(tree, Tensor) and is_row_shard(tree):
        shards[place] = tree.detach()
        return None
    return tree_map_only(Tensor, whole, tree)


def _found(written: Any, key: str, folder: Path) -> StoredTensor:
    """Where DCP says that it has put a tensor."""
    from torch.distributed.checkpoint.metadata import MetadataIndex

    stored = written.state_dict_metadata[key]
    chunks = sorted((one for one in stored.chunks if one.sizes[0]), key=lambda one: one.offsets[0])
    places = [written.storage_data[MetadataIndex(key, chunk.offsets)] for chunk in chunks]
    parts = [
        Part(chunk.sizes[0], place.relative_path, place.offset, place.length)
        for chunk, place in zip(chunks, places, strict=True)
    ]
    return StoredTensor(folder, tuple(stored.size), stored.properties.dtype, tuple(parts))
