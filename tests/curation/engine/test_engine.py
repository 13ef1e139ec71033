"""The engine: what is done once, what is done again, and what survives."""

import errno
import multiprocessing
import os
import pickle
import random
import signal
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from parts import Brightness, content, make_videos, run

from vidlab.curation.engine.engines import Serial
from vidlab.curation.engine.processes import Processes
from vidlab.curation.engine.records import Clip, Crop, Measurement
from vidlab.curation.engine.stage import Measure
from vidlab.curation.engine.store import clips_table, table_clips
from vidlab.curation.engine.video_file import VideoFile
from vidlab.curation.engine.work import NamedStage, Work
from vidlab.curation.output.report import write_report
from vidlab.curation.output.shards import ShardExport
from vidlab.curation.stages.filters import BestShare, Range
from vidlab.curation.stages.slicing import Slice
from vidlab.errors import UserError

TWO = Processes(processes=2, start="fork")


def kept(done) -> list[tuple[str, int]]:
    clips = [clip for table in done.tables() for clip in table_clips(table)]
    return [(clip.source, clip.start) for clip in clips if clip.is_in]


def steps(log: Path, least: float, most: float | None = None, **more):
    keep = Range("brightness", least, most)
    return {"slice": Slice(1.0), "brightness": {"measure": Brightness(str(log)), "keep": keep}, **more}


def reads(log: Path) -> Counter[str]:
    found = Counter(log.read_text().splitlines()) if log.exists() else Counter()
    log.unlink(missing_ok=True)
    return found


def test_clips_survive_the_file():
    clip = Clip("a.mp4", 3, 9, 29.97, 48, 64, Crop(0, 1, 40, 60), ("red", "blau"), {"m": 0.1}, {"s": (0.1, 1 / 3)})
    assert table_clips(clips_table([clip, clip.rejected("cut", "short")])) == [clip, clip.rejected("cut", "short")]
    assert clip.id == replace(clip, scores={}).id != replace(clip, end=8).id
    assert clip.id != replace(clip, crop=None).id


def test_a_threshold_rereads_no_video_that_was_measured(tmp_path):
    log, sources = tmp_path / "log", make_videos(tmp_path / "raw", 4)
    second = Brightness(str(log), name="second")
    later = {"later": {"measure": second}}
    # 8 frames at 4 a second are two slices; brightness is 0, 20, 40, 60
    assert kept(run(tmp_path / "out", sources, **steps(log, 30, **later))) == [
        (f"{n:02d}.mp4", s) for n in (2, 3) for s in (0, 4)
    ]
    assert sum(reads(log).values()) == 8 + 4
    run(tmp_path / "out", sources, **steps(log, 30, **later))
    assert not reads(log)  # everything was there
    assert len(kept(run(tmp_path / "out", sources, **steps(log, 50, **later)))) == 2
    assert not reads(log)  # tightened: what is left was measured by both
    assert len(kept(run(tmp_path / "out", sources, **steps(log, 10, **later)))) == 6
    assert reads(log) == Counter({f"second 01.mp4 {start}": 1 for start in (0, 4)})  # loosened: the new ones alone
    added = {**later, "third": {"measure": Brightness(str(log), name="third")}}
    run(tmp_path / "out", sources, **steps(log, 10, **added))
    assert set(reads(log)) == {f"third 0{n}.mp4 {s}" for n in (1, 2, 3) for s in (0, 4)}


@dataclass(frozen=True)
class Given(Measure):
    """The score ``given``, which is set."""

    value: float

    provides = ("given",)

    def measure(self, video, clips):
        return [Measurement({"given": self.value}) for _ in clips]


@dataclass(frozen=True)
class Doubled(Measure):
    """Twice the score ``given``."""

    provides, uses = ("doubled",), ("given",)

    def measure(self, video, clips):
        return [Measurement({"doubled": 2 * clip.scores["given"]}) for clip in clips]


def test_a_measure_of_a_score_follows_it(tmp_path):
    sources = make_videos(tmp_path / "raw", 1)
    for value in (1.0, 3.0, 1.0):
        done = run(tmp_path / "out", sources, given=Given(value), doubled=Doubled())
        ((clip,),) = map(table_clips, done.tables())
        assert clip.scores == {"given": value, "doubled": 2 * value}


def test_what_is_no_number_is_rejected_by_name(tmp_path):
    given = {"given": Given(float("nan")), "keep": Range("given", 0), "best": BestShare("given", 0.5)}
    done = run(tmp_path / "out", make_videos(tmp_path / "raw", 1), **given)
    assert done.funnel.most_common_reasons() == [("given", "given is no finite number", 1)]


def test_new_sources_get_partitions_of_their_own(tmp_path):
    log, sources = tmp_path / "log", make_videos(tmp_path / "raw", 5)
    run(tmp_path / "out", sources[1:4], **steps(log, 0))
    reads(log)
    done = run(tmp_path / "out", sources, **steps(log, 0))
    assert [[s.name for s in p.sources] for p in done.partitions] == [
        ["01.mp4", "02.mp4"],
        ["03.mp4"],
        ["00.mp4", "04.mp4"],
    ]
    assert {line.split()[1] for line in reads(log)} == {"00.mp4", "04.mp4"}
    changed = [replace(s, state="2") if s.name == "03.mp4" else s for s in sources]
    run(tmp_path / "out", changed, **steps(log, 0))
    assert {line.split()[1] for line in reads(log)} == {"03.mp4"}


@pytest.mark.parametrize("change", [{"captions": ("green",)}, {"crop": Crop(0, 0, 8, 8)}, {"split": "val"}])
def test_what_is_said_of_a_source_is_taken_anew(tmp_path, change):
    (source,) = make_videos(tmp_path / "raw", 1)
    first = run(tmp_path / "out", [source], given=Given(1.0))
    moved = run(tmp_path / "out", [replace(source, file=str(tmp_path / "elsewhere"))], given=Given(1.0))
    assert moved.partitions[0].name == first.partitions[0].name
    source = replace(source, **change)
    ((clip,),) = map(table_clips, run(tmp_path / "out", [source], given=Given(1.0)).tables())
    assert clip.is_in and (clip.captions, clip.crop) == (source.captions, source.crop)
    assert run(tmp_path / "out", [source], given=Given(1.0)).partitions[0].name != first.partitions[0].name


def test_a_share_of_all_clips(tmp_path):
    sources = make_videos(tmp_path / "raw", 4)
    given = {"brightness": Brightness(), "best": BestShare("brightness", 0.5)}
    done = run(tmp_path / "out", sources, per_partition=1, **given)
    assert kept(done) == [("02.mp4", 0), ("03.mp4", 0)]
    (reason,) = done.funnel.most_common_reasons()
    assert reason == ("best", "brightness below 40", 2)


def test_what_cannot_be_read_is_rejected_by_name_and_the_rest_goes_on(tmp_path):
    sources = make_videos(tmp_path / "raw", 4)
    (tmp_path / "raw" / "02.mp4").write_bytes(b"no video")
    done = run(tmp_path / "out", sources)
    assert kept(done) == [("03.mp4", 0), ("03.mp4", 4)]
    rejected = {c.source: (c.rejected_by, c.reason) for t in done.tables() for c in table_clips(t) if not c.is_in}
    assert rejected["02.mp4"][0] == "open" and "not a readable video" in rejected["02.mp4"][1]
    assert rejected["01.mp4"] == ("brightness", "brightness below 30")


@dataclass(frozen=True)
class Greedy(Given):
    """As ``Given``, with no room for one video."""

    def measure(self, video, clips):
        if video.source.name == "00.mp4":
            raise MemoryError("no room")
        return super().measure(video, clips)


@pytest.mark.parametrize("engine", [Serial(), TWO], ids=["serial", "process"])
def test_a_video_for_which_there_is_no_room_is_rejected_by_name(tmp_path, engine):
    done = run(tmp_path / "out", make_videos(tmp_path / "raw", 2), engine, given=Greedy(1.0))
    assert kept(done) == [("01.mp4", 0)]
    assert done.funnel.most_common_reasons() == [("given", "MemoryError: no room", 1)]


def test_weights_are_read_once_for_all_processes(monkeypatch, tmp_path):
    work = Work(tmp_path, (NamedStage("given", Given(1.0)),), {})
    assert work.todo() == []
    monkeypatch.setattr(Given, "weights", lambda _: pytest.fail("they were read again"))
    assert pickle.loads(pickle.dumps(work)).keys == work.keys


def test_a_damaged_file_is_named_and_made_again(tmp_path):
    sources = make_videos(tmp_path / "raw", 2)
    before = kept(run(tmp_path / "out", sources, given=Given(1.0)))
    (file,) = (tmp_path / "out" / "state").glob("given-*/*.parquet")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"is damaged.*run the same command again"):
        run(tmp_path / "out", sources, given=Given(1.0))
    assert kept(run(tmp_path / "out", sources, given=Given(1.0))) == before


def test_a_full_disk_is_one_message(tmp_path, monkeypatch):
    def full(self, root, key, partition, clips, videos):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ShardExport, "write", full)
    with pytest.raises(UserError, match=r"the disk is full\. 2 finished parts are kept\. Make room"):
        run(tmp_path / "out", make_videos(tmp_path / "raw", 1), export=ShardExport(), given=Given(1.0))


def test_a_missing_score_stops_with_one_message(tmp_path):
    with pytest.raises(UserError, match=r"curation.bright: no score 'brightness' was measured before it"):
        run(tmp_path / "out", make_videos(tmp_path / "raw", 1), bright=Range("brightness", 1))


def test_processes_give_the_bytes_of_one(tmp_path):
    sources, export = make_videos(tmp_path / "raw", 5), ShardExport()
    run(tmp_path / "one", sources, Serial(), export)
    run(tmp_path / "two", sources, TWO, export)
    assert content(tmp_path / "one") == content(tmp_path / "two")
    assert sum(name.startswith("shards/") for name in content(tmp_path / "one")) == 3


def test_a_source_that_kills_its_reader_is_rejected_by_name(tmp_path, monkeypatch):
    sources = make_videos(tmp_path / "raw", 4)
    deadly = {"brightness": {"measure": Brightness(deadly="02.mp4"), "keep": Range("brightness", 10)}}
    done = run(tmp_path / "out", sources, TWO, **deadly)
    assert kept(done) == [("01.mp4", 0), ("03.mp4", 0)]
    step, reason, count = done.funnel.most_common_reasons()[0]
    assert (step, count) == ("brightness", 1) or "below" in reason
    reasons = {c.source: c.reason for t in done.tables() for c in table_clips(t) if not c.is_in}
    assert reasons["02.mp4"] == "the process that read it was ended by SIGKILL, 3 times"
    read: list[str] = []

    def frames(self, clip, indices):
        read.append(clip.source)
        return np.zeros((len(indices), 8, 8, 3), np.uint8)

    monkeypatch.setattr(VideoFile, "frames", frames)
    page = write_report(done, tmp_path / "report.html").read_text()
    assert sorted(read) == ["00.mp4", "01.mp4", "03.mp4"] and "it is not read again for a picture" in page


def kill_and_repeat(tmp_path: Path, engine, kills: int) -> int:
    """Kill a run at random moments, then let it end; returns how many kills hit a run that was under way."""
    sources, export = make_videos(tmp_path / "raw", 6), ShardExport()
    given = {"slice": Slice(1.0), "brightness": {"measure": Brightness(seconds=0.02), "keep": Range("brightness", 30)}}
    run(tmp_path / "calm", sources, engine, export, **given)
    moment, hit = random.Random(0), 0
    for _ in range(kills):
        process = multiprocessing.get_context("fork").Process(
            target=run, args=(tmp_path / "killed", sources, engine, export), kwargs=given
        )
        process.start()
        time.sleep(moment.uniform(0.02, 0.15))
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        hit += process.exitcode == -signal.SIGKILL
    run(tmp_path / "killed", sources, engine, export, **given)
    assert content(tmp_path / "killed") == content(tmp_path / "calm")
    return hit


@pytest.mark.parametrize("engine", [Serial(), TWO], ids=["serial", "process"])
def test_kills_change_nothing(tmp_path, engine):
    assert kill_and_repeat(tmp_path, engine, 2) >= 1


@pytest.mark.slow
@pytest.mark.parametrize("engine", [Serial(), TWO], ids=["serial", "process"])
def test_twenty_kills_change_nothing(tmp_path, engine):
    assert kill_and_repeat(tmp_path, engine, 20) >= 5


def test_two_curations_of_one_folder_at_a_time(tmp_path):
    from filelock import FileLock

    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / "writer.lock"), pytest.raises(UserError, match="another process is curating"):
        run(tmp_path / "out", make_videos(tmp_path / "raw", 1))


@pytest.mark.slow
def test_twenty_kills_of_ray_change_nothing(tmp_path, monkeypatch):
    pytest.importorskip("ray")
    from vidlab.curation.engine.ray_engine import Ray

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
    sources, export, two = make_videos(tmp_path / "raw", 12) * 5, ShardExport(), Ray(workers=2)
    sources = [replace(source, name=f"{at:02d}.mp4") for at, source in enumerate(sources)]
    given = {"slice": Slice(1.0), "brightness": {"measure": Brightness(seconds=0.2), "keep": Range("brightness", 30)}}
    run(tmp_path / "calm", sources, Serial(), export, 1, **given)
    moment, journals = random.Random(0), tmp_path / "killed" / "running"
    for _ in range(20):
        process = multiprocessing.get_context("fork").Process(
            target=run, args=(tmp_path / "killed", sources, two, export, 1), kwargs=given
        )
        process.start()
        wait_until(lambda: any(journals.glob("*")))  # Ray takes seconds to begin
        time.sleep(moment.uniform(0, 0.25))
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        wait_until(lambda: not workers_left())  # they end with the process that began them
    run(tmp_path / "killed", sources, two, export, 1, **given)
    assert content(tmp_path / "killed") == content(tmp_path / "calm")


def wait_until(condition, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


def workers_left() -> bool:
    """Whether a worker of a local Ray whose driver is gone still runs a partition."""
    lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    return any(b"process_partition" in line or b"ray::_on_worker" in line for line in lines)


@pytest.mark.slow
def test_ray_gives_the_bytes_of_one_process_and_survives_a_dead_worker(tmp_path, monkeypatch):
    pytest.importorskip("ray")
    from vidlab.curation.engine.ray_engine import DEATH, Ray

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
    sources, export, two = make_videos(tmp_path / "raw", 5), ShardExport(), Ray(workers=2)
    run(tmp_path / "one", sources, Serial(), export)
    run(tmp_path / "two", sources, two, export)
    assert content(tmp_path / "one") == content(tmp_path / "two")
    deadly = {"brightness": {"measure": Brightness(deadly="02.mp4"), "keep": Range("brightness", 10)}}
    done = run(tmp_path / "out", sources, two, **deadly)
    reasons = {c.source: c.reason for t in done.tables() for c in table_clips(t) if not c.is_in}
    assert reasons["02.mp4"] == f"the process that read it {DEATH}, 3 times"
    assert kept(done) == [("01.mp4", 0), ("03.mp4", 0), ("04.mp4", 0)]
