"""The report of ``vidlab plan``: buckets, clips, tokens and steps of the data that ``train.py`` would train on.

``vidlab plan [group=choice ...] [key=value ...] [world_size=N]`` takes the arguments of ``train.py``.
"""

import logging
import sys
from collections.abc import Callable, Iterable
from typing import Any

from vidlab.data.samplers.bucketed import Balance, BucketedPlan
from vidlab.data.samplers.buckets import Bucketing
from vidlab.data.samplers.clip_plan import BucketStats, InterleavedPlan, SingleBucketPlan
from vidlab.errors import UserError
from vidlab.lab.cli import hydra_main
from vidlab.lab.cli.programs import config_folder

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
    title = f"data={data.name} seed={data.seed} world_size={world_size}"
    if data.bucketing is None:
        return "\n".join([title, *unbucketed(data, world_size)])
    return "\n".join([title, *bucketed(data.planned(world_size))])


def world_size_of(cfg: Any) -> int:
    """``world_size`` where it is given, otherwise that of the trainer."""
    given = cfg.get("world_size")
    devices = cfg.get("trainer", {}).get("devices", 1)
    nodes = cfg.get("trainer", {}).get("num_nodes", 1)
    if given is None:
        return int(devices) * int(nodes) if str(devices).isdigit() and int(devices) else 1
    if not isinstance(given, int) or given < 1:
        raise UserError(f"world_size={given}: it must be a whole number of processes, 1 or more")
    return given


def unbucketed(data: Any, world_size: int) -> list[str]:
    """The report of data trained in one shape."""
    view, clips = data.view, len(data.data.train)
    total = data.data.total - len(data.corrupt)
    step = data.batch_size * world_size
    return [
        "data.bucketing.max_tokens is not set: every clip is trained in one shape",
        *table([BucketStats(_shape(view), clips, clips, data.batch_size, -(-clips // step))], lambda _: _volume(view)),
        f"training clips: {clips} of {total} in the index, {len(data.data.val)} held out; shorter ones are named above",
        f"steps per epoch: {clips / step:.2f} of {step} clips (epochs are joined, no clip is left over)",
        "tokens per step: equal between ranks and between steps; padding waste 0 %",
    ]


def _shape(view: Any) -> Any:
    from vidlab.data.samplers.buckets import Bucket

    return Bucket(view.frames, view.height, view.width)


def _volume(view: Any) -> int:
    return view.frames * view.height * view.width


def bucketed(planned: BucketedPlan) -> list[str]:
    """The report of bucketed data."""
    return [
        *rule(planned.bucketing),
        *table(planned.plan.shares, planned.bucketing.tokens),
        *missing(planned),
        *steps(planned),
    ]


def rule(bucketing: Bucketing) -> list[str]:
    """The numbers of the min-max rule."""
    least, most = bucketing.token_range()
    lines = [
        f"max_tokens={bucketing.max_tokens} stride={bucketing.stride}: {least} to {most} tokens in a frame (pixels; "
        f"{least / bucketing.stride**2:g} to {most / bucketing.stride**2:g} squares of {bucketing.stride})"
    ]
    for (height, width), needed in bucketing.unused_ratios().items():
        lines.append(f"  ratio {height}:{width} is not used: it needs data.bucketing.max_tokens={needed}")
    return lines


def table(shares: Iterable[BucketStats], tokens: Callable[[Any], int]) -> list[str]:
    """Rows of buckets, those with most clips first."""
    shares = sorted(shares, key=lambda share: -share.clips)
    rows: list[tuple[str, ...]] = [HEADER]
    for share in shares[:SHOWN]:
        each = tokens(share.bucket)
        facts = (share.clips, share.visits, share.batch_size, each, each * share.batch_size)
        rows.append(tuple(map(str, (share.bucket, *facts, share.steps, share.repeated, share.left_out))))
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    hidden = shares[SHOWN:]
    if hidden:
        lines.append(f"... and {len(hidden)} buckets more with {sum(share.clips for share in hidden)} clips")
    return lines


def missing(planned: BucketedPlan) -> list[str]:
    """Clips in no bucket and why, and clips that were moved."""
    dropped, left = planned.dropped, sum(share.left_out for share in planned.plan.shares)
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
    plan, balance = planned.plan, planned.balance
    lines = [f"steps per epoch: {plan.steps_per_epoch}"]
    if isinstance(plan, SingleBucketPlan):
        lines[0] += " (one bucket: epochs are joined, no clip is left over)"
    if isinstance(plan, InterleavedPlan):
        lines[0] += (
            f", one in {plan.every} of images (an epoch of images is {plan.images.steps_per_epoch} steps of them)"
        )
    elif planned.bucketing.image_every is not None:
        lines.append("  data.bucketing.image_every has no effect: there are not both images and videos")
    return [*lines, *tokens_of(balance, planned)]


def tokens_of(balance: Balance, planned: BucketedPlan) -> list[str]:
    """Tokens of a step, on one rank, and how much they differ."""
    least, most = min(balance.steps), max(balance.steps)
    return [
        f"padding waste: {100 * balance.repeated:.2f} % of tokens are of clips repeated to fill a step "
        f"(tail={planned.bucketing.tail})",
        f"tokens per batch: {least} to {most} on one rank; equal between ranks in every step",
        f"bound on the difference between two steps: {100 * balance.bound:.1f} %",
    ]
