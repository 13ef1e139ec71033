"""Names, values and parameters as MLflow takes them."""

import re
from collections.abc import Mapping
from typing import Any

from vidlab.redaction import redact

MAX_KEY, MAX_PARAM, MAX_TAG = 250, 6000, 8000
MAX_PARAMS = 100  # of one log_batch call, tags too


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


def legal_tags(tags: Mapping[str, Any]) -> dict[str, str]:
    """Tags by legal names, as texts without passwords."""
    return {legal_name(key): redact(str(value))[:MAX_TAG] for key, value in tags.items()}


def store_params(client: Any, run_id: str, flat: Mapping[str, str]) -> dict[str, str]:
    """Store the parameters that an MLflow run does not have; returns tags for those that it has with another value."""
    from mlflow.entities import Param

    known = client.get_run(run_id).data.params
    new = [Param(key, value) for key, value in flat.items() if key not in known]
    for start in range(0, len(new), MAX_PARAMS):
        client.log_batch(run_id, params=new[start : start + MAX_PARAMS])
    return {f"resumed.{key}": value for key, value in flat.items() if known.get(key, value) != value}
