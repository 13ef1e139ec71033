"""The state of a curation: one Parquet file of all clips per stage and partition, there whole or not at all.

A file lies at ``state/<step>-<own version>-<version of all up to it>/<partition>.parquet``, so a stage is done for a
partition when its file exists. The own version finds what a stage measured before, when a stage ahead of it changed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from vidlab.curation.cache_writer import whole_file
from vidlab.curation.engine.records import Clip, Crop, Measurement
from vidlab.curation.engine.stage import Measure
from vidlab.data.storage.parquet import PAGES, open_parquet, seal
from vidlab.digests import DamagedError
from vidlab.errors import UserError

STATE = "state"
RUNNING = "running"
"""Which source a process is reading: a file per partition that is worked on."""


@dataclass(frozen=True)
class StageKey:
    """Where the results of a stage are kept.

    Args:
        step: its name in the recipe, such as ``aesthetic.measure``.
        own: its own version.
        chain: digest of the versions of all stages up to it.
    """

    step: str
    own: str
    chain: str

    @property
    def folder(self) -> str:
        """Of its files, below the state."""
        return f"{self.step}-{self.own}-{self.chain}"


@cache
def clip_schema() -> Any:
    """The Arrow schema of a file of clips."""
    import pyarrow as pa

    return pa.schema(
        [
            *((name, pa.string()) for name in ("id", "source")),
            *((name, pa.int64()) for name in ("start", "end")),
            ("fps", pa.float64()),
            *((name, pa.int32()) for name in ("height", "width")),
            ("crop", pa.list_(pa.int32())),
            ("captions", pa.list_(pa.string())),
            ("scores", pa.map_(pa.string(), pa.float64())),
            ("series", pa.map_(pa.string(), pa.list_(pa.float64()))),
            *((name, pa.string()) for name in ("rejected_by", "reason")),
        ]
    )


def clips_table(clips: Sequence[Clip]) -> Any:
    """Clips as an Arrow table."""
    import pyarrow as pa

    names = ("id", "source", "start", "end", "fps", "height", "width", "rejected_by", "reason")
    columns: dict[str, list[Any]] = {name: [getattr(clip, name) for clip in clips] for name in names}
    columns["crop"] = [None if clip.crop is None else list(clip.crop) for clip in clips]
    columns["captions"] = [list(clip.captions) for clip in clips]
    columns["scores"] = [sorted(clip.scores.items()) for clip in clips]
    columns["series"] = [[(name, list(values)) for name, values in sorted(clip.series.items())] for clip in clips]
    return pa.table(columns, schema=clip_schema())


def table_clips(table: Any) -> list[Clip]:
    """Clips of an Arrow table."""
    return [_clip(row) for row in table.to_pylist()]


def _clip(row: Mapping[str, Any]) -> Clip:
    values = {name: value for name, value in row.items() if name != "id"}
    values["crop"] = None if row["crop"] is None else Crop(*row["crop"])
    values["captions"] = tuple(row["captions"])
    values["scores"] = dict(row["scores"])
    values["series"] = {name: tuple(numbers) for name, numbers in row["series"]}
    return Clip(**values)


class StageStore:
    """Reads and writes the files of stages.

    Args:
        root: the folder of a curation.
    """

    def __init__(self, root: Path) -> None:
        self.root = root / STATE

    def path(self, key: StageKey, partition: str) -> Path:
        """Of the file of a stage and a partition."""
        return self.root / key.folder / f"{partition}.parquet"

    def has(self, key: StageKey, partition: str) -> bool:
        """Whether the stage is done for the partition."""
        return self.path(key, partition).is_file()

    def done(self, key: StageKey) -> set[str]:
        """The partitions for which a stage is done."""
        folder = self.root / key.folder
        return {path.stem for path in folder.glob("[!.]*.parquet")} if folder.is_dir() else set()

    def read(self, key: StageKey, partition: str) -> list[Clip]:
        """All clips after a stage.

        Raises:
            UserError: the file is not the one that was written; it is removed, so that it is made again.
        """
        return table_clips(self.table(key, partition))

    def table(self, key: StageKey, partition: str, columns: Sequence[str] | None = None) -> Any:
        """The file of a stage and a partition as an Arrow table; ``columns`` None is all."""
        path = self.path(key, partition)
        try:
            return open_parquet(path).read(columns=None if columns is None else list(columns))
        except (DamagedError, OSError, ValueError) as error:
            path.unlink(missing_ok=True)
            raise UserError(f"{path} is damaged: {error}. It was removed; run the same command again") from error

    def write(self, key: StageKey, partition: str, clips: Sequence[Clip]) -> None:
        """Write all clips after a stage, aside first, so that the file is whole or absent."""
        import pyarrow.parquet as pq

        path = self.path(key, partition)
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as temporary:
            writer = pq.ParquetWriter(temporary, clip_schema(), **PAGES)
            writer.write_table(clips_table(clips))
            seal(temporary, writer)

    def measured_before(self, key: StageKey, partition: str, stage: Measure) -> dict[tuple[object, ...], Measurement]:
        """What a stage of this very version has measured behind other stages, by what it follows from.

        Args:
            key: of the stage.
            partition: whose clips.
            stage: that measures.
        """
        found: dict[tuple[object, ...], Measurement] = {}
        for folder in sorted(self.root.glob(f"{key.step}-{key.own}-*")):
            path = folder / f"{partition}.parquet"
            if folder.name == key.folder or not path.is_file():
                continue
            for clip in self.read(replace(key, chain=folder.name.rpartition("-")[2]), partition):
                if clip.is_in:
                    scores = {name: clip.scores[name] for name in stage.provides if name in clip.scores}
                    series = {name: clip.series[name] for name in stage.provides if name in clip.series}
                    found[stage.depends_on(clip)] = Measurement(scores, series)
        return found

    def remove_leftovers(self) -> None:
        """Remove what a killed run left half-written, and its journals; nobody else may be writing."""
        for pattern in (".*.tmp", "*/.*.tmp", f"{STATE}/*/.*.tmp", f"{RUNNING}/*"):
            for leftover in self.root.parent.glob(pattern):
                leftover.unlink()
