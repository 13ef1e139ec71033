"""What is typed for ``key=value``, where it is text: a path, a prompt. It is taken as it is, without Hydra's quoting.

Hydra has a grammar for values in which ``=``, brackets, quotes and letters beyond ASCII need quotes or escapes. Here:

- a prompt is text as typed, whatever it holds. Only a value that is wholly in quotes, ``"..."``, is Hydra's own
  syntax, and a value wholly in brackets, ``[one,another]``, is a list: of texts as typed up to the next comma, or in
  quotes. In a sweep, several texts in quotes with commas between them are its values.
- any other value that Hydra cannot parse is text as typed, unless it looks like a list, a dictionary or quoted text.
  In a sweep, commas still separate its values.
- ``guidance.inner=cfg`` chooses the guidance within another by name, as ``guidance=cfg`` chooses the outer one.
- a path, a run or a name is never a number: ``run=12345678e1234567...`` stays a run.
"""

import re
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from vidlab.command_line import as_text, shell_word
from vidlab.errors import UserError

# Keys, or their last parts, that hold a path, or what a run is asked for by.
PATHS = frozenset({
    "path", "folder", "checkpoint", "ckpt_path", "run", "image", "last_image", "video", "videos", "reference",
    "data.cache", "cache_dir", "captions", "name", "uri", "tracking_uri",
})  # fmt: skip
# Keys that hold a choice of a group, and what Hydra calls it.
CHOICES = {"guidance.inner": "guidance@guidance.inner"}
NAMES = re.compile(r"[a-z][a-z0-9_]*(,[a-z][a-z0-9_]*)*")
KEY = re.compile(r"[+~]{0,2}[a-z_][\w@./:$-]*", re.ASCII | re.IGNORECASE)
QUOTED = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\""""
ITEM = rf"\s*(?:{QUOTED}|[^,\[\]]*?)\s*"
LIST = re.compile(rf"\[{ITEM}(?:,{ITEM})*\]", re.DOTALL)
ITEMS = re.compile(rf"\s*({QUOTED}|[^,\[\]]*?)\s*[,\]]", re.DOTALL)
SWEEP = re.compile(rf"\s*(?:{QUOTED})(?:\s*,\s*(?:{QUOTED}))+\s*", re.DOTALL)


def quote_text(argument: str, text_keys: tuple[str, ...] = (), sweep: bool = False) -> str:
    """An argument as Hydra must get it for what was typed to arrive; see the rules above.

    Args:
        argument: ``key=value`` or anything else, which stays.
        text_keys: keys whose values are prompts.
        sweep: whether the command is a sweep.

    Raises:
        UserError: it is not UTF-8.
    """
    key, equals, value = argument.partition("=")
    if not equals or not KEY.fullmatch(key):
        return argument
    check_utf8(argument)
    if key in CHOICES and NAMES.fullmatch(value):
        return f"{CHOICES[key]}={value}"
    bare = key.lstrip("+~")
    if bare in text_keys:
        return f"{key}={_prompt(value, sweep)}"
    last = bare.rpartition(".")[2]
    if last == "prompts" and LIST.fullmatch(value):
        return f"{key}={_list(value)}"
    parsed = _parsed(argument)
    if parsed is None:
        return f"{key}={_as_typed(value, sweep)}"
    if PATHS & {bare, last} and _is_changed(parsed, value):
        return f"{key}={as_text(value)}"
    return argument


def check_utf8(argument: str) -> None:
    """Refuse the bytes of a name that is no text.

    Raises:
        UserError: it is not UTF-8.
    """
    try:
        argument.encode()
    except UnicodeEncodeError:
        shown = argument.encode("utf-8", "backslashreplace").decode()
        raise UserError(f"{shown}: this is not UTF-8 text. Rename the file or folder, or link to it.") from None


def as_typed(argument: str) -> str:
    """How an argument that Hydra cannot parse must be typed in a shell for its value to be one text."""
    key, _, value = argument.partition("=")
    return shell_word(f"{key}={as_text(value)}")


def _prompt(value: str, sweep: bool) -> str:
    stripped = value.strip()
    if re.fullmatch(QUOTED, stripped, re.DOTALL) or (sweep and SWEEP.fullmatch(value)):
        return value
    if LIST.fullmatch(stripped):
        return _list(stripped)
    return as_text(value) if value else '""'


def _list(value: str) -> str:
    items = ITEMS.findall(value[1:])
    if items == [""]:
        return "[]"
    return f"[{','.join(item if re.fullmatch(QUOTED, item, re.DOTALL) else as_text(item) for item in items)}]"


def _as_typed(value: str, sweep: bool) -> str:
    """A value that is not of Hydra's grammar: text, unless another intention shows."""
    if LIST.fullmatch(value):
        return _list(value)
    if value.startswith(("=", "[", "{", "'", '"')) or "${" in value:
        return value
    return ",".join(map(as_text, value.split(","))) if sweep else as_text(value)


def _parsed(argument: str) -> Override | None:
    try:
        return OverridesParser.create().parse_override(argument)
    except HydraException:
        return None


def _is_changed(parsed: Override, typed: str) -> bool:
    """Whether Hydra reads a number, a truth value or a trimmed text where a path was typed."""
    value: Any = parsed.value()
    return isinstance(value, bool | int | float) or (isinstance(value, str) and value == typed.strip() != typed)
