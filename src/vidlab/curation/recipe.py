"""A recipe: the steps of a curation in order."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from vidlab.curation.engine.stage import Opening, Stage
from vidlab.curation.engine.work import NamedStage
from vidlab.curation.stages.slicing import Open
from vidlab.errors import UserError

OPEN = "open"


@dataclass(frozen=True)
class PublishedStep:
    """What a paper states of a step.

    Args:
        name: as the paper calls it.
        remaining: percent that is left behind it.
    """

    name: str
    remaining: float


@dataclass(frozen=True)
class Step:
    """One step of a recipe.

    Args:
        name: under which clips are rejected.
        stages: none where the step is left out.
        published: what the paper states of it.
    """

    name: str
    stages: tuple[NamedStage, ...]
    published: PublishedStep | None = None


@dataclass(frozen=True)
class Recipe:
    """Steps in order, the opening of the files first.

    Args:
        name: of the recipe.
        steps: by name, in order.
    """

    name: str
    steps: tuple[Step, ...]

    @property
    def stages(self) -> tuple[NamedStage, ...]:
        """All stages that run, in order."""
        return tuple(stage for step in self.steps for stage in step.stages)

    @property
    def left_out(self) -> tuple[str, ...]:
        """Names of the steps that do not run."""
        return tuple(step.name for step in self.steps if not step.stages)

    def check(self) -> None:
        """Refuse what cannot work, before anything is read.

        Raises:
            UserError: naming the key.
        """
        for named in self.stages:
            named.stage.check(f"curation.{named.name}")


def recipe(name: str, published: Mapping[str, Mapping[str, Any]] | None = None, **steps: Any) -> Recipe:
    """A recipe from its configuration.

    Args:
        name: of the recipe.
        published: of a step by its name: what the paper calls it and the percent that remain behind it.
        steps: by name, in order: a stage, several by name, or None to leave the step out.

    Raises:
        UserError: a step is neither.
    """
    facts = {step: PublishedStep(**values) for step, values in (published or {}).items()}
    opening = Step(OPEN, (NamedStage(OPEN, Open()),))
    return Recipe(
        name,
        (opening, *(Step(step, tuple(_stages(step, given)), facts.get(step)) for step, given in steps.items())),
    )


def _stages(step: str, given: Any) -> Iterator[NamedStage]:
    if given is None:
        return
    if isinstance(given, Stage):
        yield _named(step, given)
        return
    if not isinstance(given, Mapping) or not all(isinstance(stage, Stage | None) for stage in given.values()):
        raise UserError(
            f"curation.{step}={given}: a step is a stage (with a _target_), several stages by name, or null."
        )
    for name, stage in given.items():
        if stage is not None:
            yield _named(f"{step}.{name}", stage)


def _named(name: str, stage: Stage) -> NamedStage:
    if isinstance(stage, Opening):
        raise UserError(f"curation.{name}: files are opened once, ahead of all steps.")
    return NamedStage(name, stage)
