"""The report of ``vidlab plan``: buckets, clips, tokens and steps of the data that ``train.py`` would train on.

``vidlab plan [group=choice ...] [key=value ...] [world_size=N]`` takes the arguments of ``train.py``.
"""

import logging
import sys
from collections.abc import Callable, Iterable
from typing import Any

from vidlab.data.samplers.assignment import Bucket
from vidlab.data.samplers.bucketed import Balance, BucketedPlan
from vidlab.data.samplers.plan import BucketStats
from vidlab.errors import UserError
from vidlab.lab.cli import hydra_main
from vidlab.lab.cli.programs import config_folder
from vidlab.parallel.ranks import teams

HEADER = ("bucket", "clips", "visits", "batch", "tokens/clip", "tokens/batch", "steps", "repeated", "left out")
SHOWN = 40  # buckets in the table, those with most clips


def main() -> None:
    """Compose what ``train.py`` composes and print the plan of its data."""

    def plan(cfg: Any) -> None:
        """Print the plan of the data: buckets, clips, tokens and steps."""
        logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
        print(text_of(cfg))

    # nothing is trained, so there is no run folder and no log file
    quiet = ["hydra.run.dir=.", "hydra.output_subdir=null", "hydra/job_logging=stdout"]
    given = [f"+{word}" if word.startswith("world_size=") else word for word in sys.argv[1:]]
    sys.argv[1:] = [*given, *(quiet if not any(word in ("-h", "--help") for word in given) else [])]
    hydra_main.main(config_path=str(config_folder()), config_name="train")(plan)()


def text_of(cfg: Any) -> str:
    """The report of a composed configuration.

    Args:
        cfg: what ``train.py`` composes.

    Raises:
        UserError: a world size that is none, or data that cannot be planned.
    """
    world_size = world_size_of(cfg)
    data = hydra_main.instantiate(cfg.data, "data")
    planned, clips = data.planned(world_size), data.data
    readable = clips.total - len(data.corrupt)
    lines = [
        f"data={data.name} seed={data.seed} world_size={world_size}",
        f"training clips: {len(clips.train)} of {readable} in the index, {len(clips.val)} held out",
    ]
    return "\n".join([*lines, *report(planned)])


def world_size_of(cfg: Any) -> int:
    """``world_size`` where it is given, otherwise that of the trainer."""
    given = cfg.get("world_size")
    devices = cfg.get("trainer", {}).get("devices", 1)
    nodes = cfg.get("trainer", {}).get("num_nodes", 1)
    if given is None:
        if not str(devices).isdigit() or not int(devices):
            return 1
        return teams(int(devices) * int(nodes), cfg.get("trainer", {}).get("sequence_parallel", 1))
    if not isinstance(given, int) or given < 1:
        raise UserError(f"world_size={given}: it must be a whole number of processes, 1 or more")
    return given


def report(planned: BucketedPlan) -> list[str]:
    """What there is to say of a plan."""
    rule, plan = planned.bucketing, planned.plan
    return [*rule.summary, *table(plan.stats, rule.tokens), *missing(planned), *steps(planned)]


def table(buckets: Iterable[BucketStats], tokens: Callable[[Bucket], int]) -> list[str]:
    """Rows of buckets, those with most clips first."""
    buckets = sorted(buckets, key=lambda stats: -stats.clips)
    rows: list[tuple[str, ...]] = [HEADER]
    for stats in buckets[:SHOWN]:
        each = tokens(stats.bucket)
        facts = (stats.clips, stats.visits, stats.batch_size, each, each * stats.batch_size)
        rows.append(tuple(map(str, (stats.bucket, *facts, stats.steps, stats.repeated, stats.left_out))))
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    hidden = buckets[SHOWN:]
    if hidden:
        lines.append(f"... and {len(hidden)} buckets more with {sum(stats.clips for stats in hidden)} clips")
    return lines


def missing(planned: BucketedPlan) -> list[str]:
    """Clips in no bucket and why, and clips that were moved."""
    dropped, left = planned.dropped, sum(stats.left_out for stats in planned.plan.stats)
    lines = [f"dropped: {clips} clips, {reason}" for reason, clips in dropped.items()]
    lines = lines or ["dropped: none"]
    if left:
        lines.append(f"left out of each epoch: {left} clips that fill no step, others each time (tail=drop)")
    moves = planned.assignment.moves
    for move in moves[:SHOWN]:
        lines.append(f"moved: {move.clips} clips from {move.origin} to {move.target}, too few to fill a step")
    if moves[SHOWN:]:
        lines.append(f"... and {len(moves[SHOWN:])} moves more")
    return lines


def steps(planned: BucketedPlan) -> list[str]:
    """Steps of an epoch and their tokens."""
    plan = planned.plan
    lines = [f"steps per epoch: {plan.steps_per_epoch}" + (f" ({plan.note})" if plan.note else "")]
    kinds = {stats.bucket.frames == 1 for stats in plan.stats}
    if planned.bucketing.image_every is not None and len(kinds) == 1:
        lines.append("  data.bucketing.image_every has no effect: there are not both images and videos")
    return [*lines, *tokens_of(planned.balance, planned), *seconds_of(planned)]


def seconds_of(planned: BucketedPlan) -> list[str]:
    """How long full batches take, where that was measured."""
    times = planned.bucketing.times
    if times is None:
        return []
    found = [times.of(stats.bucket).seconds(stats.batch_size) for stats in planned.plan.stats]
    return [f"seconds per full batch, by data.bucketing.step_times: {min(found):.3g} to {max(found):.3g}"]


def tokens_of(balance: Balance, planned: BucketedPlan) -> list[str]:
    """Tokens of a step, on one rank, and how much they differ."""
    least, most = min(balance.steps), max(balance.steps)
    return [
        f"padding waste: {100 * balance.repeated:.2f} % of tokens are of clips repeated to fill a step "
        f"(tail={planned.bucketing.tail})",
        f"tokens per batch: {least} to {most} on one rank; equal between ranks in every step",
        f"bound on the difference between two steps: {100 * balance.bound:.1f} %",
    ]
