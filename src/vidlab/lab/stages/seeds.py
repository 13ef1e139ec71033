"""Stages compared with others of their graph over seeds, such as the last of a graph with a training from nothing."""

from collections.abc import Mapping, Sequence
from typing import Any

from vidlab.errors import UserError
from vidlab.files import write_json
from vidlab.lab.stages.report import rows_of
from vidlab.lab.stages.running import StageRunner
from vidlab.metrics.statistics.significance import paired_test

KEY, FILE = "seeds", "comparison.json"


def split_seeds(arguments: Sequence[str]) -> tuple[list[int], list[str]]:
    """The seeds of ``seeds=0,1``, and the other words.

    Raises:
        UserError: something that is no seed, or one twice.
    """
    given = [word.partition("=")[2] for word in arguments if word.startswith(f"{KEY}=")]
    rest = [word for word in arguments if not word.startswith(f"{KEY}=")]
    if not given:
        return [], rest
    names = given[-1].split(",")
    if not all(name.isdigit() for name in names) or len(set(map(int, names))) < len(names):
        raise UserError(f"{KEY}={given[-1]}: write different whole numbers, such as {KEY}=0,1.")
    return [int(name) for name in names], rest


def compare_seeds(runners: Mapping[int, StageRunner]) -> list[dict[str, Any]]:
    """For each pair of ``compare`` and each score the difference over seeds with its 95 % interval; written as a file.

    A pair or a score that fewer than two seeds have is left out.
    """
    scores = {seed: {row["stage"]: row["scores"] for row in rows_of(one)} for seed, one in runners.items()}
    first = next(iter(runners.values()))
    found = []
    for stage, baseline in first.graph.compare.items():
        for metric in dict.fromkeys(name for one in scores.values() for name in one[stage]):
            values = [
                {seed: one[name][metric] for seed, one in scores.items() if metric in one[name]}
                for name in (stage, baseline)
            ]
            if len(values[0].keys() & values[1].keys()) < 2:
                continue
            test = paired_test(values[0], values[1])
            interval = [test.interval.low, test.interval.high]
            found.append(
                {"stage": stage, "baseline": baseline, "metric": metric, "seeds": list(test.seeds[0]),
                 "difference": test.difference, "interval": interval, "p_value": test.p_value}
            )  # fmt: skip
    write_json(first.folder / FILE, found)
    return found


def in_words(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line for each row; losses are better when they are lower."""
    lines = []
    for row in rows:
        low, high = row["interval"]
        verdict = "cannot be told apart" if low <= 0 <= high else "lower" if high < 0 else "higher"
        lines.append(
            f"  {row['metric']}: {row['stage']} minus {row['baseline']} {row['difference']:+.4f} "
            f"[{low:+.4f}, {high:+.4f}], 95 % over seeds {', '.join(map(str, row['seeds']))}: {verdict}"
        )
    return "\n".join(lines) or "  nothing to compare: two seeds with both stages trained are needed"
