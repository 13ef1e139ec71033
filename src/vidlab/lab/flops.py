"""How much a step of training computes, for the record of a run."""

from collections.abc import Sequence

from lightning.pytorch import LightningDataModule

from vidlab.callbacks.token_bucketing import check_buckets
from vidlab.data.module import ClipDataModule
from vidlab.data.samplers.clip_plan import BucketStats, ClipPlan, InterleavedPlan
from vidlab.training.module import ClipModule


def flops_per_step(module: ClipModule, data: LightningDataModule, batch_size: int, world_size: int) -> float:
    """FLOPs of forward and backward of a batch on every rank; the mean over an epoch where shapes vary.

    Raises:
        UserError: a bucket that the model cannot take.
    """
    if not isinstance(data, ClipDataModule) or data.bucketing is None:
        return float(module.cost().training_flops * batch_size * world_size)
    planned = data.planned(world_size)
    check_buckets(planned, module)
    return plan_flops(planned.plan, module)


def plan_flops(plan: ClipPlan, module: ClipModule) -> float:
    """Mean over the steps of a plan, all ranks together."""
    if isinstance(plan, InterleavedPlan):
        images, videos = (mean_flops(part.shares, module, plan.world_size) for part in (plan.images, plan.videos))
        return (images + (plan.every - 1) * videos) / plan.every
    return mean_flops(plan.shares, module, plan.world_size)


def mean_flops(shares: Sequence[BucketStats], module: ClipModule, world_size: int) -> float:
    """Mean over the steps of an epoch of these buckets, all ranks together."""
    flops = 0
    for share in shares:
        bucket = share.bucket
        # epochs that are joined have no last step: each is as large as the others
        clips = share.steps * share.batch_size * world_size
        if share.tail_size and share.steps:
            clips += (share.tail_size - share.batch_size) * world_size
        flops += clips * module.cost((bucket.frames, bucket.height, bucket.width)).training_flops
    return flops / sum(share.steps for share in shares)
