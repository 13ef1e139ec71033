"""Commands: quoted for a shell and for Hydra inside of it, and the exit codes of small programs."""

import re
import shlex
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import ParamSpec

from vidlab.errors import UserError
from vidlab.files import terminal
from vidlab.redaction import redact

# What Hydra reads as itself, unquoted; a path or a word that is no number, truth value or null.
PLAIN = re.compile(r"(?!(?:null|true|false|inf|infinity|nan)$)[a-z_/][\w./-]*", re.IGNORECASE | re.ASCII)

Value = str | Path | Sequence[str | Path]
P = ParamSpec("P")


def exit_code(main: Callable[P, object]) -> Callable[P, int]:
    """A program that ends with an exit code: 0, 2 after a ``UserError``, whose message it prints, 130 after Ctrl-C."""

    @wraps(main)
    def program(*args: P.args, **kwargs: P.kwargs) -> int:
        try:
            main(*args, **kwargs)
        except UserError as error:
            print(redact(terminal(str(error))), file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("Interrupted.", file=sys.stderr)
            return 130
        return 0

    return program


def literal(text: str) -> str:
    r"""Text for OmegaConf that stays as it is: ``${`` becomes ``\${``, which it does not resolve."""
    return re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + r"\${", text)


def as_text(value: str | Path) -> str:
    """A value in Hydra's syntax that is read as exactly this text; quoted only where it must be."""
    text = str(value)
    if PLAIN.fullmatch(text):
        return text
    from hydra.core.override_parser.types import Quote, QuotedString

    return QuotedString(literal(text), Quote.double).with_quotes()


def setting(key: str, value: Value) -> str:
    """``key=value`` in Hydra's syntax; several values become a list."""
    if isinstance(value, str | Path):
        return f"{key}={as_text(value)}"
    return f"{key}=[{','.join(map(as_text, value))}]"


def prompt(text: str) -> str:
    """``prompt=text``, which programs take as typed unless it looks like quoted text or a list."""
    return setting("prompt", text) if not text or text[0] in "\"'[" else f"prompt={text}"


def command(program: str, *arguments: str) -> str:
    """A line to paste into a shell.

    Args:
        program: such as ``train.py`` or ``-m vidlab.lab.export``.
        arguments: flags, and settings in Hydra's syntax: as ``setting`` gives them, or as Hydra holds overrides.
    """
    return " ".join(["python", program, *map(shell_word, arguments)])


def shell_word(word: str) -> str:
    """One word for a shell; of ``key=value`` only the value is quoted, and only where it must be."""
    key, equals, value = word.partition("=")
    if equals and shlex.quote(key) == key:
        return f"{key}={shlex.quote(value) if value else ''}"
    return shlex.quote(word)
