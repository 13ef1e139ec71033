"""A whole curation: plan the partitions, run the stages, gather what they left."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from vidlab.curation.cache_writer import alone, nothing_lost
from vidlab.curation.engine.engines import Engine
from vidlab.curation.engine.partitions import Partition, planned
from vidlab.curation.engine.records import SourceVideo
from vidlab.curation.engine.stage import SharedDecision
from vidlab.curation.engine.store import STATE, StageKey, StageStore
from vidlab.curation.engine.work import NamedStage, Work
from vidlab.curation.output.funnel import COLUMNS, Funnel
from vidlab.curation.output.shards import ShardExport
from vidlab.curation.recipe import Recipe
from vidlab.curation.stages.filters import score_of
from vidlab.errors import UserError


@runtime_checkable
class Progress(Protocol):
    """What a curation tells while it runs."""

    def begin(self, title: str, total: int, done: int) -> None:
        """Partitions that there are, and those that were done before."""

    def source(self) -> None:
        """A stage is done with a source."""

    def partition(self, funnel: Funnel) -> None:
        """A partition is done; the funnel is of all that are."""


@dataclass(frozen=True)
class Settings:
    """How a curation is run.

    Args:
        root: its folder.
        engine: who works.
        sources_per_partition: the unit of work that is done whole or not at all.
        retries: how often a source that cannot be read is tried again.
        export: writes the shards; None writes none.
    """

    root: Path
    engine: Engine
    sources_per_partition: int = 16
    retries: int = 1
    export: ShardExport | None = None

    def __post_init__(self) -> None:
        for name, least in (("sources_per_partition", 1), ("retries", 0)):
            if getattr(self, name) < least:
                raise UserError(f"{name}={getattr(self, name)}: it must be {least} or more.")


@dataclass(frozen=True)
class Curated:
    """A finished curation.

    Args:
        root: its folder.
        recipe: as it was given.
        stages: of the recipe in order, shared decisions fitted.
        partitions: in order.
        keys: of the stages.
        funnel: of all clips.
    """

    root: Path
    recipe: Recipe
    stages: tuple[NamedStage, ...]
    partitions: tuple[Partition, ...]
    keys: tuple[StageKey, ...]
    funnel: Funnel

    def tables(self, columns: Sequence[str] | None = None) -> Iterator[Any]:
        """All clips, an Arrow table per partition."""
        store = StageStore(self.root)
        for partition in self.partitions:
            yield store.table(self.keys[-1], partition.name, columns)


def curate(recipe: Recipe, sources: Sequence[SourceVideo], settings: Settings, progress: Progress) -> Curated:
    """Run a recipe over sources; what an earlier run finished is kept.

    Raises:
        UserError: the folder is in use, a setting cannot work, or the disk is full.
    """
    recipe.check()
    root = settings.root
    with alone(root, "curating into it"), nothing_lost(root, f"{STATE}/*/*.parquet", "finished parts"):
        StageStore(root).remove_leftovers()
        partitions = planned(root, sources, settings.sources_per_partition)
        stages = _fitted(recipe, partitions, settings, progress)
        work = replace(_work(stages, partitions, settings), shards=settings.export)
        funnel = _run(work, recipe, settings.engine, progress, "Curating")
        names = [partition.name for partition in partitions]
        if settings.export is not None:
            settings.export.remove_others(root, work.keys[-1], names)
    return Curated(root, recipe, stages, tuple(partitions), work.keys, funnel)


def _work(stages: Sequence[NamedStage], partitions: Sequence[Partition], settings: Settings) -> Work:
    by_name = {partition.name: partition for partition in partitions}
    return Work(settings.root, tuple(stages), by_name, settings.retries)


def _fitted(
    recipe: Recipe, partitions: Sequence[Partition], settings: Settings, progress: Progress
) -> tuple[NamedStage, ...]:
    """The stages; before each that looks at all clips, those ahead of it are run for all partitions."""
    stages: list[NamedStage] = []
    for named in recipe.stages:
        stage = named.stage
        if isinstance(stage, SharedDecision):
            work = _work(stages, partitions, settings)
            _run(work, recipe, settings.engine, progress, f"Ahead of {named.name}")
            named = replace(named, stage=stage.fitted(_gathered(work, stage.gathers, named.name)))
        stages.append(named)
    return tuple(stages)


def _gathered(work: Work, score: str, step: str) -> list[float]:
    """A score of all clips that are in, ascending."""
    store, key, found = StageStore(work.root), work.keys[-1], []
    for name in work.partitions:
        table = store.table(key, name, ("rejected_by", "scores"))
        for row in table.to_pylist():
            if not row["rejected_by"]:
                found.append(score_of(dict(row["scores"]), score, step))
    return sorted(found)


def _run(work: Work, recipe: Recipe, engine: Engine, progress: Progress, title: str) -> Funnel:
    todo, store, key, funnel = work.todo(), StageStore(work.root), work.keys[-1], Funnel(recipe)
    for name in sorted(work.partitions.keys() - set(todo)):
        funnel.add(store.table(key, name, COLUMNS))
    progress.begin(title, len(work.partitions), len(work.partitions) - len(todo))

    def done(name: str) -> None:
        funnel.add(store.table(key, name, COLUMNS))
        progress.partition(funnel)

    if todo:
        engine.run(work, todo, done, progress.source)
    return funnel
