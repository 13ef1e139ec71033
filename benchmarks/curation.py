"""Curation, measured: where its time goes, how well cuts are found, which planted faults are removed.

    python benchmarks/curation.py speed FOLDER     CPU seconds and share of every step of Open-Sora Plan's recipe
    python benchmarks/curation.py cuts             precision and recall of the detectors on joins of real clips
    python benchmarks/curation.py faults           planted faults in moving shapes

Times are processor seconds of one process that computes with one thread, so that other work on the machine matters
little.
"""

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from planted_faults import FAULTS, make
from record import record
from vidlab.curation.curate import Settings, curate
from vidlab.curation.engine.engines import Serial, one_thread
from vidlab.curation.engine.partitions import planned
from vidlab.curation.engine.records import Clip, SourceVideo
from vidlab.curation.engine.stage import Measure
from vidlab.curation.engine.store import table_clips
from vidlab.curation.engine.video_file import VideoFile
from vidlab.curation.engine.work import Work, process_partition
from vidlab.curation.output.funnel import Funnel
from vidlab.curation.output.shards import ShardExport
from vidlab.curation.recipe import Recipe
from vidlab.curation.sources import source_videos
from vidlab.curation.stages.perceptual import SERIES, FrameDistances, JumpCuts
from vidlab.curation.stages.scenes import ContentCuts, TransNetCuts
from vidlab.curation.stages.slicing import Open
from vidlab.data.datasets.folder import FolderSource
from vidlab.data.datasets.sample_clips import Clips, reduce_frame
from vidlab.data.storage.index import ClipIndex
from vidlab.data.storage.shards import read_member
from vidlab.data.video import encode, read_frames
from vidlab.lab.cli.composed import compose
from vidlab.lab.curating.run import build_recipe


class Silent:
    """Progress that is not shown."""

    def begin(self, title: str, total: int, done: int) -> None:
        """Not shown."""

    def source(self) -> None:
        """Not shown."""

    def partition(self, funnel: Funnel) -> None:
        """Not shown."""


def open_sora_plan(*overrides: str) -> Recipe:
    """Open-Sora Plan's recipe as shipped, without the two steps whose weights have to be given."""
    without = ("curation.aesthetic=null", "curation.technical=null")
    return build_recipe(compose("curation=open_sora_plan", *without, *overrides, program="curate"))


def with_noise_and_sharpness(ocr: bool) -> Recipe:
    """The same with the shipped step of noise and sharpness in the place of DOVER."""
    text = () if ocr else ("curation.ocr_crop=null",)
    words = ("curation=open_sora_plan", "curation.aesthetic=null", *text)
    return build_recipe(compose(*words, "curation/step@curation.technical=noise_and_sharpness", program="curate"))


def speed(folder: Path, every: int) -> None:
    """CPU seconds of every stage: each is run behind those before it, whose files are there."""
    sources = list(source_videos(FolderSource(str(folder))))
    thinned = (f"curation.{step}.measure.every={every}" for step in ("jump_cuts", "motion_again"))
    stages = open_sora_plan(*thinned).stages
    rows = []
    with tempfile.TemporaryDirectory() as root, one_thread():
        (partition,) = planned(Path(root), sources, len(sources))
        by_name = {partition.name: partition}
        for count in range(1, len(stages) + 2):
            export = ShardExport(short_side=256, caption="a video") if count > len(stages) else None
            work = Work(Path(root), stages[:count], by_name, shards=export)
            if count <= len(stages) and isinstance(stages[count - 1].stage, Measure):
                warm_up(stages[count - 1].stage, sources[0])
            began = time.process_time()
            process_partition(work, partition.name)
            name = stages[count - 1].name if export is None else "shards (256 pixels)"
            rows.append({"step": name, "cpu_s": time.process_time() - began})
        clips = [Open().open(VideoFile(source)) for source in sources]
    seconds = sum(clip.seconds for clip in clips)
    total = sum(row["cpu_s"] for row in rows)
    rows = [{**row, "share": row["cpu_s"] / total, "real_time": row["cpu_s"] / seconds} for row in rows]
    for row in rows:
        print(
            f"{row['step']:<22} {row['cpu_s']:8.2f} s {100 * row['share']:5.1f} %  {row['real_time']:.4f} s per second"
        )
    without = total - sum(row["cpu_s"] for row in rows if row["step"].startswith(("ocr", "shards")))
    reading = sum(row["cpu_s"] for row in rows if row["step"].startswith("ocr"))
    two = {"two_cores_without_ocr": 2 * seconds / without, "two_cores_with_ocr": 2 * seconds / (without + reading)}
    print(f"{seconds:.1f} s of video; on two cores {two}")
    facts = {"video_s": seconds, "every": every, **two}
    print(record("curation", [{**row, **facts} for row in rows]))


def warm_up(stage: Measure, source: SourceVideo) -> None:
    """Load weights and packages, which a run does once."""
    video = VideoFile(source)
    whole = Open().open(video)
    stage.measure(video, [replace(whole, end=whole.start + 2)])


def joins(folder: Path, videos: int, parts: int, length: int) -> list[tuple[SourceVideo, list[int]]]:
    """Videos of real clips joined hard, neighbors from other recordings, with the first frames of the shots."""
    index = ClipIndex.open(Clips().prepare())
    rows = [index.row(at) for at in range(len(index)) if index.row(at).frames >= length]
    rng, made = np.random.default_rng(0), []
    for number in range(videos):
        shots: list[np.ndarray] = []
        last = ""
        for _ in range(parts):
            others = [row for row in rows if row.source != last]
            row = others[rng.integers(len(others))]
            frames = read_frames(read_member(index.root, row.shard, row.offset, row.size, row.key, row.crc))
            start, count = int(rng.integers(0, row.frames - length + 1)), int(rng.integers(length - 8, length + 1))
            shots.append(np.stack([square(frame) for frame in frames[start : start + count]]))
            last = row.source
        file = folder / f"{number:02d}.mp4"
        file.write_bytes(encode(np.concatenate(shots), 24))
        made.append((SourceVideo(file.name, str(file)), np.cumsum([len(shot) for shot in shots])[:-1].tolist()))
    return made


def square(frame: np.ndarray, side: int = 128) -> np.ndarray:
    """The middle of a frame."""
    small = reduce_frame(frame, side)
    top, left = (small.shape[0] - side) // 2, (small.shape[1] - side) // 2
    part = small[max(0, top) : max(0, top) + side, max(0, left) : max(0, left) + side]
    return np.pad(part, ((0, side - part.shape[0]), (0, side - part.shape[1]), (0, 0)), "edge")


def lpips_cuts(video: VideoFile, clip: Clip) -> list[int]:
    (found,) = FrameDistances().measure(video, [clip])
    return [at + 1 for at in JumpCuts().cuts(np.array(found.series[SERIES]))]


def series_cuts(stage: Measure, video: VideoFile, clip: Clip) -> list[int]:
    (found,) = stage.measure(video, [clip])
    return [int(at) for at in found.series["cuts"]]


def matched(found: Sequence[int], true: Sequence[int], within: int = 1) -> int:
    """True cuts that have a found one of their own within a number of frames."""
    left, count = list(found), 0
    for cut in true:
        near = [one for one in left if abs(one - cut) <= within]
        if near:
            left.remove(min(near, key=lambda one: abs(one - cut)))
            count += 1
    return count


def cuts(videos: int, parts: int, length: int) -> None:
    detectors = {
        "lpips": lpips_cuts,
        "scenedetect": lambda video, clip: series_cuts(ContentCuts(), video, clip),
        "transnetv2": lambda video, clip: series_cuts(TransNetCuts(), video, clip),
    }
    counts: dict[str, Counter[str]] = {name: Counter() for name in detectors}
    with tempfile.TemporaryDirectory() as folder, one_thread():
        for source, true in joins(Path(folder), videos, parts, length):
            video = VideoFile(source)
            clip = Open().open(video)
            for name, detect in detectors.items():
                found = detect(video, clip)
                hit = matched(found, true)
                counts[name].update(true=len(true), found=len(found), hit=hit)
                if hit != len(true) or len(found) != len(true):
                    print(source.name, name, "true", true, "found", found, flush=True)
    rows = []
    for name, one in counts.items():
        rows.append(
            {
                "detector": name,
                **one,
                "precision": one["hit"] / (one["found"] or float("nan")),
                "recall": one["hit"] / one["true"],
            }
        )
        print(rows[-1], flush=True)
    print(record("curation_cuts", rows))


def faults(goods: int, each: int, seed: int, kinds: list[str], ocr: bool) -> None:
    """The recipe on planted faults. A cut is removed when no kept clip has it, text when it is cropped away."""
    with tempfile.TemporaryDirectory() as folder:
        sources = list(make(Path(folder) / "raw", goods, each, seed, kinds))
        done = curate(with_noise_and_sharpness(ocr), sources, Settings(Path(folder) / "out", Serial(), 16), Silent())
        clips = [clip for table in done.tables() for clip in table_clips(table)]
    counts = dict.fromkeys(kinds, each) | {"good": goods}
    spoiled = {source.name for source in sources if any(has_fault(clip, source.name) for clip in clips)}
    rows = []
    for name, count in counts.items():
        left = sum(one.startswith(name) for one in spoiled)
        rejected = Counter(clip.rejected_by for clip in clips if clip.source.startswith(name) and not clip.is_in)
        rows.append(
            {"fault": name, "videos": count, "removed": count - left, "share": 1 - left / count, "by": dict(rejected)}
        )
        print(rows[-1])
    print(record("curation_faults", rows))


def has_fault(clip: Clip, source: str) -> bool:
    """Whether a clip is kept with the fault of its source; a good one counts as kept."""
    if clip.source != source or not clip.is_in:
        return False
    kind = source.partition("-")[0]
    if kind == "cut":
        return clip.start < 40 < clip.end
    return kind != "text" or clip.area.top + clip.area.height > 128 - 22


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="what", required=True)
    one = kinds.add_parser("speed")
    one.add_argument("folder", type=Path)
    one.add_argument("--every", type=int, default=1)
    two = kinds.add_parser("cuts")
    for name, default in (("videos", 6), ("parts", 8), ("length", 48)):
        two.add_argument(f"--{name}", type=int, default=default)
    three = kinds.add_parser("faults")
    for name, default in (("goods", 36), ("each", 20), ("seed", 0)):
        three.add_argument(f"--{name}", type=int, default=default)
    three.add_argument("--kinds", nargs="+", default=list(FAULTS), choices=list(FAULTS))
    three.add_argument("--no-ocr", dest="ocr", action="store_false", help="without the step that reads text")
    given = vars(parser.parse_args())
    {"speed": speed, "cuts": cuts, "faults": faults}[given.pop("what")](**given)


if __name__ == "__main__":
    main()
