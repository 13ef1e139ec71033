"""A LightningModule of two networks trained in turn, where every batch is a step, whichever network uses it."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from vidlab.clip import ClipBatch
from vidlab.training.autoencoder.gan_step import GANOptimizerStep
from vidlab.training.autoencoder.trainer_checks import check_accumulation_and_clipping
from vidlab.training.autoencoder.turns import GENERATOR, Turns
from vidlab.training.module import ClipModule
from vidlab.training.optimization.optimizers import OptimizerFactory


class AlternatingModule(ClipModule):
    """Takes optimizer steps by hand, as Lightning leaves them to modules with two optimizers.

    A subclass computes the loss of the network whose turn it is and hands it to ``finish_batch``.

    Args:
        turns: whose step is when.
        networks: the generator first, each with its gradients, clipping and optimizer steps.
        optimizers: builds the optimizer of each.
        lr_schedule: factor on all rates by step.
    """

    def __init__(
        self,
        turns: Turns,
        networks: Sequence[GANOptimizerStep],
        optimizers: Sequence[OptimizerFactory],
        lr_schedule: Any,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.turns, self.networks = turns, list(networks)
        self._factories, self.lr_schedule = list(optimizers), lr_schedule
        self._base_lrs = []
        self._keys: list[str] = []

    @override
    def configure_optimizers(self) -> Any:
        pairs = zip(self._factories, self.networks, strict=True)
        optimizers = [factory.build(one.network) for factory, one in pairs]
        self._base_lrs = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
        # a plain function: LambdaLR does not store it, so a resumed run follows the schedule of its own length
        return optimizers, [torch.optim.lr_scheduler.LambdaLR(o, lambda step: self.rate_at(step)) for o in optimizers]

    @override
    def setup(self, stage: str) -> None:
        check_accumulation_and_clipping(self.trainer)

    @override
    def on_train_start(self) -> None:
        for network in self.networks:
            network.restore_gradients()
        self.use_this_schedule(self._schedulers())

    def finish_batch(self, loss: Float[Tensor, ""], batch: ClipBatch) -> None:
        """Accumulate the gradients of a batch, take the optimizer step that is due, and count the batch."""
        step = self.trainer.global_step
        self.manual_backward(loss / self.turns.accumulate)
        self._keys += batch.keys
        if self.turns.completes(step):
            self._optimizer_step(self.turns.turn(step), step)
        for scheduler in self._schedulers():
            scheduler.step()
        # trainer.global_step is Lightning's count of manual optimizer steps
        progress = self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
        progress.increment_ready()
        progress.increment_completed()
        self.count(batch)

    def _optimizer_step(self, turn: int, step: int) -> None:
        """Past Lightning's wrapper, which would count it, because batches are counted."""
        optimizer, strategy = self.trainer.optimizers[turn], self.trainer.strategy
        found = self.networks[turn].step(optimizer, lambda o: strategy.optimizer_step(o, closure=_done), self._keys)
        self._keys = []
        prefix = "" if turn == GENERATOR else "discriminator_"
        self.log_terms({f"{prefix}{name}": torch.tensor(value) for name, value in found.items()}, step)

    def log_terms(self, values: Mapping[str, Tensor], step: int) -> None:
        """To callbacks, and to loggers at this step alone: Lightning would repeat them at the other network's steps.

        ``trainer.log_every_n_steps`` counts pairs of turns, so that an even number leaves neither network out.
        """
        found = {f"train/{name}": value.detach().float() for name, value in values.items()}
        self.log_dict(found, logger=False, batch_size=1)
        if step // (2 * self.turns.accumulate) % max(self.trainer.log_every_n_steps, 1) == 0:  # type: ignore[attr-defined]
            for logger in self.loggers:
                logger.log_metrics({name: float(value) for name, value in found.items()}, step=step)

    def averaged_steps(self) -> int:
        """The generator's steps."""
        return self.networks[GENERATOR].steps

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        unfinished = self.turns.unfinished(self.trainer.global_step)  # gradients that wait are kept too
        checkpoint["players"] = {network.name: network.state(unfinished) for network in self.networks}

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        for network in self.networks:
            network.restore(checkpoint["players"][network.name])

    def _schedulers(self) -> list[Any]:
        found: Any = self.lr_schedulers()
        return found if isinstance(found, list) else [found]


def _done() -> None:
    """Losses and gradients were computed before."""
