"""The work on one partition: every stage that is not done yet, source by source, with retries."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha1
from math import isfinite
from pathlib import Path
from typing import Protocol, runtime_checkable

from vidlab.curation.engine.partitions import Partition
from vidlab.curation.engine.records import Clip, Measurement, SourceVideo
from vidlab.curation.engine.stage import Decision, Measure, Opening, Stage
from vidlab.curation.engine.store import RUNNING, StageKey, StageStore
from vidlab.curation.engine.video_file import VideoFile
from vidlab.data.names import reason_of
from vidlab.data.video import DecodeLimits
from vidlab.errors import DataError, UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class NamedStage:
    """A stage and its name, such as ``aesthetic.measure``; clips are rejected under the part before the dot."""

    name: str
    stage: Stage

    @property
    def step(self) -> str:
        """The step of the recipe that it belongs to."""
        return self.name.partition(".")[0]


Videos = Mapping[str, VideoFile]


@runtime_checkable
class ShardStage(Protocol):
    """What writes the clips that are left of a partition."""

    def done(self, root: Path, key: StageKey) -> set[str]:
        """Names of the partitions that are written."""
        ...

    def write(self, root: Path, key: StageKey, partition: str, clips: Sequence[Clip], videos: Videos) -> None:
        """Write them, whole or not at all."""
        ...


@dataclass(frozen=True)
class Work:
    """All that a process needs to work on any partition. It survives being sent to another process.

    Args:
        root: the folder of the curation.
        stages: in order.
        partitions: by name.
        retries: how often a source that fails is tried again.
        limits: what decoding may take.
        shards: writes the clips that are left of a partition; None writes none.
    """

    root: Path
    stages: tuple[NamedStage, ...]
    partitions: Mapping[str, Partition]
    retries: int = 1
    limits: DecodeLimits = field(default_factory=DecodeLimits)
    shards: ShardStage | None = None

    @cached_property
    def keys(self) -> tuple[StageKey, ...]:
        """Where the results of each stage are kept; weights are read for it, once for all processes."""
        keys, chain = [], ""
        for stage in self.stages:
            own = stage.stage.version()
            chain = sha1(f"{chain}\n{stage.name}\n{own}".encode()).hexdigest()[:12]
            keys.append(StageKey(stage.name, own, chain))
        return tuple(keys)

    def todo(self) -> list[str]:
        """Names of the partitions that are not done, in order."""
        done = StageStore(self.root).done(self.keys[-1])
        if self.shards is not None:
            done &= self.shards.done(self.root, self.keys[-1])
        return [name for name in self.partitions if name not in done]


Doomed = Mapping[str, str]
"""Sources that ended the process that read them, and what is said of them."""


def process_partition(
    work: Work, name: str, doomed: Doomed | None = None, advance: Callable[[], None] | None = None
) -> None:
    """Do all stages of a partition that are not done.

    Args:
        work: what there is to do.
        name: of the partition.
        doomed: sources that are not to be read again, with the reason of their rejection.
        advance: called after each source of each stage.
    """
    _PartitionRun(work, work.partitions[name], doomed or {}, advance or _nothing).run()


def _nothing() -> None:
    pass


class Journal:
    """Says which source a process is reading, so that it is known when the process is gone.

    Args:
        path: a file of the partition alone.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def of(cls, root: Path, partition: str) -> "Journal":
        """That of a partition."""
        return cls(root / RUNNING / partition)

    def begin(self, source: str) -> None:
        """A source is about to be read."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(source, "utf-8", "surrogateescape")

    def end(self) -> None:
        """No source is being read."""
        self.path.unlink(missing_ok=True)

    def current(self) -> str | None:
        """The source that is being read."""
        return self.path.read_text("utf-8", "surrogateescape") if self.path.is_file() else None


class _PartitionRun:
    def __init__(self, work: Work, partition: Partition, doomed: Doomed, advance: Callable[[], None]) -> None:
        self.work, self.partition, self.doomed, self.advance = work, partition, doomed, advance
        self.store = StageStore(work.root)
        self.videos = {source.name: VideoFile(source, work.limits) for source in partition.sources}
        self.journal = Journal.of(work.root, partition.name)

    def run(self) -> None:
        keys, name = self.work.keys, self.partition.name
        first = next((at for at in reversed(range(len(keys))) if self.store.has(keys[at], name)), -1)
        if first < 0:
            clips = [Clip.whole(source) for source in self.partition.sources]
        else:
            clips = self.store.read(keys[first], name)
        for stage, key in list(zip(self.work.stages, keys, strict=True))[first + 1 :]:
            clips = self._stage(stage, key, clips)
            self.store.write(key, name, clips)
        shards = self.work.shards
        if shards is not None and name not in shards.done(self.work.root, keys[-1]):
            shards.write(self.work.root, keys[-1], name, [clip for clip in clips if clip.is_in], self.videos)

    def _stage(self, stage: NamedStage, key: StageKey, clips: Sequence[Clip]) -> list[Clip]:
        by_source: dict[str, list[Clip]] = {}
        for clip in clips:
            by_source.setdefault(clip.source, []).append(clip)
        work = _of_kind(stage, self.store, key, self.partition.name)
        done: list[Clip] = []
        for source, own in by_source.items():
            done += self._source(stage, work, source, own)
            self.advance()
        return done

    def _source(self, stage: NamedStage, work: "_StageWork", source: str, clips: Sequence[Clip]) -> list[Clip]:
        living = [clip for clip in clips if clip.is_in]
        if not living:
            return list(clips)
        if isinstance(stage.stage, Decision):  # it reads no video: what fails here is a bug
            return work(self.videos[source], clips)
        if source in self.doomed:
            return [clip.rejected(stage.step, self.doomed[source]) if clip.is_in else clip for clip in clips]
        self.journal.begin(source)
        try:
            return self._with_retries(stage, work, self.videos[source], clips)
        finally:
            self.journal.end()

    def _with_retries(
        self, stage: NamedStage, work: "_StageWork", video: VideoFile, clips: Sequence[Clip]
    ) -> list[Clip]:
        for attempt in range(self.work.retries + 1):
            try:
                return work(video, clips)
            except Exception as error:  # an untrusted file may raise anything, in anyone's stage
                if isinstance(error, UserError) and not isinstance(error, DataError):
                    raise  # weights or a package that no video can do without
                reason = reason_of(error, video.source.name)
                log.debug("%s: %s (attempt %d)", video.source.name, reason, attempt + 1)
        return [clip.rejected(stage.step, reason) if clip.is_in else clip for clip in clips]


_StageWork = Callable[[VideoFile, Sequence[Clip]], list[Clip]]


def _of_kind(named: NamedStage, store: StageStore, key: StageKey, partition: str) -> _StageWork:
    """What is done with the clips of a source."""
    stage = named.stage
    if isinstance(stage, Opening):
        return lambda video, clips: [replace(stage.open(video), captions=clips[0].captions)]
    if isinstance(stage, Decision):
        return lambda _, clips: [new for c in clips for new in (stage.decide(c, named.step) if c.is_in else [c])]
    assert isinstance(stage, Measure)
    known = store.measured_before(key, partition, stage)

    def measure(video: VideoFile, clips: Sequence[Clip]) -> list[Clip]:
        missing = [clip for clip in clips if clip.is_in and stage.depends_on(clip) not in known]
        if missing:
            found = stage.measure(video, missing)
            known.update(zip(map(stage.depends_on, missing), found, strict=True))
        return [_with(clip, known[stage.depends_on(clip)], named.step) if clip.is_in else clip for clip in clips]

    return measure


def _with(clip: Clip, found: Measurement, step: str) -> Clip:
    """A clip with what was measured of it; no threshold, share or histogram can be had of numbers that are none."""
    numbers = [(name, (value,)) for name, value in found.scores.items()] + list(found.series.items())
    wrong = next((name for name, values in numbers if not all(map(isfinite, values))), None)
    return clip.measured(found) if wrong is None else clip.rejected(step, f"{wrong} is no finite number")


def sources_of(partitions: Iterable[Partition]) -> dict[str, SourceVideo]:
    """All sources by name."""
    return {source.name: source for partition in partitions for source in partition.sources}
