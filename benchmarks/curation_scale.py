"""Curation of many sources: does memory stay flat, and how long until a state that is there is open?

    python benchmarks/curation_scale.py --sources 10000

Short clips are drawn and encoded, each another one, then curated by the recipe of STIV without its aesthetic scores, by
one process. Memory is that of the process after each tenth of the partitions. Then the same command is run again, which
finds everything done: this is how long a stopped curation takes until it goes on.
"""

import argparse
import resource
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from record import record
from vidlab.curation.curate import Settings, curate
from vidlab.curation.engine.engines import Serial
from vidlab.curation.engine.records import SourceVideo
from vidlab.curation.output.funnel import Funnel
from vidlab.curation.output.lists import write_lists
from vidlab.curation.output.report import write_report
from vidlab.curation.output.shards import ShardExport
from vidlab.curation.recipe import Recipe, recipe
from vidlab.curation.sources import source_videos
from vidlab.curation.stages.filters import Range
from vidlab.curation.stages.flow import DISFlow
from vidlab.curation.stages.scenes import ContentCuts, CutAt
from vidlab.data.datasets.folder import FolderSource
from vidlab.data.video import encode

FRAMES, HEIGHT, WIDTH, FPS = 16, 48, 64, 8
MEGABYTE = 2**20


def draw(number: int) -> np.ndarray:
    """A smooth picture that moves by its number's speed; every tenth one stands still, every seventh has a cut."""
    rng = np.random.default_rng(number)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    waves = rng.uniform(0.05, 0.2, (3, 2))
    picture = np.stack([127 + 100 * np.sin(a * rows + number) * np.cos(b * columns) for a, b in waves], -1)
    speed = 0 if number % 10 == 0 else 1 + number % 4
    frames = [np.roll(picture, at * speed, 1) for at in range(FRAMES)]
    if number % 7 == 0:
        frames[FRAMES // 2 :] = [255 - frame[::-1] for frame in frames[FRAMES // 2 :]]
    return np.stack(frames).astype(np.uint8)


def resident() -> float:
    """MB of memory that this process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / MEGABYTE


@dataclass
class Watch:
    """Notes the memory after each tenth of the partitions, and when the state was open."""

    opened: float = 0.0
    opened_cpu: float = 0.0
    total: int = 0
    finished: int = 0
    memory: list[float] = field(default_factory=list)

    def begin(self, title: str, total: int, done: int) -> None:
        """The state is open."""
        self.opened, self.opened_cpu, self.total = time.perf_counter(), time.process_time(), total

    def source(self) -> None:
        """Not noted."""

    def partition(self, funnel: Funnel) -> None:
        """One more is done."""
        self.finished += 1
        if self.finished * 10 // self.total > len(self.memory):
            self.memory.append(resident())
            print(f"{self.finished} of {self.total} partitions: {self.memory[-1]:.0f} MB", flush=True)


def stiv() -> Recipe:
    cuts = {"measure": ContentCuts(min_scene_frames=4, short_side=48), "keep": CutAt(4)}
    return recipe("stiv", scenes=cuts, motion={"measure": DISFlow(short_side=48), "keep": Range("flow", 0.01)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sources", type=int, default=10_000)
    count = parser.parse_args().sources
    with tempfile.TemporaryDirectory() as folder:
        raw, root = Path(folder) / "raw", Path(folder) / "out"
        for number in range(count):
            file = raw / f"{number // 1000:03d}" / f"{number:06d}.mp4"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(encode(draw(number), FPS))
        settings = Settings(root, Serial(), export=ShardExport(caption="waves"))
        measure(FolderSource(str(raw)), settings)


def measure(source: FolderSource, settings: Settings) -> None:
    began = time.perf_counter()
    sources: list[SourceVideo] = list(source_videos(source))
    listed, watch = time.perf_counter() - began, Watch()
    began = time.process_time()
    curate(stiv(), sources, settings, watch)
    cpu, again = time.process_time() - began, Watch()
    began, began_cpu = time.perf_counter(), time.process_time()
    done = curate(stiv(), sources, settings, again)
    opened, opened_cpu = again.opened - began, again.opened_cpu - began_cpu
    before, began = resident(), time.perf_counter()
    write_lists(done)
    write_report(done, settings.root / "report.html")
    row = {
        "sources": len(sources),
        "kept": done.funnel.kept,
        "cpu_s": cpu,
        "list_s": listed,
        "open_s": opened,
        "open_cpu_s": opened_cpu,
        "report_s": time.perf_counter() - began,
        "memory_first_mb": watch.memory[0],
        "memory_last_mb": watch.memory[-1],
        "memory_report_mb": max(before, resident()),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    print(row, flush=True)
    print(record("curation_scale", [row]))


if __name__ == "__main__":
    main()
