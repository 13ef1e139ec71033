"""What an index of ten million clips costs: to write, to open, to plan an epoch of and to read rows from.

The index is synthetic and written as any other, row by row. It is then opened in a fresh process, which does what
training does before its first batch; memory is that above the same process after its imports. Workers then read the
rows of batches, not the videos, at the start of five epochs; growth is that over the last three.

    python benchmarks/index_scale.py [--clips 10000000] [--batches 2000] [--folder <kept between runs>]
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from record import record
from vidlab.data.storage.index import INDEX_NAME, ClipIndex, ClipRow, IndexWriter

SHAPES = ((720, 1280), (1280, 720), (480, 640))
WORDS = "a person walks a dog along the beach at sunset while waves roll in and gulls circle over the water"


def resident(name: str = "VmRSS") -> float:
    """Megabytes of this process now, or at most so far (``VmHWM``)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024


def write(folder: Path, clips: int) -> dict[str, str]:
    """Write the index; seconds and memory."""
    random = np.random.default_rng(0)
    frames = np.clip(24 * random.lognormal(1.3, 0.7, clips), 1, 720).astype(np.int16)
    kinds = random.choice(3, clips, p=[0.8, 0.12, 0.08]).astype(np.int8)
    before, start = resident(), time.perf_counter()
    with IndexWriter(folder, {"synthetic": clips}) as writer:
        for number in range(clips):
            length, (height, width) = int(frames[number]), SHAPES[kinds[number]]
            writer.add(
                ClipRow(
                    f"{number:08d}", f"{number // 512:06d}.tar", number % 512 * 300_000, 299_000, length, height, width,
                    24.0, length / 24, (f"{WORDS}, take {number}",), "train" if number % 100 else "val",
                    f"film_{number // 3}", None, {"aesthetic": 5.0, "motion": length / 10},
                )
            )  # fmt: skip
    return {
        "write_s": f"{time.perf_counter() - start:.0f}",
        "write_mb": f"{resident('VmHWM') - before:.0f}",
        "parquet_mb": f"{(folder / INDEX_NAME).stat().st_size / 1e6:.0f}",
        "rows_mb": f"{sum(path.stat().st_size for path in folder.glob('*.rows')) / 1e6:.0f}",
    }


class Written:
    """A ``ClipSource`` of what is there."""

    name = "synthetic"

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def prepare(self) -> Path:
        """The folder."""
        return self.folder


class Rows:
    """Batches of rows: captions of batch ``number``, and what the reading process holds for itself alone, in MB."""

    def __init__(self, index: ClipIndex, plan: Any, numbers: list[int]) -> None:
        self.index, self.plan, self.numbers = index, plan, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, place: int) -> tuple[int, int, float | None]:
        import psutil

        captions = [self.index.row(visit.position).captions[0] for visit in self.plan.batch(self.numbers[place])]
        process = psutil.Process()
        # asking takes longer than reading a batch
        own = process.memory_full_info().uss / 2**20 if place % 100 < 2 else None
        return len(captions), process.pid, own


def open_and_plan(folder: Path, bucketed: bool, batches: int) -> dict[str, str]:
    """What training does before its first batch, then rows at random, then batches of rows by two workers."""
    import pyarrow.parquet  # noqa: F401  imports are not counted
    from torch.utils.data import DataLoader

    from vidlab.data.module import ClipDataModule
    from vidlab.data.samplers.buckets import Bucketing

    rule = Bucketing(65536, temporal_stride=4, first_frame_alone=True, max_frames=93) if bucketed else None
    before = resident()
    Path("/proc/self/clear_refs").write_text("5")  # the greatest so far begins anew
    start = time.perf_counter()
    data = ClipDataModule(Written(folder), "synthetic", 16, 256, 256, bucketing=rule)
    data.setup()
    opened = time.perf_counter()
    plan = data.plan
    plan.batch(0)
    planned, held, most = time.perf_counter(), resident() - before, resident("VmHWM") - before
    train = data.data.train
    places = np.random.default_rng(1).integers(0, len(train), 2000)
    train.row(0)
    reading = time.perf_counter()
    for place in places:
        train.row(int(place))
    row_ms = (time.perf_counter() - reading) / len(places) * 1e3
    steps = plan.steps_per_epoch
    loader = DataLoader(
        Rows(train, plan, [epoch * steps + 1 + n for epoch in range(5) for n in range(batches)]),  # type: ignore[arg-type]
        batch_size=None, num_workers=2,
    )  # fmt: skip
    own: dict[tuple[int, int], float] = {}
    for place, (_, worker, used) in enumerate(islice(loader, 5 * batches)):
        if used is not None:
            own[worker, place // batches] = used
    # a plan holds the orders of two epochs; the first of all was made before the workers and is shared
    growth = max(own[worker, 4] - own[worker, 2] for worker, _ in own)
    return {
        "plan": "bucketed" if bucketed else "one shape",
        "open_s": f"{opened - start:.2f}", "plan_s": f"{planned - opened:.2f}", "held_mb": f"{held:.0f}",
        "most_mb": f"{most:.0f}", "row_ms": f"{row_ms:.3f}",
        "worker_mb": f"{max(own.values()):.0f}", "worker_growth_mb": f"{growth:.1f}",
    }  # fmt: skip


def measure(folder: Path, clips: int, batches: int) -> list[dict[str, str]]:
    """Both plans, each in a process of its own."""
    written = {} if (folder / INDEX_NAME).is_file() else write(folder, clips)
    if written:
        print(*(f"{name} {value}" for name, value in written.items()), flush=True)
    rows = []
    for kind in ("bucketed", "one-shape"):
        command = [sys.executable, __file__, "--folder", str(folder), "--batches", str(batches), "--inner", kind]
        run = subprocess.run(command, capture_output=True, text=True)
        if run.returncode:
            raise SystemExit(run.stderr)
        found = json.loads(run.stdout.split("FOUND")[1])
        print(*(f"{name} {value}" for name, value in found.items()), flush=True)
        names = ("write_s", "write_mb", "parquet_mb", "rows_mb")
        rows.append({"clips": str(clips), **{name: written.get(name, "") for name in names}, **found})
    return rows


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=10_000_000)
    parser.add_argument("--batches", type=int, default=2000, help="of 16 rows, per epoch")
    parser.add_argument("--folder", type=Path, help="where the index is kept, and found by the next run")
    parser.add_argument("--inner", choices=("bucketed", "one-shape"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inner:
        print("FOUND", json.dumps(open_and_plan(arguments.folder, arguments.inner == "bucketed", arguments.batches)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        rows = measure(folder, arguments.clips, arguments.batches)
    print(record("index_scale", rows))


if __name__ == "__main__":
    main()
