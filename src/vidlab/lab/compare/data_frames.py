"""A comparison as pandas tables, for notebooks."""

from collections.abc import Sequence

import pandas as pd

from vidlab.lab.compare.comparison import Comparison, ConfigurationRow
from vidlab.lab.compare.measures import Measure
from vidlab.lab.compare.reading.runs import COSTS


def results(comparison: Comparison) -> pd.DataFrame:
    """A row for each deciding metric and configuration, in the order of the page.

    Columns: seeds, mean, low and high (95 %, other seeds), clips_low and clips_high (95 %, other clips), p (against the
    first configuration, after Holm's correction), smallest_effect, verdict, flops, tokens, seconds, parameters. What
    could not be told is NaN.
    """
    rows = [_result(comparison, measure, row) for measure in comparison.main for row in comparison.rows]
    return pd.DataFrame(rows).set_index(["metric", "configuration"])


def _result(comparison: Comparison, measure: Measure, row: ConfigurationRow) -> dict[str, object]:
    mean, clips = row.means.get(measure.key), row.over_clips.get(measure.key)
    verdict = comparison.verdicts.get((measure.key, row.name))
    seeds = mean.interval if mean else None
    return {
        "metric": measure.label,
        "configuration": row.name,
        "seeds": len(row.values(measure.key)),
        "mean": mean.value if mean else None,
        "low": seeds.low if seeds else None,
        "high": seeds.high if seeds else None,
        "clips_low": clips.low if clips else None,
        "clips_high": clips.high if clips else None,
        "p": verdict.adjusted if verdict else None,
        "smallest_effect": verdict.unseen if verdict else None,
        "verdict": verdict.text if verdict else "",
        **{kind: row.costs.get(kind) for kind in COSTS},
        "parameters": row.parameters,
    }


def curves(comparison: Comparison, metrics: Sequence[str]) -> pd.DataFrame:
    """Metrics over training in long form: configuration, seed, metric, step, flops, tokens, seconds, value.

    Args:
        comparison: of the runs.
        metrics: their labels, such as ``val/loss``, or a label with ``/*`` for all below it.
    """
    measures = [
        one for one in (*comparison.main, *comparison.others)
        if one.label in metrics or any(end == "*" and one.label.startswith(f"{start}/") for start, _, end in
                                       (metric.rpartition("/") for metric in metrics))
    ]  # fmt: skip
    parts = [
        pd.DataFrame(
            {
                "configuration": row.name,
                "seed": seed,
                "metric": measure.label,
                "step": curve.steps,
                **{kind: run.cost_at(kind, curve.steps) for kind in COSTS},
                "value": curve.values,
            }
        )
        for measure in measures
        for row in comparison.rows
        for seed, run in row.runs.items()
        if (curve := run.curves.get(measure.key)) is not None
    ]
    columns = ["configuration", "seed", "metric", "step", *COSTS, "value"]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)
