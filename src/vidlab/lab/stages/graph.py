"""A graph of trainings, read from YAML that is data only."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from vidlab.errors import UserError
from vidlab.lab.stages.parts import PARTS

IMAGE_MODEL = "image_model"  # what a parent gives as model.image_model: the frozen model that moves
GIVEN = (*PARTS, IMAGE_MODEL)
UNITS = ("steps", "samples", "tokens", "flops", "wall_time")
NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
# What the graph itself decides for each stage, and what would let a file do more than describe a training.
OWN = ("init", "ckpt_path", "resume_sweep", "hydra", "budget", "name", "allow", "plan", "accept_changes")
LARGEST = 2**18


@dataclass(frozen=True)
class Stage:
    """One training.

    Args:
        name: of the stage, and of its folder.
        overrides: words of its command line, those that all stages share first.
        parents: the part of the new model's weights that each named stage gives, one of ``PARTS``; or ``image_model``.
        budget: the unit and the amount at which it ends.
        flops_of: a stage that took, with all that it stands on, as many FLOPs as this is to take, in place of a budget.
        says: what it is for, in a line.
    """

    name: str
    overrides: tuple[str, ...]
    parents: Mapping[str, str] = field(default_factory=dict)
    budget: tuple[str, float] | None = None
    flops_of: str | None = None
    says: str = ""

    @property
    def after(self) -> frozenset[str]:
        """The stages that must have ended before it begins."""
        return frozenset([*self.parents, *filter(None, [self.flops_of])])

    def words(self) -> tuple[str, ...]:
        """Its command line, but for the weights it starts from."""
        if self.budget is None:
            return (*self.overrides, "budget=flops") if self.flops_of else self.overrides
        unit, value = self.budget
        return (
            *self.overrides,
            f"budget={unit}",
            f"budget.value={value:g}" if value % 1 else f"budget.value={value:.0f}",
        )


@dataclass(frozen=True)
class Graph:
    """Stages that start from each other's weights, each after its parents.

    Args:
        name: the experiment of all its runs.
        stages: by name, in an order in which they can run.
        says: what it is, in a line.
        compare: the stage that each of some stages is compared with.
    """

    name: str
    stages: Mapping[str, Stage]
    says: str = ""
    compare: Mapping[str, str] = field(default_factory=dict)

    def selected(self, first: str | None = None, last: str | None = None) -> tuple[str, ...]:
        """The stages to run: ``first`` and what follows from it, ``last`` and what it needs; in order.

        Raises:
            UserError: no such stage, or nothing between them.
        """
        for key, name in (("from", first), ("until", last)):
            if name is not None and name not in self.stages:
                raise UserError(f"{key}={name}: there is no such stage; choose from {', '.join(self.stages)}.")
        found = [
            name
            for name in self.stages
            if (first is None or first in self.needed(name)) and (last is None or name in self.needed(last))
        ]
        if not found:
            raise UserError(f"from={first} until={last}: {last} does not follow from {first}.")
        return tuple(found)

    def needed(self, name: str) -> frozenset[str]:
        """A stage and all that it comes after."""
        parents = (self.needed(parent) for parent in self.stages[name].after)
        return frozenset({name}).union(*parents)


def read_graph(path: Path, extra: Sequence[str] = ()) -> Graph:
    """Read a file of stages.

    Args:
        path: of the YAML file.
        extra: words for every stage, after its own.

    Raises:
        UserError: names the file, the stage and the key at fault, and what is allowed.
    """
    content = _mapping(_load(path), str(path), ("name", "says", "overrides", "compare", "stages"))
    name = content.get("name")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise UserError(f"{path}: name={name}: it must be a word of lower-case letters, digits and underscores.")
    shared = _words(content.get("overrides", []), f"{path}: overrides")
    stages = content.get("stages")
    if not isinstance(stages, dict) or not stages:
        raise UserError(f"{path}: stages: at least one is needed, each a name with its overrides, parents and budget.")
    for word in extra:
        check_word(word, "the command line")
    found = {str(one): _stage(str(one), node, f"{path}: stages.{one}", shared, extra) for one, node in stages.items()}
    compare = _mapping(content.get("compare"), f"{path}: compare", tuple(found))
    for baseline in compare.values():
        if baseline not in found:
            raise UserError(f"{path}: compare: there is no stage {baseline}; choose from {', '.join(found)}.")
    return Graph(name, dict(_ordered(found, path)), str(content.get("says", "")), compare)


def _load(path: Path) -> Any:
    try:
        if path.stat().st_size > LARGEST:
            raise UserError(f"{path}: larger than {LARGEST} bytes: this is no file of stages.")
        text = path.read_text("utf-8")
        if re.search(r"(?m)(^|[\s\[{,:-])[&*][A-Za-z0-9_]", text):
            raise UserError(f"{path}: anchors and aliases (& and *) are not read here; write the words out.")
        return yaml.safe_load(text)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}). Shipped: experiments/*/stages*.yaml.") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split())}") from None


def _stage(name: str, node: Any, key: str, shared: Sequence[str], extra: Sequence[str]) -> Stage:
    if not NAME.fullmatch(name):
        raise UserError(f"{key}: a name has lower-case letters, digits and underscores, at most 40.")
    content = _mapping(node, key, ("says", "overrides", "parents", "budget"))
    parents = content.get("parents", {})
    if not isinstance(parents, dict):
        raise UserError(f"{key}.parents={parents}: write a stage and the part it gives, such as images: all.")
    for parent, part in parents.items():
        if part not in GIVEN:
            raise UserError(f"{key}.parents.{parent}={part}: choose {' | '.join(GIVEN)}.")
    if [*parents.values()].count(IMAGE_MODEL) > 1:
        raise UserError(f"{key}.parents: one stage can be the {IMAGE_MODEL}.")
    own = _words(content.get("overrides", []), f"{key}.overrides")
    words = {word.partition("=")[0]: word for word in (*shared, *own, *extra)}  # a later word replaces an earlier one
    budget: Any = content.get("budget")
    equal = isinstance(budget, dict) and [*budget] == ["flops_of"]
    flops_of = str(budget["flops_of"]) if equal else None
    return Stage(
        name, tuple(words.values()), {str(one): str(part) for one, part in parents.items()},
        _budget(None if equal else budget, f"{key}.budget"), flops_of, str(content.get("says", "")),
    )  # fmt: skip


def _budget(node: Any, key: str) -> tuple[str, float] | None:
    if node is None:
        return None
    if not isinstance(node, dict) or len(node) != 1 or next(iter(node)) not in UNITS:
        raise UserError(
            f"{key}={node}: write one of {', '.join(UNITS)} and its amount, such as steps: 1000; or flops_of: a stage."
        )
    unit, value = next(iter(node.items()))
    try:  # YAML reads 1e14 as text
        amount = float("nan") if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        amount = float("nan")
    if not 0 < amount < float("inf"):
        raise UserError(f"{key}.{unit}={value}: it must be a number above 0.")
    return str(unit), amount


def _words(node: Any, key: str) -> tuple[str, ...]:
    if not isinstance(node, list) or not all(isinstance(word, str) for word in node):
        raise UserError(f"{key}: write a list of key=value.")
    for word in node:
        check_word(word, key)
    return tuple(node)


def check_word(word: str, key: str) -> None:
    """Refuse what is no plain setting of a training.

    Raises:
        UserError: a setting that the graph decides, a class, or a value that is read from elsewhere.
    """
    name, equals, value = word.partition("=")
    plain = name.lstrip("+~")
    if not equals or not re.fullmatch(r"[A-Za-z_][\w./@-]*", plain):
        raise UserError(f"{key}: {word!r} is no setting: write key=value.")
    if re.split(r"[./@]", plain)[0] in OWN:
        raise UserError(f"{key}: {word!r}: the graph decides {plain} itself. Stages have parents and a budget.")
    if "_target_" in word or "${" in value:
        raise UserError(f"{key}: {word!r}: settings are plain values here: no classes, nothing read from elsewhere.")


def _mapping(node: Any, key: str, allowed: Sequence[str]) -> dict[str, Any]:
    if node is None:
        node = {}
    if not isinstance(node, dict):
        raise UserError(f"{key}: a mapping is needed, of {', '.join(allowed)}.")
    unknown = [str(one) for one in node if one not in allowed]
    if unknown:
        raise UserError(f"{key}: there is no {unknown[0]!r} here; choose from {', '.join(allowed)}.")
    return node


def _ordered(stages: Mapping[str, Stage], path: Path) -> Iterator[tuple[str, Stage]]:
    for stage in stages.values():
        for parent in stage.after:
            if parent not in stages:
                where = "budget.flops_of" if parent == stage.flops_of else "parents"
                raise UserError(f"{path}: stages.{stage.name}.{where}: there is no stage {parent}.")
    try:
        TopologicalSorter({name: one.after for name, one in stages.items()}).prepare()
    except CycleError as error:
        raise UserError(f"{path}: stages need each other in a circle: {' -> '.join(error.args[1])}.") from None
    done: set[str] = set()
    left = list(stages)
    while left:  # as written, wherever the parents allow it
        name = next(one for one in left if done.issuperset(stages[one].after))
        left.remove(name)
        done.add(name)
        yield name, stages[name]
