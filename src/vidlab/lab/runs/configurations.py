"""Runs that differ only in their seed are one configuration, named by the settings in which configurations differ."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from vidlab.errors import UserError

SEED = "seed"
# Settings that name, place or watch a run without changing what it learns.
BOOKKEEPING = ("name", "ckpt_path", "accept_changes", "resume_sweep", "plan", "logger", "hydra")
REMOVED = "removed"


@dataclass(frozen=True)
class Configuration:
    """Runs of the same settings, seeds aside.

    Args:
        name: its settings as they are typed, such as ``model=full3d steps=32``; ``all runs`` where none differs.
        settings: the settings in which the configurations differ, by key.
        runs: the places of its runs in the list that was grouped.
        seeds: the seed of each of these runs, all different.
    """

    name: str
    settings: Mapping[str, str]
    runs: tuple[int, ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class RunSettings:
    """What made a run.

    Args:
        overrides: its command line, as Hydra keeps it.
        defaults: what it had of everything its command line does not name: choices of groups, values by dotted key.
    """

    overrides: tuple[str, ...]
    defaults: Mapping[str, str]


def group_by_settings(
    overrides: Sequence[Sequence[str]],
    left_out: Collection[str] = BOOKKEEPING,
    default: str = "default",
    defaults: Sequence[Mapping[str, str]] = (),
) -> tuple[Configuration, ...]:
    """Group runs by what was typed for them, in the order in which configurations first come.

    A seed that comes twice among runs of the same settings begins another configuration: its name then ends in
    ``(run 2)``, and the first one's in ``(run 1)``; where nothing else differs these are the names.

    Args:
        overrides: for each run its command line, as Hydra keeps it: ``model=full3d``, ``+a.b=1``, ``~losses.x``. Of a
            key that comes twice the last counts.
        left_out: keys that make no difference, with everything below them. The seed never does.
        default: stands for the value of a setting that one run does not name and another does.
        defaults: for each run the values of settings that were not typed, by key; ``default`` stands for others.
    """
    typed = [_typed(words, left_out) for words in overrides]
    known = defaults or [{}] * len(typed)
    keys = list(dict.fromkeys(key for one in typed for key in one))
    whole = [
        {key: one.get(key, more.get(key, default)) for key in keys} for one, more in zip(typed, known, strict=True)
    ]
    differing = [key for key in keys if len({_canonical(one[key]) for one in whole}) > 1]
    seeds = [seed_of(words, int(more.get(SEED, 0))) for words, more in zip(overrides, known, strict=True)]
    groups: dict[tuple[str, ...], list[dict[int, int]]] = {}  # settings -> repeats of seed -> place
    for place, (one, seed) in enumerate(zip(whole, seeds, strict=True)):
        repeats = groups.setdefault(tuple(_canonical(one[key]) for key in differing), [])
        free = next((repeat for repeat in repeats if seed not in repeat), None)
        if free is None:
            repeats.append(free := {})
        free[seed] = place
    return tuple(
        replace(made, name=f"{made.name} (run {number})" if differing else f"run {number}")
        if len(repeats) > 1
        else made
        for repeats in groups.values()
        for number, repeat in enumerate(repeats, 1)
        for made in [_configuration({key: whole[min(repeat.values())][key] for key in differing}, repeat)]
    )


def _configuration(settings: Mapping[str, str], places: Mapping[int, int]) -> Configuration:
    words = [f"~{key}" if value == REMOVED else f"{key}={value}" for key, value in settings.items()]
    return Configuration(" ".join(words) or "all runs", settings, tuple(places.values()), tuple(places))


def _typed(words: Sequence[str], left_out: Collection[str]) -> dict[str, str]:
    """The settings of a command line, without the seed and what makes no difference."""
    found = {}
    for word in words:
        key, _, value = word.partition("=")
        bare = key.lstrip("+~")
        if bare != SEED and not any(bare == one or bare.startswith((f"{one}.", f"{one}/")) for one in left_out):
            found[bare] = REMOVED if key.startswith("~") else value
    return found


def _canonical(value: str) -> str:
    """One text for one value: ``1e-3`` and ``0.001``, ``'a'`` and ``a``."""
    bare = value.strip().strip("'\"")
    try:
        return repr(float(bare))
    except ValueError:
        return bare


def seed_of(overrides: Sequence[str], default: int = 0) -> int:
    """The seed that a command line names, or the default one.

    Raises:
        UserError: it is not a whole number.
    """
    named = [word.partition("=")[2] for word in overrides if word.partition("=")[0].lstrip("+") == SEED]
    try:
        return int(named[-1]) if named else default
    except ValueError as error:
        raise UserError(f"{SEED}={named[-1]}: a seed is a whole number.") from error


def read_settings(folder: Path) -> RunSettings | None:
    """What made a run: its command line and everything that this left to the defaults.

    Args:
        folder: of the run.

    Returns:
        None where Hydra has left no ``.hydra`` folder, as in a copied checkpoint.

    Raises:
        UserError: a file of it is damaged.
    """
    record = folder / ".hydra"
    if not (record / "overrides.yaml").is_file():
        return None
    try:
        names = ("overrides.yaml", "config.yaml", "hydra.yaml")  # as text: nothing in them is resolved
        overrides, config, hydra = (_loaded((record / name).read_text("utf-8")) for name in names)
        chosen = {str(group): _written(choice) for group, choice in hydra["hydra"]["runtime"]["choices"].items()}
        return RunSettings(tuple(map(str, overrides)), {**_flat(config), **chosen})
    except Exception as error:  # whatever a damaged file makes a reader raise
        raise UserError(f"{record} is damaged ({type(error).__name__}); delete it to go on without.") from error


def _loaded(text: str) -> Any:
    """As ``yaml.safe_load`` has it, by the parser of libyaml where there is one, which is several times as fast."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def _flat(tree: Mapping[str, Any], before: str = "") -> dict[str, str]:
    """Values by dotted key."""
    found: dict[str, str] = {}
    for name, value in tree.items():
        key = f"{before}{name}"
        found |= _flat(value, f"{key}.") if isinstance(value, Mapping) and value else {key: _written(value)}
    return found


def _written(value: Any) -> str:
    """A value as it is typed."""
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_written, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
