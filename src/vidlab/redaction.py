"""Passwords and tokens of addresses, taken out of whatever is written or shown."""

import re
from typing import Any

MASK = "***"

# Passwords may hold any sign: up to the last @ before white space or the next address, rather too much than too little.
_PASSWORD = re.compile(r"(\b[\w+.-]+://[^\s/?#@:]*:)(?:(?!://)\S)*@")
_TOKEN = re.compile(r"(\bhttps?://)[^\s/?#@:]+@", re.IGNORECASE)
_NAMES = r"[\w.-]*(?:token|passw|pwd|secret|signature|credential|api_?key)[\w.-]*|sig|key|auth|pass"
_SETTING = re.compile(rf"([?&;](?:{_NAMES})=)[^&;#\s'\"]+", re.IGNORECASE)
_QUOTED_SETTING = re.compile(r"((?:passw\w*|pwd|\w*token|\w*secret)%3D)(?:(?!%3B)[^&#\s'\"])+", re.IGNORECASE)


def redact(text: str) -> str:
    """``text`` with ``***`` for the passwords and tokens of the addresses in it.

    ``http://user:password@host`` becomes ``http://user:***@host``, ``...?token=abc`` becomes ``...?token=***``, and
    what has been redacted stays as it is.
    """
    if "://" not in text:
        return text
    text = _PASSWORD.sub(rf"\1{MASK}@", text)
    text = _TOKEN.sub(rf"\1{MASK}@", text)
    text = _SETTING.sub(rf"\1{MASK}", text)
    return _QUOTED_SETTING.sub(rf"\1{MASK}", text)


def redact_tree(tree: Any) -> Any:
    """``redact`` for every text in nested dicts and lists, keys excepted."""
    if isinstance(tree, dict):
        return {key: redact_tree(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [redact_tree(value) for value in tree]
    return redact(tree) if isinstance(tree, str) else tree
