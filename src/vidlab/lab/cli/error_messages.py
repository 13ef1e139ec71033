"""From the errors of hydra, omegaconf and the file system to one message for the user."""

import difflib
import errno
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from hydra.errors import (
    ConfigCompositionException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
    SearchPathException,
)
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)
from yaml import YAMLError  # type: ignore[import-untyped]

from vidlab.command_line import shell_word
from vidlab.data.workers import death_of_a_worker
from vidlab.errors import UserError
from vidlab.lab.cli.arguments import as_typed
from vidlab.parallel.lost import death_of_a_process

STORAGE_PROBLEMS = {
    errno.ENOSPC: "the disk is full; free some space or choose another folder",
    errno.EDQUOT: "your disk quota is used up; free some space or choose another folder",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.EACCES: "no permission; choose a folder you may write to",
    errno.EPERM: "not permitted; choose a folder you may write to",
    errno.ENOTDIR: "a part of this path is a file, not a folder; choose another folder",
    errno.EFBIG: "the file is larger than this machine allows (ulimit -f); raise the limit",
}
OWN_CHOICES = "Your own need hydra.searchpath=[pkg://<package>.conf], or [file://<folder>]."
REFUSALS = (ValueError, TypeError, OSError, ImportError)  # what targets raise for settings they do not like


def explain(error: BaseException) -> str | None:
    """The message for an error that the user can fix; None for a bug."""
    if isinstance(error, UserError):
        return _without_worker_traceback(str(error))
    if isinstance(error, InstantiationException):
        return explain_instantiation(error, "")
    if isinstance(error, MissingConfigException | OverrideParseException | ConfigCompositionException):
        return _explain_composition(error)
    if isinstance(error, SearchPathException | YAMLError):
        return _one_line(error)
    if isinstance(error, OmegaConfBaseException):
        return _explain_config(error)
    if isinstance(error, RuntimeError) and death_of_a_worker(error):
        return death_of_a_worker(error)
    if death_of_a_process(error):
        return death_of_a_process(error)
    if isinstance(error, OSError) and error.errno in STORAGE_PROBLEMS:
        return f"{error.filename or 'writing a file'}: {STORAGE_PROBLEMS[error.errno]}."
    return None


def explain_instantiation(error: InstantiationException, key: str) -> str | None:
    """The message for a target that could not be built, with the full configuration key; None for a bug.

    ``key`` is where the node hangs in the configuration, in case the node was cut from it.
    """
    found = re.search(r"full_key: (\S+)", str(error))
    inner = found[1] if found else ""
    where = inner if not key or inner == key or inner.startswith(f"{key}.") else f"{key}.{inner}".strip(".")
    cause = root_cause(error)
    located = re.match(r"Error locating target '([^']+)'", str(error))
    if located:
        return f"{where}._target_={located[1]}: cannot be imported ({type(cause).__name__}: {_one_line(cause)})."
    if isinstance(cause, UserError):
        text = str(cause)
        return text if not where or f"{where.split('.')[0]}." in text else f"{where}: {text}"
    if isinstance(cause, OSError) and cause.errno in STORAGE_PROBLEMS:
        return f"{where}: {explain(cause)}"
    if cause is error or isinstance(cause, REFUSALS):
        called = re.match(r"Error in call to target '([^']+)'", str(error))
        title = called[1].rsplit(".", 1)[-1] if called else "the target"
        return f"{where}: {title} refuses its settings ({type(cause).__name__}: {_one_line(cause)})."
    return None


def _explain_composition(error: Exception) -> str:
    if isinstance(error, OverrideParseException):
        if own := _own_names(error.override.partition("=")[0].lstrip("+")):
            return own
        typed = f" If all of it is one text, type {as_typed(error.override)}" if "=" in error.override else ""
        return f"{error.override!r} is not of the form key=value, in which lists and quotes must be closed.{typed}"
    if isinstance(error, MissingConfigException):
        return _unknown_choice(error)
    cause = error.__cause__
    if isinstance(cause, OmegaConfBaseException):
        return _explain_config(cause)
    several = re.match(r"Ambiguous value for argument '(.*)'\n", str(error), re.DOTALL)
    if several:
        key, _, value = several[1].partition("=")
        return (
            f"{several[1]!r}: commas separate the values of a sweep, which begins with -m. For one text with a comma "
            f"type {as_typed(several[1])}, for a list {shell_word(f'{key}=[{value}]')}"
        )
    return _one_line(error)


def _unknown_choice(error: MissingConfigException) -> str:
    group, _, choice = (error.missing_cfg_file or "").rpartition("/")
    if group and not error.options:  # hydra does not list the choices of list groups, such as callbacks=[...]
        return f"{group}={choice}: no such choice; --help lists the choices of {group}. {OWN_CHOICES}"
    if not group:
        return str(error).split("Config search path")[0].strip()
    asked = re.match(r"In '([^']+)'", str(error))
    by = f" (asked for by {asked[1]!r})" if asked and "/" in asked[1] else ""
    meant = did_you_mean(choice, choices_among(error.options), "Choices")
    return f"{group}={choice}: no such choice{by}.{meant} {OWN_CHOICES}"


def _explain_config(error: OmegaConfBaseException) -> str:
    told = re.match(r"UserError raised while resolving interpolation: (.*)\n    full_key", str(error), re.DOTALL)
    if told:
        return told[1]
    missing = re.search(r"Missing mandatory value: (\S+)", str(error))
    if missing or isinstance(error, MissingMandatoryValue):
        key = missing[1] if missing else error.full_key
        return f"{key} is required: add {key}=... to the command line."
    if isinstance(error, InterpolationKeyError):
        return f"{error.full_key}: {_one_line(error).split(' full_key')[0]}; check the spelling."
    if isinstance(error, ConfigAttributeError | ConfigKeyError) and isinstance(error.parent_node, DictConfig):
        return _unknown_key(str(error.full_key), error.parent_node)
    return f"{error.full_key}: {_one_line(error).split(' full_key')[0]}"


def _unknown_key(full_key: str, parent: DictConfig) -> str:
    *above, name = full_key.split(".")
    known = [str(key) for key in parent if not (key == "hydra" and not above)]
    elsewhere = [path for path in _paths(parent._get_root()) if path.split(".")[-1] == name]
    place = f"Keys of {'.'.join(above)}" if above else "Top-level keys"
    if full_key == "data.path":
        chosen = f"data={parent.name}" if parent.get("name") else "the chosen data"
        return (
            f"data.path: {chosen} reads no folder. Videos with captions are data=folder data.path=<their folder>, with "
            "data.source.captions=<table> where one names them; shards are data=shards, and --help lists the rest."
        )
    if own := _own_names(full_key):
        return own
    if full_key in RENAMED:
        return f"{full_key}: no such key, it is {RENAMED[full_key]} now."
    if elsewhere and name not in known:
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
        return f"{full_key}: no such key. Did you mean {' or '.join([*close, *elsewhere[:3]])}?"
    return f"{full_key}: no such key.{did_you_mean(name, known, place)}"


def _own_names(key: str) -> str | None:
    """How a name is added to a mapping whose names are the user's, if ``key`` is in one."""
    for known, example in OWN_NAMES.items():
        if key == known or key.startswith(f"{known}."):
            return f"{known} takes names of your own, which + adds, without quotes inside: '+{known}={{{example}}}'"
    return None


# Mappings that are empty as shipped, each with an example.
OWN_NAMES = {
    "optimizer.lr_multipliers": "text_encoder.*:0.5",
    "init.copies": "backbone.temporal:backbone.spatial",
    "logger.tags": "purpose:pilot",
}

# Keys of earlier versions.
RENAMED = {"fill_in": "interpolate", "given_frames": "conditioning_frames"}


def _paths(node: Any, prefix: str = "") -> Iterator[str]:
    """The full keys of a configuration, without hydra's own."""
    if not isinstance(node, DictConfig) or node._is_none() or node._is_missing():
        return
    for key in map(str, node):
        if prefix or key != "hydra":
            yield f"{prefix}{key}"
            if not OmegaConf.is_missing(node, key) and not OmegaConf.is_interpolation(node, key):
                yield from _paths(node[key], f"{prefix}{key}.")


def choices_among(names: Iterable[str]) -> list[str]:
    """The names of a group's files that are choices; those that begin with _ hold what choices begin from."""
    return sorted(name for name in names if not name.startswith("_"))


def did_you_mean(word: str, known: Sequence[str], what: str) -> str:
    """A space and ``Did you mean 'x'? <what>: a, b, c.``, to be appended to a message."""
    close = difflib.get_close_matches(word, known, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    listed = ", ".join(known[:30]) + (", ..." if len(known) > 30 else "")
    return f"{hint} {what}: {listed or 'none'}."


def root_cause(error: BaseException) -> BaseException:
    """The first UserError among an error's causes, otherwise the innermost cause."""
    while not isinstance(error, UserError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _without_worker_traceback(text: str) -> str:
    """Errors of a data loader's worker arrive as text with a traceback, the message at the end."""
    if not text.startswith("Caught "):
        return text
    parts = re.split(r"\n[\w.]*errors\.\w+: ", text)
    return parts[-1].strip()
