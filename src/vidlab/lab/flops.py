"""How much a step of training computes, for the record of a run."""

from lightning.pytorch import LightningDataModule

from vidlab.callbacks.token_bucketing import check_buckets
from vidlab.data.module import ClipDataModule
from vidlab.data.samplers.plan import Plan
from vidlab.training.module import ClipModule


def flops_per_step(module: ClipModule, data: LightningDataModule, batch_size: int, world_size: int) -> float:
    """FLOPs of forward and backward of a batch on every rank; the mean over an epoch where shapes vary.

    Raises:
        UserError: a bucket that the model cannot take.
    """
    if not isinstance(data, ClipDataModule) or data.bucketing.max_tokens is None:
        return float(module.cost().training_flops * batch_size * world_size)
    planned = data.planned(world_size)
    check_buckets(planned, module)
    return plan_flops(planned.plan, module)


def plan_flops(plan: Plan, module: ClipModule) -> float:
    """Mean over the steps of a plan, all ranks together."""
    flops = 0.0
    for stats, fraction in zip(plan.stats, plan.step_fractions, strict=True):
        bucket, clips = stats.bucket, sum(size * count for size, count in stats.batches.items())
        each = module.cost((bucket.frames, bucket.height, bucket.width)).training_flops
        flops += fraction * each * clips * plan.world_size / max(1, stats.steps)
    return flops
