"""The plans of a sweep as one table."""

import json
from collections.abc import Mapping
from pathlib import Path

FILE = "plan.json"
COLUMNS = ("trained", "frozen", "tokens/step", "FLOPs/step", "peak", "weights", "memory", "checkpoint", "steps", "time")


def write_row(folder: Path, cells: Mapping[str, str]) -> None:
    """Leave the cells where the end of a sweep finds them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE).write_text(json.dumps(cells))


def table(folder: Path) -> str:
    """The plans of a sweep: the settings in which its jobs differ and all columns; empty for none."""
    files = sorted(folder.glob(f"*/{FILE}"), key=lambda file: (len(file.parent.name), file.parent.name))
    rows = [json.loads(file.read_text("utf-8")) for file in files]
    if not rows:
        return ""
    keys = [key for key in dict.fromkeys(key for one in rows for key in one) if key not in COLUMNS]
    shown = [*(key for key in keys if len({one.get(key) for one in rows}) > 1), *COLUMNS]
    lines = [shown, *([one.get(name, "-") for name in shown] for one in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    aligned = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    notes = ["(!) does not fit"] if any("(!)" in line for line in aligned) else []
    return "\n".join([*aligned, *notes])
