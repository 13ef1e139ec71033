"""How far the losses of two records are apart.

    python tests/golden/compare_records.py BEFORE AFTER [LIMIT]

prints how many runs differ and the largest relative differences, and fails beyond LIMIT, or where the order of the data
changed. Records are files that golden_runs.py wrote on one machine, or two versions of losses.json.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

LIMIT = 1e-6  # of a change that only sums float32 numbers in another order


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, float]:
    """The largest relative difference of a loss in each run that differs."""
    return {
        name: largest
        for name, losses in before["losses"].items()
        if (largest := _largest(losses, after["losses"][name]))
    }


def _largest(before: Sequence[float], after: Sequence[float]) -> float:
    return max(abs(a - b) / max(abs(a), abs(b), 1e-12) for a, b in zip(before, after, strict=True))


def main() -> int:
    """Compare the two named files."""
    before, after = (json.loads(Path(name).read_text()) for name in sys.argv[1:3])
    limit = float(sys.argv[3]) if len(sys.argv) > 3 else LIMIT
    found = differences(before, after)
    print(f"{len(found)} of {len(before['losses'])} runs differ; the largest relative differences of a loss:")
    for name, value in sorted(found.items(), key=lambda item: -item[1])[:20]:
        print(f"  {value:.1e}  {name}")
    if before["orders"] != after["orders"]:
        print("the order of the data is another one")
    return int(before["orders"] != after["orders"] or any(value > limit for value in found.values()))


if __name__ == "__main__":
    sys.exit(main())
