"""A LightningModule with one optimizer, whose losses are means over all batches and ranks of an optimizer step."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from vidlab.clip import ClipBatch
from vidlab.diffusion.objective import ObjectiveLoss
from vidlab.training.module import ClipModule
from vidlab.training.optimization.optimizers import OptimizerFactory, trainable_parameters
from vidlab.training.step_interval import steps_taken
from vidlab.training.step_means import StepMeans, scale_gradients


class SingleOptimizerModule(ClipModule):
    """Trains everything with one optimizer and one schedule.

    A subclass computes the loss of a batch and hands it to ``finish_batch``.

    Args:
        optimizer: builds the optimizer.
        lr_schedule: gives the learning-rate factor by step.
    """

    def __init__(self, optimizer: OptimizerFactory, lr_schedule: Any) -> None:
        super().__init__()
        self.optimizer_factory, self.lr_schedule = optimizer, lr_schedule
        self._base_lrs = []
        self._step_means: StepMeans | None = None

    @override
    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer_factory.build(self)
        self._base_lrs = [[group["lr"] for group in optimizer.param_groups]]
        # a plain function: LambdaLR does not store it, so a resumed run follows the schedule of its own length
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.rate_at(step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    @override
    def on_train_start(self) -> None:
        self.use_this_schedule([self.lr_schedulers()])
        several = self.trainer.accumulate_grad_batches * self.trainer.world_size > 1
        self._step_means = StepMeans() if several else None

    @override
    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        # follows the steps taken: a discarded step leaves the schedule where it is
        if scheduler.last_epoch < steps_taken(self.trainer):
            super().lr_scheduler_step(scheduler, metric)

    @override
    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        # to ``optimizer.clip_norm``, after callbacks have treated the gradients
        self.log("train/grad_norm", self.optimizer_factory.clip(self))

    def finish_batch(
        self, batch: ClipBatch, terms: Mapping[str, Float[Tensor, ""]], objective: ObjectiveLoss, size: int
    ) -> Float[Tensor, ""]:
        """Count a batch, and log its terms: at once, or as means over the step once its last batch has been seen.

        Args:
            batch: what was trained on.
            terms: by metric; ``train/loss`` is minimized.
            objective: of whose elements some do not count.
            size: all its elements, counted alike on every rank.

        Returns:
            What to take the gradient of: the loss, times the batch's share of the step.
        """
        loss = terms["train/loss"]
        if self._step_means is None:
            self._log_step(terms)
        else:
            share = self._step_means.share(objective.counted.sum(), size)
            self._step_means.add(terms, share)
            loss = loss * share
        self.count(batch)
        return loss

    @override
    def on_after_backward(self) -> None:
        # after the last batch of a step: what its gradient lacks to that of the mean over all batches and ranks
        if self._step_means is None or self.trainer.fit_loop.epoch_loop._should_accumulate():
            return
        strategy = self.trainer.strategy
        mean = self._step_means.close(lambda sums: strategy.reduce(sums, reduce_op="sum"), self.trainer.world_size)
        scale_gradients(trainable_parameters(self), mean.factor)
        self._log_step(mean.values)

    def _log_step(self, values: Mapping[str, Tensor]) -> None:
        """Log means over all clips of an optimizer step."""
        for name, value in values.items():
            self.log(name, value.detach(), batch_size=1)
