"""How fast clips are read: this loader, plain PyAV and a webdataset pipeline, on the same H.264 clips and workers.

Four questions, the contestants of each taking turns:

whole     every frame of every clip, against PyAV decoding to RGB in as many workers, its frames delivered as they are
          (``raw``) or dropped where they were decoded (``dropped``), and against webdataset + PyAV with the same resize
          and crop
sampled   16 frames at a random place of longer members, against webdataset + PyAV that decodes up to the last of them
          and converts only those
resumed   the last tenth of an epoch, against webdataset that discards the batches before it (what skipping in a loader
          does), and one that passes over the samples before decoding

``raw`` and ``dropped`` convert frames with ``frame.to_ndarray(format="rgb24")``, as PyAV's documentation does; the
webdataset pipelines, ``raw_reused`` and ``dropped_reused`` keep one converter, which is faster. Decoded clips are not
kept in memory.

    python benchmarks/data_loading.py [--rounds 5] [--workers 2] [--clips 96] [--members 32]
"""

import argparse
import gc
import io
import itertools
import logging
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported; workers bring the parallelism

import av
import numpy as np
import pyarrow
import torch
import webdataset as wds
from av.video.reformatter import VideoReformatter
from torch.utils.data import DataLoader, Dataset, default_collate

from record import record
from vidlab.data.clip_transform import scale_to_cover
from vidlab.data.loader import BatchNumbers, ClipLoader
from vidlab.data.module import ClipDataModule
from vidlab.data.storage.index import ClipIndex, ClipRow
from vidlab.data.storage.shards import ShardWriter
from vidlab.data.video import VideoInfo, to_pixels
from vidlab.lab.cli.process_env import prepare_host

HEIGHT, WIDTH, FPS, SIDE, BATCH = 240, 320, 24, 128, 4
SHORT, LONG, SAMPLE = 3 * FPS, 10 * FPS, 16
PER_SHARD = 8
EPOCHS = 4  # of the long members, each time at another place

# webdataset hands an epoch out smaller than the loader was told, which torch warns of
warnings.filterwarnings("ignore", message="Length of IterableDataset")


# The clips


def video(seed: int, frames: int) -> bytes:
    """A textured picture that moves, H.264 with B-frames and a key frame a second."""
    random = np.random.default_rng(seed)
    base = random.integers(0, 256, (HEIGHT // 8 + 16, WIDTH // 8 + 16, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    base = (base.astype(np.uint16) + np.roll(base, 3, 0) + np.roll(base, 5, 1) + np.roll(base, 2, (0, 1))) // 4
    base = base.astype(np.uint8)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream: Any = container.add_stream("libx264", rate=FPS, options={"preset": "veryfast", "crf": "23"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.gop_size, stream.codec_context.thread_count = FPS, 1
        for number in range(frames):
            y, x = int(60 + 50 * np.sin(number / 20 + seed)), int(60 + 50 * np.cos(number / 17))
            picture = np.ascontiguousarray(base[y : y + HEIGHT, x : x + WIDTH])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return buffer.getvalue()


@dataclass(frozen=True)
class Shards:
    """Clips of one length, written once; a ``ClipSource``."""

    folder: Path
    clips: int
    frames: int
    name: str = "benchmark"

    def write(self) -> "Shards":
        """Write the shards."""
        info = VideoInfo(self.frames, HEIGHT, WIDTH, float(FPS), self.frames / FPS)
        with ShardWriter(self.folder, PER_SHARD) as writer:
            for number in range(self.clips):
                writer.add(f"{number:06d}", video(number, self.frames), info, [f"clip {number}"])
        return self

    def prepare(self) -> Path:
        """The folder."""
        return self.folder

    def rows(self) -> list[ClipRow]:
        """Every clip."""
        index = ClipIndex.open(self.folder)
        return [index.row(number) for number in range(len(index))]


# This loader


def ours(data: Shards, frames: int, workers: int, batches: int, first: int = 0) -> int:
    """Frames of ``batches`` batches from batch ``first``."""
    module = ClipDataModule(
        data, data.name, frames, SIDE, SIDE, batch_size=BATCH, num_workers=workers, val_clips=0, cache_decoded_mb=0
    )
    endless = module.train_dataloader()
    # the training loader fetches ahead without end; this one stops where the others do
    loader = ClipLoader(endless.dataset, BatchNumbers(lambda: first, first + batches), workers, endless.inspect)
    return sum(batch.pixels.shape[0] * batch.pixels.shape[2] for batch in loader)


# PyAV alone


@dataclass(frozen=True)
class Raw(Dataset[Any]):
    """Batches decoded to RGB: an item is the frames, uint8 (clips, T, H, W, 3), or only their number."""

    folder: Path
    rows: Sequence[ClipRow]
    reused: bool
    delivered: bool

    def __len__(self) -> int:
        return -(-len(self.rows) // BATCH)

    def __getitem__(self, number: int) -> torch.Tensor | int:
        clips = [self._decoded(row) for row in self.rows[number * BATCH : (number + 1) * BATCH]]
        if not self.delivered:
            return sum(map(len, clips))
        return default_collate([torch.from_numpy(np.stack(frames)) for frames in clips])

    def _decoded(self, row: ClipRow) -> list[np.ndarray]:
        with (self.folder / row.shard).open("rb") as file:
            file.seek(row.offset)
            data = file.read(row.size)
        if self.reused:
            return list(decoded(data, range(row.frames)))
        with av.open(io.BytesIO(data)) as container:
            container.streams.video[0].codec_context.thread_count = 1
            return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def raw(data: Shards, workers: int, reused: bool, delivered: bool) -> int:
    """Frames of an epoch."""
    order = np.random.default_rng(0).permutation(data.clips)
    rows = data.rows()
    dataset = Raw(data.folder, [rows[place] for place in order], reused, delivered)
    loader = DataLoader(dataset, batch_size=None, num_workers=workers)
    return sum(int(np.prod(batch.shape[:2])) if delivered else int(batch) for batch in loader)


def decoded(data: bytes, wanted: range) -> Iterator[np.ndarray]:
    """The wanted frames as RGB; decoding ends with the last."""
    reformatter = VideoReformatter()
    with av.open(io.BytesIO(data)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        for number, frame in enumerate(container.decode(video=0)):
            if number in wanted:
                yield reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
            if number == wanted[-1]:
                return


# webdataset


def to_clip(sample: dict[str, Any], frames: int) -> torch.Tensor:
    """A sample as pixels: whole, or ``frames`` frames at a random place; resized, cropped in the middle."""
    total = int(sample["json"]["frames"])
    start = int(np.random.randint(total - frames + 1))
    scaled = scale_to_cover(np.stack(list(decoded(sample["mp4"], range(start, start + frames)))), SIDE, SIDE)
    top, left = (scaled.shape[1] - SIDE) // 2, (scaled.shape[2] - SIDE) // 2
    return to_pixels(scaled[:, top : top + SIDE, left : left + SIDE])


def pipeline(data: Shards, frames: int, workers: int, skip: int = 0) -> DataLoader[Any]:
    """Shards in random order, a shuffle buffer, PyAV; every worker passes over its first ``skip`` samples."""
    shards = [str(path) for path in sorted(data.folder.glob("*.tar"))]
    dataset = wds.WebDataset(shards, shardshuffle=len(shards), workersplitter=wds.split_by_worker, seed=0)
    dataset = dataset.shuffle(4 * BATCH).slice(skip, None) if skip else dataset.shuffle(4 * BATCH)
    dataset = (
        dataset.decode(only=["json"]).map(partial(to_clip, frames=frames)).batched(BATCH, collation_fn=default_collate)
    )
    return DataLoader(dataset, batch_size=None, num_workers=workers)


def streamed(data: Shards, frames: int, workers: int, epochs: int = 1) -> int:
    """Frames of some epochs."""
    loader = pipeline(data, frames, workers)
    return sum(len(clips) * clips.shape[2] for _ in range(epochs) for clips in loader)


def streamed_from(data: Shards, frames: int, workers: int, first: int, discard: bool) -> int:
    """Frames of an epoch after its first ``first`` batches."""
    if discard:
        return sum(
            len(clips) * clips.shape[2] for clips in itertools.islice(pipeline(data, frames, workers), first, None)
        )
    loader = pipeline(data, frames, workers, skip=first * BATCH // max(workers, 1))
    return sum(len(clips) * clips.shape[2] for clips in loader)


# Rounds


@dataclass(frozen=True)
class Rate:
    """Medians over the rounds: frames per second of wall time, and milliseconds of processor time per frame.

    On a busy machine the second says more; workers and the main process are both counted.
    """

    per_second: float
    cpu_ms: float


def processor_seconds() -> float:
    """Time used by this process and by those of its children that have ended."""
    return sum(os.times()[:4])


def measured(contestants: dict[str, Callable[[], int]], rounds: int) -> dict[str, Rate]:
    """The rate of each, taking turns."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in contestants}
    for number in range(rounds):
        order = list(contestants)
        for name in order if number % 2 == 0 else reversed(order):
            start, used = time.perf_counter(), processor_seconds()
            frames = contestants[name]()
            gc.collect()  # a loader ends its workers when it goes
            found[name].append((frames / (time.perf_counter() - start), 1e3 * (processor_seconds() - used) / frames))
    return {name: Rate(*map(statistics.median, zip(*pairs, strict=True))) for name, pairs in found.items()}


def questions(short: Shards, long: Shards, workers: int) -> dict[str, dict[str, Callable[[], int]]]:
    """The contestants of each question; ``ours`` is the first."""
    steps, long_steps = short.clips // BATCH, long.clips // BATCH
    first = steps * 9 // 10 // workers * workers  # webdataset's workers take turns, so they skip equally many
    return {
        "whole": {
            "ours": lambda: ours(short, SHORT, workers, steps),
            "raw": lambda: raw(short, workers, reused=False, delivered=True),
            "raw_reused": lambda: raw(short, workers, reused=True, delivered=True),
            "dropped": lambda: raw(short, workers, reused=False, delivered=False),
            "dropped_reused": lambda: raw(short, workers, reused=True, delivered=False),
            "webdataset": lambda: streamed(short, SHORT, workers),
        },
        "sampled": {
            "ours": lambda: ours(long, SAMPLE, workers, EPOCHS * long_steps),
            "webdataset": lambda: streamed(long, SAMPLE, workers, EPOCHS),
        },
        "resumed": {
            "ours": lambda: ours(short, SHORT, workers, steps - first, first),
            "webdataset_discarding": lambda: streamed_from(short, SHORT, workers, first, discard=True),
            "webdataset_passing": lambda: streamed_from(short, SHORT, workers, first, discard=False),
        },
    }


def main() -> None:
    """Measure, print and record the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--clips", type=int, default=96, help="of 3 seconds")
    parser.add_argument("--members", type=int, default=32, help="of 10 seconds, of which 16 frames are sampled")
    arguments = parser.parse_args()
    prepare_host()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    torch.set_num_threads(1)
    versions = {"av": av.__version__, "webdataset": wds.__version__, "pyarrow": pyarrow.__version__}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        short = Shards(Path(folder) / "short", arguments.clips, SHORT).write()
        long = Shards(Path(folder) / "long", arguments.members, LONG).write()
        for question, contestants in questions(short, long, arguments.workers).items():
            rates = measured(contestants, arguments.rounds)
            for name, rate in rates.items():
                ratio = f"{rates['ours'].per_second / rate.per_second:.2f}"
                cpu_ratio = f"{rate.cpu_ms / rates['ours'].cpu_ms:.2f}"
                print(
                    f"{question:8} {name:22} {rate.per_second:7.0f} frames/s {rate.cpu_ms:6.3f} ms of CPU a frame   "
                    f"ours is {ratio} of it, {cpu_ratio} by CPU time", flush=True,
                )  # fmt: skip
                rows.append(
                    {
                        "question": question, "reader": name, "workers": arguments.workers,
                        "rounds": arguments.rounds, "frames_per_second": f"{rate.per_second:.0f}",
                        "cpu_ms_per_frame": f"{rate.cpu_ms:.3f}", "ours_to_it": ratio,
                        "ours_to_it_by_cpu": cpu_ratio, **versions,
                    }
                )  # fmt: skip
    print(record("data_loading", rows))


if __name__ == "__main__":
    main()
