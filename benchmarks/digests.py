"""What comparing checksums costs, next to the same reading without it. Files are in the page cache.

Rounds alternate between the two. ``share`` is the median over rounds of (with - without) / without, in processor time
as the neighbors of a busy machine do not count in it, and by the clock, which threads shorten.

    python benchmarks/digests.py [--megabytes 256] [--rounds 7]
"""

import argparse
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from unittest.mock import patch

import numpy as np
import torch
from safetensors.torch import load_file

from record import record
from vidlab.data.storage import latent_cache as cache
from vidlab.data.storage import row_store
from vidlab.data.storage.index import ClipIndex, ClipRow, write_index
from vidlab.data.storage.shards import read_member
from vidlab.data.video import encode, read_frames
from vidlab.digests import checksum
from vidlab.tensors import read_tensors, save_tensors
from vidlab.training import checkpoint_io

Read = Callable[[], object]
CAPTION = "a person walks a dog along the beach at sunset while waves roll in and gulls circle over the water"


def checkpoint(folder: Path, megabytes: int) -> tuple[Read, Read]:
    """A file of ``torch.save``, read whole.

    Its tensors are so large that each read takes new memory, as the one read of a process does.
    """
    file = folder / "last.ckpt"
    state = {str(n): torch.randn(1 << 24) for n in range(megabytes // 64)}
    checkpoint_io.AtomicCheckpointIO().save_checkpoint({"state_dict": state}, file)

    def plain() -> object:
        with patch.object(checkpoint_io, "check_archive", lambda *_: None):
            return checkpoint_io.load_checkpoint(file)

    return plain, lambda: checkpoint_io.load_checkpoint(file)


def weights(folder: Path, megabytes: int) -> tuple[Read, Read]:
    """A safetensors file, its tensors copied to a model's."""
    file = folder / "w.safetensors"
    model = {str(n): torch.randn(1 << 18) for n in range(megabytes)}
    save_tensors(model, file)

    def into_model(state: dict[str, torch.Tensor]) -> None:
        for name, value in state.items():
            model[name].copy_(value)

    return lambda: into_model(load_file(file)), lambda: into_model(read_tensors(file, ""))


def cached_clips(folder: Path, megabytes: int) -> tuple[Read, Read]:
    """Encoded clips of 1 MB out of their part of a shard, without opening the file."""
    import io
    import tarfile

    array = cache.array_bytes(torch.randn(2, 8, 8, 64, 64).bfloat16())
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        member = tarfile.TarInfo("0.latent.npy")
        member.size = len(array)
        tar.addfile(member, io.BytesIO(array))
    (folder / "0.tar").write_bytes(stream.getvalue())
    size, crc = len(stream.getvalue()), checksum([array])

    def read(crc: int | None) -> None:
        for _ in range(megabytes):
            cache.read_parts(read_member(folder, "0.tar", 0, size), crc)

    return lambda: read(None), lambda: read(crc)


def videos(folder: Path, megabytes: int) -> tuple[Read, Read]:
    """Clips of 16 frames of 64 x 64 pixels in a shard, read and decoded."""
    frames = np.random.default_rng(0).integers(0, 255, (16, 8, 8, 3), np.uint8).repeat(8, 1).repeat(8, 2)
    data = encode(frames, 8, lossless=True)
    (folder / "1.tar").write_bytes(data)
    crc = checksum([data])

    def read(crc: int | None) -> None:
        for _ in range(megabytes):
            read_frames(read_member(folder, "1.tar", 0, len(data), None, crc))

    return lambda: read(None), lambda: read(crc)


def rows(folder: Path, megabytes: int) -> tuple[Read, Read]:
    """Single rows of an index at random places."""

    def row(n: int) -> ClipRow:
        texts = (f"{CAPTION}, take {n}",)
        return ClipRow(f"{n:08d}", "0.tar", n, 9, 48, 720, 1280, 24.0, 2.0, texts, "train", f"film_{n}", None)

    write_index(folder, map(row, range(20_000)), {})
    index = ClipIndex.open(folder)
    places = random.Random(0).choices(range(20_000), k=10 * megabytes)

    def verified() -> None:
        for place in places:
            index.row(place)

    class Equal(int):
        def __ne__(self, other: object) -> bool:
            return False

    def plain() -> None:
        with patch.object(row_store, "crc32", lambda content: Equal()):
            verified()

    return plain, verified


KINDS = {"checkpoint": checkpoint, "safetensors": weights, "encoded clips": cached_clips, "clips": videos, "rows": rows}


def timed(read: Read) -> tuple[float, float]:
    """Milliseconds of the processor and by the clock."""
    cpu, clock = time.process_time(), time.perf_counter()
    read()
    return (time.process_time() - cpu) * 1e3, (time.perf_counter() - clock) * 1e3


def measure(megabytes: int, rounds: int) -> Iterator[dict[str, str]]:
    """A row for each kind of file."""
    for kind, prepare in KINDS.items():
        with tempfile.TemporaryDirectory() as folder:
            plain, verified = prepare(Path(folder), megabytes)
            plain(), verified()
            found = [(timed(plain), timed(verified)) for _ in range(rounds)]
        shares = [[(b[i] - a[i]) / a[i] for a, b in found] for i in (0, 1)]
        yield {
            "kind": kind,
            "megabytes": str(megabytes),
            "rounds": str(rounds),
            "without_ms": f"{median(a[1] for a, _ in found):.1f}",
            "with_ms": f"{median(b[1] for _, b in found):.1f}",
            "share_of_cpu": f"{median(shares[0]):.2f}",
            "share_of_clock": f"{median(shares[1]):.2f}",
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = []
    for row in measure(arguments.megabytes, arguments.rounds):
        print(*(f"{name} {value}" for name, value in row.items()), flush=True)
        found.append(row)
    print(record("digests", found))


if __name__ == "__main__":
    main()
