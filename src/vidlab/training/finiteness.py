"""Whether a training has diverged, asked before a checkpoint takes the place of a good one."""

from collections.abc import Iterable, Sequence

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from vidlab.errors import UserError
from vidlab.parallel.shards import local


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether every value of every tensor is finite. Waits for the device once."""
    here = (local(tensor.detach()) for tensor in tensors)
    values = [tensor for tensor in here if tensor.is_floating_point() and tensor.numel()]
    if not values:
        return True
    # the largest magnitudes: sums of squares of finite values may be infinite
    largest = torch._foreach_norm(values, float("inf"))
    return bool(torch.stack([one.float().to(largest[0].device) for one in largest]).isfinite().all())


def refuse_if_diverged(trainer: Trainer, broken: Sequence[str], clips: str = "") -> None:
    """Raise on every process when something is broken on one of them; all must ask.

    Args:
        trainer: of the training.
        broken: what is not finite here, such as ``train/loss is nan``.
        clips: a sentence about the clips whose loss is not finite.

    Raises:
        UserError: the training has diverged.
    """
    if trainer.strategy.reduce_boolean_decision(not broken, all=True):
        return
    raise diverged(trainer, broken or ["something on another process is not finite"], clips)


def diverged(trainer: Trainer, broken: Sequence[str], clips: str = "") -> UserError:
    """The message; ``clips`` is a sentence about where it began."""
    rate = trainer.optimizers[0].param_groups[0]["initial_lr"]
    return UserError(
        f"{' and '.join(broken)} at step {trainer.global_step}: the training has diverged. Lower "
        f"optimizer.lr={rate:g}, set optimizer.clip_norm, or warm up longer (lr_schedule.warmup_steps). "
        f"Checkpoints of earlier steps are intact.{clips and f' {clips}'}"
    )
