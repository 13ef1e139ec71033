"""Configurations out of untrusted files: what they may name, and nothing else is built.

A configuration decides which classes are imported and called, so that whoever writes one could run anything. One from
the command line is its user's own. One out of a checkpoint is read here, and here only: as bounded plain data; naming
only classes that the shipped ``conf/`` names after ``_target_``, and those the user admits by exact dotted name with
``allow=[...]`` or ``VIDLAB_ALLOW``; and with nothing in it that resolves to something else, such as the environment.
That such a class gets no argument it does not declare is checked where it is built (``vidlab.lab.cli.hydra_main``).
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from omegaconf import DictConfig, OmegaConf

from vidlab.command_line import shell_word
from vidlab.errors import UserError
from vidlab.lab.cli.programs import config_folder
from vidlab.lab.compose import MODULE_PARTS
from vidlab.lab.earlier_names import with_names_of_today

ENVIRONMENT = "VIDLAB_ALLOW"
# What is rebuilt of a stored configuration. Its callbacks, logger, trainer and the like are not, so that a file cannot
# have their classes made, among them such as open whatever place a parameter names.
REBUILT = ("task", "data", *MODULE_PARTS.values())
# Groups of conf/ that are placed inside those.
WITHIN = ("bucketing", "lengths", "mixer", "structure")
# A run's configuration has some 250 values, 10 kB and 8 levels.
LARGEST, MOST_VALUES, DEEPEST = 2**20, 20_000, 32
SIZED = ("model", "autoencoder", "text_encoder", "conditioning.controller")
LARGEST_SIZE = 2**24  # no depth or width is larger
TARGET, PARTIAL = "_target_", "_partial_"
# Further words to hydra. The shipped configurations use none, so only a class of the user's own may have them.
DIRECTIVES = ("_args_", "_convert_", "_recursive_")


@dataclass(frozen=True)
class Allowed:
    """Classes outside the shipped configurations that the user admits.

    Args:
        names: exact dotted names.
        typed: how the command takes further ones, at ``{}``.
    """

    names: frozenset[str] = frozenset()
    typed: str = "allow=[{}]"

    @classmethod
    def of(cls, given: Any, typed: str = typed) -> "Allowed":
        """What the command line gives as ``allow``, and ``VIDLAB_ALLOW``, separated by commas.

        Raises:
            UserError: something that is no dotted name, such as a pattern.
        """
        listed = [given] if isinstance(given, str) else list(given or ())
        listed += [name for name in os.environ.get(ENVIRONMENT, "").split(",") if name.strip()]
        names = frozenset(str(name).strip() for name in listed)
        for name in sorted(names):
            if not _is_dotted(name):
                raise UserError(
                    f"allow={_shown(name)}: give exact dotted names, such as allow=[mylab.conv.ConvDenoiser]."
                )
        return cls(names, typed)

    def argument(self, missing: Sequence[str]) -> str:
        """What to type for these classes too, quoted for a shell."""
        return shell_word(self.typed.format(",".join(sorted({*self.names, *missing}))))


def stored_settings(text: Any, source: object) -> dict[str, Any]:
    """A configuration out of a file as plain data: nothing is imported and nothing resolved, ``${...}`` is text.

    Classes that have moved since are named where they are now.

    Args:
        text: YAML, as a checkpoint holds it under ``config``.
        source: the file, for messages.

    Raises:
        UserError: it is no mapping in YAML, has aliases, or is larger or deeper than any configuration of a run.
    """
    if not isinstance(text, str):
        raise UserError(f"{source}: its configuration is damaged: it is a {type(text).__name__} and not a text.")
    try:
        _check_bounds(text, source)
        settings = OmegaConf.to_container(OmegaConf.create(text))
    except UserError:
        raise
    except Exception as error:  # untrusted bytes raise whatever the parser stumbles over
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{source}: its configuration cannot be read ({type(error).__name__}: {reason}).") from None
    if not isinstance(settings, dict):
        raise UserError(f"{source}: its configuration is damaged: it is no mapping.")
    found: dict[str, Any] = with_names_of_today(settings)
    return found


def trusted_config(text: Any, source: object, allowed: Allowed) -> DictConfig:
    """The part of a stored configuration that is rebuilt, safe to be built.

    Args:
        text: YAML, as a checkpoint holds it under ``config``.
        source: the file, for messages.
        allowed: the user's own classes.

    Raises:
        UserError: what ``stored_settings`` refuses; a class that neither the shipped configurations name nor the user
            admits, with what to type to admit it; an interpolation.
    """
    settings = stored_settings(text, source)
    for key, node in _mappings(settings, ""):
        _check_node(key, node, source, allowed)
    refused = {name: key for name, key in _own(settings).items() if name not in allowed.names}
    if refused:
        raise UserError(_refusal(refused, source, allowed))
    kept = {key: value for key, value in settings.items() if key in REBUILT or not isinstance(value, dict | list)}
    _check_literal(kept, "", source)
    for group in ("data", "autoencoder"):  # what every reader asks for
        if not isinstance(kept.get(group), dict):
            raise UserError(f"{source}: its configuration has no {group}, so it is not of a run of vidlab.")
    config = OmegaConf.create(kept)
    assert isinstance(config, DictConfig)
    return config


def trained_config(state: Mapping[str, Any], checkpoint: Path, allowed: Allowed) -> DictConfig:
    """The configuration a checkpoint was trained with, as ``trusted_config``.

    Raises:
        UserError: it holds none, or one that is refused.
    """
    if "config" not in state:
        raise UserError(
            f"{checkpoint} holds no configuration, so its model cannot be rebuilt. Use a vidlab checkpoint."
        )
    return trusted_config(state["config"], checkpoint, allowed)


def own_classes(cfg: DictConfig) -> list[str]:
    """The classes of a composed configuration that its user will be asked to admit when it comes back in a file."""
    settings: Any = OmegaConf.to_container(cfg)
    return sorted(_own(settings))


def shipped_targets(group: str) -> frozenset[str]:
    """The classes that a stored configuration may name under a top-level key.

    Under a key that is rebuilt these are the classes that the shipped ``conf/`` names for such groups. The rest is not
    built, and may name any class of ``conf/``.
    """
    groups = {*REBUILT, *WITHIN}
    return frozenset(name for name, own in _shipped() if group not in groups or own in groups)


@cache
def _shipped() -> frozenset[tuple[str, str]]:
    """Every class after a ``_target_`` in the shipped configurations, with its group.

    Read as text, so that a class which a comment offers counts, and because composing them all would take seconds.
    """
    conf = config_folder()
    if not conf.is_dir():
        raise UserError(f"vidlab's configurations are missing ({conf}). Install vidlab again.")
    found = set()
    for file in conf.rglob("*.yaml"):
        text, group = file.read_text("utf-8"), file.relative_to(conf).parts[0]
        for line in text.splitlines():
            top = re.match(r"(\w+):", line) if "@package _global_" in text else None
            group = top[1] if top else group
            found |= {(name, group) for name in re.findall(rf"\b{TARGET}:\s*([\w.]+)", line)}
    return frozenset(found)


def _check_bounds(text: str, source: object) -> None:
    """Refuse what would grow or nest without end, before anything is made of it."""
    if len(text) > LARGEST:
        raise UserError(f"{source}: its configuration has {len(text)} characters; {LARGEST} is the most that is read.")
    depth = values = 0
    for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise UserError(f"{source}: its configuration has YAML aliases, and vidlab writes none.")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        values += isinstance(event, yaml.NodeEvent)
        if depth > DEEPEST:
            raise UserError(f"{source}: its configuration is nested deeper than {DEEPEST} levels.")
        if values > MOST_VALUES:
            raise UserError(f"{source}: its configuration has more than {MOST_VALUES} values.")


def _mappings(node: Any, key: str) -> Iterator[tuple[str, dict[Any, Any]]]:
    """Every mapping, in lists too, with its full key."""
    if isinstance(node, dict):
        yield key, node
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for name, value in items:
        yield from _mappings(value, f"{key}.{name}" if key else str(name))


def _own(settings: dict[str, Any]) -> dict[str, str]:
    """The classes that the shipped configurations do not name where these do, with the first key of each."""
    found: dict[str, str] = {}
    for key, node in _mappings(settings, ""):
        if node.get(TARGET) is not None and node[TARGET] not in shipped_targets(key.partition(".")[0]):
            found.setdefault(node[TARGET], key)
    return found


def _check_node(key: str, node: Mapping[Any, Any], source: object, allowed: Allowed) -> None:
    """Refuse what is no class's name, and what a mapping says to hydra besides."""
    name = node.get(TARGET)
    if TARGET in node and not (isinstance(name, str) and _is_dotted(name)):
        raise UserError(f"{source}: {_shown(key)}.{TARGET}={_shown(name)} in its configuration is no dotted name.")
    wrong = [] if name in allowed.names else [word for word in DIRECTIVES if word in node]
    if PARTIAL in node and not (name is not None and isinstance(node[PARTIAL], bool)):
        wrong.append(PARTIAL)
    if wrong:
        raise UserError(f"{source}: {_shown(key)}.{wrong[0]} in its configuration is not used by vidlab, nor read.")


def _refusal(refused: Mapping[str, str], source: object, allowed: Allowed) -> str:
    asked = ", ".join(f"{name} ({_shown(key)}.{TARGET})" for name, key in refused.items())
    it, which = ("it", "is") if len(refused) == 1 else ("them", "are")
    return (
        f"{source}: its configuration asks for {asked}, which {which} not among the classes that vidlab's own "
        f"configurations build there. What is built can do anything that you can do here: if you know {it}, and who "
        f"made this file, add {allowed.argument(list(refused))} to the command line (or set {ENVIRONMENT})."
    )


def _check_literal(node: Any, key: str, source: object) -> None:
    """Refuse ``${...}``, as a run records what its own came to, and sizes that no memory holds."""
    if isinstance(node, int | float) and abs(node) > LARGEST_SIZE and key.startswith(SIZED):
        raise UserError(f"{source}: {_shown(key)}={_shown(node)} in its configuration is more than any model has.")
    if isinstance(node, str) and "${" in node:
        raise UserError(
            f"{source}: {_shown(key)}={_shown(node)} in its configuration would be replaced by something else. vidlab "
            "records values, and reads nothing but values."
        )
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for name, value in items:
        _check_literal(value, f"{key}.{name}" if key else str(name), source)


def _is_dotted(name: str) -> bool:
    parts = name.split(".")
    return len(parts) > 1 and all(part.isidentifier() and part.isascii() for part in parts)


def _shown(value: object) -> str:
    """Untrusted text on one line, without the characters that move a terminal's cursor."""
    text = str(value)[:100]
    return text if text.isprintable() else ascii(text)
