"""Names and values as MLflow takes them."""

import re
from collections.abc import Mapping
from typing import Any

from vidlab.redaction import redact

MAX_KEY, MAX_PARAM = 250, 6000


def legal_name(key: str) -> str:
    """A metric, parameter or image name MLflow accepts: other characters (such as ``@``) become ``_``."""
    name = re.sub(r"[^a-zA-Z0-9_\-. /]", "_", key).strip("/")
    return re.sub(r"\.{2,}|//+", "_", name)[:MAX_KEY] or "_"


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested mappings and lists to dotted keys, ``{"model.width": "64", "callbacks.0": "ema"}``."""
    flat: dict[str, str] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, (list, tuple)):
            value = {str(i): item for i, item in enumerate(value)} or "[]"
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{name}.")
        else:
            flat[legal_name(name)] = redact(str(value))[:MAX_PARAM]
    return flat
