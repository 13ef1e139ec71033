"""What the entry points share: one clear message instead of a traceback, and the right exit code.

An entry point is::

    @entry.main(config_path="conf", config_name="train")
    def main(cfg: DictConfig) -> float | None:
        from vidlab.lab.train import train
        return train(cfg)

Exit codes: 0 done, 1 a bug (with its traceback), 2 something the user can fix, 130 interrupted, 143 stopped by
SIGTERM.
"""

import functools
import importlib
import inspect
import logging
import os
import signal
import sys
import threading
import traceback
import typing
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.hydra import Hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vidlab.errors import UserError
from vidlab.files import terminal
from vidlab.lab.cli.arguments import quote_text
from vidlab.lab.cli.credentials import clean_log, clean_records, withhold
from vidlab.lab.cli.error_messages import did_you_mean, explain, explain_instantiation, root_cause
from vidlab.lab.cli.help_text import asks_for_help, help_text
from vidlab.lab.cli.lean_imports import prepare_imports
from vidlab.lab.cli.planning import nothing_left
from vidlab.lab.cli.process_env import prepare_host
from vidlab.lab.cli.safe_text import safe_records
from vidlab.lab.cli.unused_folder import no_trace_of_mistakes, remove_unused
from vidlab.lab.sweeps.membership import recorded_job
from vidlab.lab.sweeps.resume import continued, is_resumption
from vidlab.redaction import redact

KINDS = {
    bool: "true or false",
    float: "a number",
    int: "a whole number",
    str: "a text",
    type(None): "null",
}
RESERVED = frozenset({"_target_", "_partial_", "_recursive_", "_convert_", "_args_"})


class JobFailedError(Exception):
    """One job of a sweep failed: a message that names it, the sweep's folder. Survives being sent between processes."""


def main(
    config_path: str, config_name: str, text_keys: tuple[str, ...] = ()
) -> Callable[[Callable[[DictConfig], Any]], Callable[[], Any]]:
    """``hydra.main`` with clear messages, for misspelled keys and choices too, in single runs and in sweeps.

    In a sweep a failing job prints its message, the other jobs still run, and the exit code is not 0.

    Args:
        config_path: folder of the configuration, relative to the entry point.
        config_name: the primary configuration.
        text_keys: keys that hold free text, which is taken as typed; see ``arguments``.
    """

    def decorate(task: Callable[[DictConfig], Any]) -> Callable[[], Any]:
        @functools.wraps(task)  # hydra looks through it to find the config folder beside the entry point
        def guarded(cfg: DictConfig) -> Any:
            _prepare_process()  # of a sweep's launcher
            folder = Path(HydraConfig.get().runtime.output_dir)
            with friendly(), recorded_job(folder), no_trace_of_mistakes():
                clean_records(folder)
                return task(cfg)

        composed = hydra.main(version_base="1.3", config_path=config_path, config_name=config_name)(guarded)

        @functools.wraps(task)
        def run() -> Any:
            _prepare_process()
            # argparse takes overrides on one side of a flag only
            arguments = sorted(sys.argv[1:], key=lambda argument: argument not in ("-m", "--multirun"))
            with interruptible_exit(), friendly():
                sweep = arguments[:1] in (["-m"], ["--multirun"]) or any(map(is_resumption, arguments))
                sys.argv[1:] = [quote_text(argument, text_keys, sweep) for argument in withhold(arguments)]
                if asks_for_help(arguments):
                    conf = Path(inspect.getfile(task)).resolve().parent / config_path
                    typed = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
                    print(help_text(conf, config_name, typed))
                    return None
                sys.argv[1:] = continued(sys.argv[1:], config_name)
                with nothing_left(sys.argv[1:]) as sys.argv[1:], _composed_once(sys.argv[1:]):
                    return composed()

        return run

    return decorate


# words that may bring a mode: Hydra's flags and settings, and experiments, which may be sweeps
MAY_SET_A_MODE = ("-", "hydra", "experiment")


@contextmanager
def _composed_once(arguments: list[str]) -> Iterator[None]:
    """Within it Hydra composes once. It would compose everything twice, the first time for ``hydra.mode`` alone."""
    if any(argument.lstrip("+~").startswith(MAY_SET_A_MODE) for argument in arguments):
        yield
        return
    whole = Hydra.get_mode
    Hydra.get_mode = lambda *_, **__: None  # a single run
    try:
        yield
    finally:
        Hydra.get_mode = whole


def _prepare_process() -> None:
    """What holds for every process of vidlab, once."""
    if warnings.formatwarning is _without_source:
        return
    prepare_host()
    prepare_imports()
    # hydra's documented switch to raise its own errors instead of printing them
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    warnings.formatwarning = _without_source
    clean_log()
    logging.setLogRecordFactory(safe_records(logging.getLogRecordFactory()))


def _without_source(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> str:
    return terminal(redact(f"Warning: {message}\n"))


@contextmanager
def interruptible_exit() -> Iterator[None]:
    """After the block Ctrl-C ends the process at once: what Python does at its exit would print a traceback."""
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def friendly() -> Iterator[None]:
    """Turn errors that the user can fix into one message on stderr and an exit code.

    A bug passes unchanged. Inside a job of a sweep the message is printed and ``JobFailedError`` raised.

    Raises:
        SystemExit: 2 for what the user can fix, 130 for an interrupt.
    """
    try:
        yield
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        sys.exit(130)
    except JobFailedError as error:
        message, folder = error.args
        remove_unused(Path(folder))
        print(f"The sweep ended with failed jobs; the first: {message}", file=sys.stderr)
        sys.exit(2)
    except Exception as error:
        told, job = explain(error), _sweep_job()
        message = told and terminal(told)
        if os.environ.get("VIDLAB_DEBUG") == "1" or (message is None and job is not None):
            print(redact(traceback.format_exc()), file=sys.stderr, end="")
        if job is not None:
            text = redact(message or terminal(f"{type(error).__name__}: {error}"))
            print(f"Job {job} failed: {text}", file=sys.stderr)
            raise JobFailedError(f"job {job}: {text}", str(HydraConfig.get().sweep.dir)) from None
        if message is None:
            raise
        print(f"{redact(message)}\n(set VIDLAB_DEBUG=1 for the traceback)", file=sys.stderr)
        sys.exit(2)


def _sweep_job() -> str | None:
    """The number of the running sweep job; None outside sweeps."""
    from hydra.types import RunMode

    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return None
    return Path(HydraConfig.get().runtime.output_dir).name


def instantiate(node: Any, key: str, **kwargs: Any) -> Any:
    """``hydra.utils.instantiate`` that checks the settings first and names the configuration key at fault.

    Args:
        node: a configuration node with ``_target_``; None gives None.
        key: the full key of the node, such as ``data``, used in messages.
        kwargs: further arguments of the target, which win over the node's.

    Raises:
        UserError: an unknown target, an unknown or missing setting, or a value the target refuses.
    """
    try:
        _check(node, key, kwargs)
        return hydra.utils.instantiate(node, _convert_="all", **kwargs)
    except InstantiationException as error:
        message = explain_instantiation(error, key)
        if message is None:
            raise
        cause = root_cause(error)
        kind = type(cause) if isinstance(cause, UserError) else UserError
        raise kind(message) from error
    except OmegaConfBaseException as error:
        raise UserError(explain(error) or str(error)) from error


def _check(node: Any, key: str, given: Mapping[str, Any]) -> None:
    """Find missing and unknown settings of ``node`` and of the nodes inside it before anything is built."""
    if isinstance(node, ListConfig):
        for number in range(len(node)):
            _check(node[number], f"{key}.{number}", {})
    if not isinstance(node, DictConfig) or node._is_none():
        return
    for name in map(str, node):
        if OmegaConf.is_missing(node, name) and name not in given:
            raise UserError(f"{key}.{name} is required: add {key}.{name}=... to the command line.")
    if node.get("_target_") is not None:
        _check_signature(node, key, given)
    if node.get("_recursive_", True):
        for name in map(str, node):
            if name not in given:
                _check(node[name], f"{key}.{name}", {})


def _check_signature(node: DictConfig, key: str, given: Mapping[str, Any]) -> None:
    target = locate_target(node["_target_"], key)
    try:
        parameters = list(inspect.signature(target).parameters.values())
    except (ValueError, TypeError):  # some builtins have no signature; they check for themselves
        return
    by_name = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    names = [p.name for p in by_name]
    title = getattr(target, "__name__", node["_target_"])
    unknown = [str(name) for name in node if name not in RESERVED and name not in names]
    if unknown and not any(p.kind == p.VAR_KEYWORD for p in parameters):
        shown = OmegaConf.to_yaml(node[unknown[0]]) if OmegaConf.is_config(node[unknown[0]]) else node[unknown[0]]
        hint = did_you_mean(unknown[0], [name for name in names if name not in given], "Its settings")
        raise UserError(f"{key}.{unknown[0]}={shown}: {title} has no setting {unknown[0]!r}.{hint}")
    for parameter in by_name:
        if parameter.name in node and parameter.name not in given:
            _check_type(f"{key}.{parameter.name}", node[parameter.name], parameter.annotation)
    if node.get("_partial_", False) or "_args_" in node:
        return
    for parameter in by_name:
        if parameter.default is parameter.empty and parameter.name not in node and parameter.name not in given:
            full = f"{key}.{parameter.name}"
            raise UserError(f"{full} is required by {title}: add +{full}=... to the command line.")


def _check_type(key: str, value: Any, annotation: Any) -> None:
    """Refuse a plain value where the annotation has only other plain types, such as a word for a number."""
    allowed = set(typing.get_args(annotation)) or {annotation}
    if not allowed <= KINDS.keys() or OmegaConf.is_config(value):
        return
    if type(value) not in allowed and not (type(value) is int and float in allowed):
        wanted = " or ".join(text for kind, text in KINDS.items() if kind in allowed)
        raise UserError(f"{key}={value}: it must be {wanted}.")


def locate_target(target: str, key: str) -> Any:
    """The object at a dotted path; unlike hydra's own search, silent when it fails.

    Raises:
        UserError: it cannot be imported; ``key`` is the configuration key that has the ``_target_``.
    """
    parts = target.split(".")
    try:
        found: Any = importlib.import_module(parts[0])
        for count, part in enumerate(parts[1:], start=2):
            if not hasattr(found, part) and hasattr(found, "__path__"):
                found = importlib.import_module(".".join(parts[:count]))
            else:
                found = getattr(found, part)
    except UserError:
        raise
    except Exception as error:  # whatever the module's own import raised
        detail = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(f"{key}._target_={target}: cannot be imported ({detail}).") from error
    return found
