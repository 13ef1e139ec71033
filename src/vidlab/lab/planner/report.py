"""A plan in words, and as a row of a table."""

from collections.abc import Sequence

from vidlab.callbacks.forecast import duration
from vidlab.lab.planner.plan import ASSUMED_USE, RUNNING, TrainingPlan
from vidlab.lab.planner.table import COLUMNS
from vidlab.lab.runs.opening import in_words


def size(number: float) -> str:
    """Bytes in decimal units."""
    return f"{in_words(number)}B"


def text_of(plan: TrainingPlan) -> str:
    """All of a plan, a line for each number, with how it was found."""
    memory, largest = plan.memory, max(plan.buckets, key=lambda one: one.tokens)
    where = "main memory" if plan.device == "cpu" else "the GPU"
    frames, height, width = largest.shape
    sent = (
        "(n - 1) / n of the gradients, and twice of the weights" if plan.sharded else "2 (n - 1) / n of the gradients"
    )
    lines = [
        f"parameters          {in_words(plan.trained)} trained, {in_words(plan.frozen)} frozen",
        f"a step              {plan.tokens_per_step:,.0f} tokens, {in_words(plan.flops_per_step)}FLOPs on all devices",
        f"largest batch       {largest.clips} clips of {frames} x {height} x {width}",
        f"weights             {size(memory.weights)}, and their average {size(memory.average)}",
        f"gradients           {size(memory.gradients)}",
        f"optimizer           {size(memory.optimizer)}",
        f"activations         {size(memory.activations)}",
        *([f"offloaded           {size(memory.offloaded)} of activations in main memory"] if memory.offloaded else []),
        f"peak                {size(memory.peak)} above the process before the first batch",
        f"memory              {size(plan.needed)} on each device, {size(RUNNING[plan.device])} of them before any "
        f"model; {where} has {size(plan.available)}",
        f"between devices     {size(plan.exchanged)} sent by each in a step, {sent}",
        f"checkpoint          {size(plan.checkpoint)}: trained weights, their average, optimizer",
        f"run                 {_run(plan)}",
    ]
    lines += [
        f"  {one.count} x {one.layout:<18}{size(one.sent)} sent by each in a step, of tokens that it shares"
        for one in plan.sharing
    ]
    lines += _buckets(plan)
    lines += [f"note                {note}" for note in plan.notes]
    return "\n".join([*lines, *warning(plan)])


def warning(plan: TrainingPlan) -> list[str]:
    """A line where a run will not fit; none where it will."""
    if plan.fits:
        return []
    return [
        f"WARNING: it needs {size(plan.needed)} and there are {size(plan.available)}. Lower data.batch_size and raise "
        "trainer.accumulate_grad_batches, set model.backbone.activation_checkpointing=true"
        f"{', activation_offload=true' if plan.device == 'cuda' else ''}, or lower model.scale."
    ]


def _run(plan: TrainingPlan) -> str:
    if plan.steps is None or plan.seconds is None:
        return "no number of steps is set"
    return (
        f"{plan.steps:,} steps, about {duration(plan.seconds)}: assumed to reach {100 * ASSUMED_USE:.0f} % of the "
        f"{in_words(plan.rate / ASSUMED_USE)}FLOP/s measured here of large matrix products"
    )


def _buckets(plan: TrainingPlan) -> list[str]:
    if len(plan.buckets) == 1:
        return []
    return [
        f"  {'x'.join(map(str, one.shape)):<16}{100 * one.share:5.1f} % of steps, {one.clips} clips, "
        f"{one.tokens:,} tokens, {in_words(one.flops)}FLOPs"
        for one in plan.buckets
    ]


def row(plan: TrainingPlan, overrides: Sequence[str]) -> dict[str, str]:
    """The cells of a plan by column, the settings of its job first."""
    settings = dict(word.lstrip("+").partition("=")[::2] for word in overrides)
    settings.pop("plan", None)
    cells = (
        in_words(plan.trained), in_words(plan.frozen), f"{plan.tokens_per_step:,.0f}", in_words(plan.flops_per_step),
        size(plan.memory.peak), size(plan.memory.weights), size(plan.needed) + ("" if plan.fits else " (!)"),
        size(plan.checkpoint), "-" if plan.steps is None else f"{plan.steps:,}",
        "-" if plan.seconds is None else duration(plan.seconds),
    )  # fmt: skip
    return settings | dict(zip(COLUMNS, cells, strict=True))
