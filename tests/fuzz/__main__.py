"""``python tests/fuzz``: attack all readers for a while, or repeat one case."""

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))

from fuzz.campaign import PATIENCE, Tally, Watched, run_cases
from fuzz.targets import TARGETS

STRETCH = 50


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python tests/fuzz", description=__doc__)
    parser.add_argument("--target", action="append", help="only these; part of a name takes all that have it")
    parser.add_argument("--case", type=int, help="repeat one case")
    parser.add_argument("--keep", help="of that case only these steps: 0,2")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--cases", type=int, help="cases per target; otherwise as many as the time allows")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--patience", type=float, default=PATIENCE, help="seconds that a case may take")
    return parser.parse_args()


def main() -> int:
    given = arguments()
    names = [name for name in TARGETS if not given.target or any(part in name for part in given.target)]
    if given.case is not None and given.target and given.target[0] in TARGETS:
        names = [given.target[0]]
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        worker, tally = Watched(Path(folder), given.patience), Tally()
        try:
            if given.case is not None:
                keep = [int(step) for step in given.keep.split(",")] if given.keep else None
                for name in names:
                    ((_, verdict),) = worker.run(name, [given.case], keep)
                    print(verdict.outcome, verdict.detail, *verdict.steps, verdict.trace, sep="\n")
                return 0
            attack(given, names, worker, tally)
        finally:
            worker.close()
            print(tally.table() if given.case is None else "")
            print(*(f"\n{failure.text()}" for failure in tally.failures.values()), sep="\n")
    return int(bool(tally.failures))


def attack(given: argparse.Namespace, names: list[str], worker: Watched, tally: Tally) -> None:
    """Stretches of cases of every target in turn, until the number or the time is reached."""
    end, first = time.monotonic() + 60 * given.minutes, given.first
    last = None if given.cases is None else given.first + given.cases
    while last is None or first < last:
        stop = first + STRETCH if last is None else min(first + STRETCH, last)
        for name in names:
            if time.monotonic() > end:
                return
            for failure in run_cases(worker, tally, name, range(first, stop)):
                print(f"{failure.text()}\n", file=sys.stderr)
        inputs, faults = sum(map(Counter.total, tally.counts.values())), len(tally.failures)
        print(f"cases {first} to {stop - 1}: {inputs} inputs so far, {faults} kinds of faults", file=sys.stderr)
        first = stop


if __name__ == "__main__":
    sys.exit(main())
