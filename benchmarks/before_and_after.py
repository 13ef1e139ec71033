"""Blocks under every token layout in another checkout and in this one, in turn, so that both meet the same machine.

Two processes hold the blocks of ``attention_layouts.py``, each of its own checkout. Each round asks both, in random
order, for one forward and backward pass of each case, in seconds of processor time. Recorded is the median ratio of
this checkout to the other over rounds, with a 95 % interval (bootstrap).

    git worktree add ../before REVISION
    python benchmarks/before_and_after.py ../before [--minutes 8] [--tokens 1024 4096] [--dtypes float32 bfloat16]
"""

import argparse
import itertools
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

LAYOUTS = ("full3d", "2p1d", "skip_window_k4", "skiparse_k2", "skiparse_k4", "skiparse_k8")
HERE = Path(__file__).resolve().parents[1]
Case = tuple[str, ...]


def worker(checkout: str) -> None:
    """Answer each line "layout tokens dtype" with the seconds of a pass."""
    sys.path[:0] = [f"{checkout}/src", f"{checkout}/benchmarks"]
    import torch

    import attention_layouts as blocks
    import vidlab

    for module in (blocks, vidlab):
        assert str(module.__file__).startswith(checkout), module
    torch.set_num_threads(1)
    kept = {}

    def prepared(layout: str, tokens: str, dtype: str) -> object:
        found = []

        class Keep(blocks.Case):  # type: ignore[misc, name-defined]
            def seconds(self, work: object) -> float:
                found.append(work)
                return 0.0

        blocks.blocks_seconds(Keep(int(tokens), getattr(torch, dtype), "cpu", 1), blocks.LAYOUTS[layout])
        return found[0]

    for line in sys.stdin:
        case = tuple(line.split())
        if case not in kept:
            kept[case] = prepared(*case)
            kept[case]().sum().backward()  # type: ignore[operator]
        start = time.process_time()
        kept[case]().sum().backward()  # type: ignore[operator]
        print(time.process_time() - start, flush=True)


class Side:
    """A checkout that answers."""

    def __init__(self, checkout: Path) -> None:
        # its blocks are imported from its own folders alone
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        command = [sys.executable, __file__, "--worker", str(checkout.resolve())]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def seconds(self, case: Case) -> float:
        """Of one pass."""
        assert self._process.stdin is not None and self._process.stdout is not None
        print(*case, file=self._process.stdin, flush=True)
        return float(self._process.stdout.readline())

    def end(self) -> None:
        """Let it go."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def interval(ratios: Sequence[float], draws: int = 2000) -> tuple[float, float, float]:
    """The median and its 95 % interval."""
    source = random.Random(0)
    medians = sorted(statistics.median(source.choices(ratios, k=len(ratios))) for _ in range(draws))
    return statistics.median(ratios), medians[draws // 40], medians[-draws // 40 - 1]


def row(case: Case, pairs: Sequence[tuple[float, float]]) -> dict[str, str]:
    """The times of a case before and after."""
    middle, low, high = interval([after / before for before, after in pairs])
    before, after = (f"{statistics.median(times) * 1e3:.1f}" for times in zip(*pairs, strict=True))
    named = dict(zip(("layout", "tokens", "dtype"), case, strict=True))
    times = {"pairs": str(len(pairs)), "before_ms": before, "after_ms": after}
    return {**named, **times, "ratio": f"{middle:.4f}", "low": f"{low:.4f}", "high": f"{high:.4f}"}


def main() -> None:
    """Compare two checkouts and record the rows."""
    from record import record  # not in workers, where it would bring this checkout's vidlab

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="the other checkout")
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--tokens", nargs="+", default=["1024"])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    settings = parser.parse_args()
    revision = subprocess.run(
        ["git", "-C", str(settings.before), "rev-parse", "--short=10", "HEAD"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    sides = [Side(settings.before), Side(HERE)]
    found: dict[Case, list[tuple[float, float]]] = {}
    for case in itertools.product(LAYOUTS, settings.tokens, settings.dtypes):
        found[case] = []
        for side in sides:
            side.seconds(case)
    end = time.monotonic() + 60 * settings.minutes
    while time.monotonic() < end or not all(found.values()):
        for case, pairs in found.items():
            times = {side: side.seconds(case) for side in random.sample(sides, 2)}
            pairs.append((times[sides[0]], times[sides[1]]))
    for side in sides:
        side.end()
    rows = [row(case, pairs) for case, pairs in found.items()]
    rows.append(row(("all", "all", "all"), [pair for pairs in found.values() for pair in pairs]))
    for one in rows:
        print(*(f"{key} {value}" for key, value in one.items()), sep="  ")
    print(record("before_and_after", [{"before": revision, **one} for one in rows]))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(sys.argv[2])
    else:
        main()
