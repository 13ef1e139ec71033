"""Dated CSV rows that name hardware and versions."""

import csv
import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vidlab.lab.runs.provenance import collect

RESULTS = Path(__file__).parent / "results"


def record(name: str, rows: list[Mapping[str, Any]], folder: Path = RESULTS) -> Path:
    """Append rows to ``<name>.csv`` of a folder with the date, the machine, the revision and the versions."""
    found = collect(source=Path(__file__).parent)
    where = {
        "date": datetime.date.today().isoformat(),
        "revision": (found.revision or "none")[:10] + ("+" if found.dirty else ""),
        "cpu": found.hardware.cpu,
        "cores": found.hardware.cores,
        "gpu": ", ".join(found.hardware.gpus) or "none",
        "torch": found.packages["torch"],
        "lightning": found.packages["lightning"],
    }
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.csv"
    full = [{**where, **row} for row in rows]
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(full[0]))
        if new:
            writer.writeheader()
        writer.writerows(full)
    return path
