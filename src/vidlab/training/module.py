"""The base of the training modules: costs, schedules, and checkpoints without what is frozen."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, ClassVar, ParamSpec, Protocol, TypeVar, runtime_checkable

import torch
from lightning.pytorch import LightningModule
from torch import nn
from typing_extensions import override

from vidlab.autoencoders.base import Autoencoder
from vidlab.clip import ClipBatch, LatentShape
from vidlab.cost.flops import ModelCost
from vidlab.errors import UserError
from vidlab.parallel.exchange import Team, make_team
from vidlab.parallel.ranks import sequence_parallel_of
from vidlab.tensors import is_finite, refuse_non_finite, refuse_other_shapes
from vidlab.training.checkpoint_io import BESIDE
from vidlab.training.optimization.optimizer_state import refuse_other_state

P = ParamSpec("P")
R = TypeVar("R")


def stop_iteration_is_an_error(step: Callable[P, R]) -> Callable[P, R]:
    """A step in which ``StopIteration`` is an error; Lightning takes one for the end of the data, and says nothing.

    Raises:
        RuntimeError: a ``StopIteration`` was raised within it.
    """

    @wraps(step)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return step(*args, **kwargs)
        except StopIteration as error:
            raise RuntimeError(f"{step.__qualname__} raised StopIteration") from error

    return checked


@runtime_checkable
class SelfAveraged(Protocol):
    """A module that says which of its parameters are averaged, and how often they have changed."""

    def averaged(self) -> dict[str, nn.Parameter]:
        """Parameters by name."""
        ...

    def averaged_steps(self) -> int:
        """Optimizer steps that may have changed them."""
        ...


class ClipModule(LightningModule, ABC):
    """Trains on clips; the base of the two training modules.

    Attributes:
        results: the validation metrics that a summary shows.
        autoencoder: pixels to latents.
        clip_shape: (frames, height, width) of training clips in pixels.
        lr_schedule: gives the learning-rate factor by step.
    """

    results: ClassVar[tuple[str, ...]]
    autoencoder: Autoencoder
    clip_shape: tuple[int, int, int]
    lr_schedule: Any
    _base_lrs: list[list[float]]

    @abstractmethod
    def cost(self, clip_shape: tuple[int, int, int] | None = None) -> ModelCost:
        """Parameters, tokens and FLOPs for one clip of a training step, as they are planned before one has been seen.

        Args:
            clip_shape: (frames, height, width); None is the module's.
        """

    def step_cost(self, batch: ClipBatch) -> ModelCost:
        """The cost of one clip of the batch that was trained last, as it was computed."""
        return self.cost(batch.size)

    def cost_beside(self, batch: ClipBatch) -> Mapping[str, int]:
        """FLOPs of the batch that was trained last that are no work of what ``cost`` counts, by what computes them."""
        return {}

    @property
    def needs_parent(self) -> bool:
        """Whether what is trained stands beside frozen weights that ``init`` must bring."""
        return False

    def inherited(self) -> set[str]:
        """Names of parameters that a run may take from another: what is trained, and what stays as it was there."""
        return {name for name, parameter in self.named_parameters() if parameter.requires_grad}

    @abstractmethod
    def frozen_keys(self) -> set[str]:
        """Names of parameters and buffers that are rebuilt from the configuration."""

    @abstractmethod
    def tags(self) -> Mapping[str, str]:
        """What is trained, in words for a table of runs."""

    @abstractmethod
    def reader_of_pixels(self) -> str | None:
        """The setting that needs pixels at every training step, so that encoded clips will not do; None without one."""

    @property
    def patch(self) -> tuple[int, int, int]:
        """Latent frames, rows and columns to a token."""
        return (1, 1, 1)

    def token_count(self, latent: LatentShape) -> int:
        """Tokens of one clip: its latent positions."""
        return latent.frames * latent.height * latent.width

    def check_sharing(self, processes: int) -> None:
        """Refuse to share clips among processes, unless a subclass can.

        Raises:
            UserError: it cannot.
        """
        if processes > 1:
            raise UserError(
                f"trainer.sequence_parallel={processes}: {type(self).__name__} trains each clip on one process. Use "
                "trainer.sequence_parallel=1."
            )

    def share_sequences(self, team: Team) -> None:
        """Share each training clip with the processes of a team, from now on."""
        self.check_sharing(team.size)

    @override
    def on_fit_start(self) -> None:
        processes = sequence_parallel_of(self.trainer)
        if processes > 1:
            self.share_sequences(make_team(processes))

    def rate_at(self, step: int) -> float:
        """The factor on the learning rate at a step of a run as long as this one is to be by now."""
        factor: float = self.lr_schedule.factor(self.trainer.max_steps)(step)
        return factor

    def follow_length(self) -> None:
        """Take the rate that belongs to the length of the run, which has changed since the schedule's last step."""
        found: Any = self.lr_schedulers()
        for scheduler in found if isinstance(found, list) else [found]:
            for group, factor in zip(scheduler.optimizer.param_groups, scheduler.lr_lambdas, strict=True):
                group["lr"] = group["initial_lr"] * factor(scheduler.last_epoch)

    def use_this_schedule(self, schedulers: list[Any]) -> None:
        """Take this run's rates and schedule from the first step on: a resumed optimizer holds those stored with it.

        Raises:
            UserError: it holds a state of other parameters too.
        """
        for scheduler, rates in zip(schedulers, self._base_lrs, strict=True):
            refuse_other_state(scheduler.optimizer)
            scheduler.base_lrs = list(rates)
            groups = zip(scheduler.optimizer.param_groups, rates, scheduler.lr_lambdas, strict=True)
            for group, base, factor in groups:
                group["initial_lr"], group["lr"] = base, base * factor(scheduler.last_epoch)

    def count(self, batch: ClipBatch) -> None:
        """The DataModule owns the position in the data; a batch counts once it has been used."""
        datamodule = self.trainer.datamodule  # type: ignore[attr-defined]
        if datamodule is not None:
            datamodule.batches_consumed = batch.number + 1

    def transfer_batch_to_device(self, batch: ClipBatch, device: torch.device, dataloader_index: int) -> ClipBatch:
        """Batches know how to move."""
        return batch.to(device)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave frozen parts out: they are rebuilt from the configuration."""
        frozen = self.frozen_keys()
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k not in frozen}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the frozen parts of this model in, so that loading stays strict.

        Raises:
            UserError: the checkpoint is of another model, or holds weights that are not finite.
        """
        own, frozen = self.state_dict(), self.frozen_keys()
        checkpoint["state_dict"] |= {key: own[key] for key in frozen}
        here = {name: tuple(value.shape) for name, value in own.items()}
        there = {name: tuple(value.shape) for name, value in checkpoint["state_dict"].items()}
        differing = [name for name in here | there if here.get(name) != there.get(name)]
        if differing:
            name = differing[0]
            raise UserError(
                f"The checkpoint is of another model: {len(differing)} parameters differ, the first is {name}, "
                f"{there.get(name, 'absent')} in the checkpoint and {here.get(name, 'absent')} here. Use the settings "
                "it was trained with; they are in config.yaml of its run folder."
            )
        average = checkpoint.get("ema") or {}
        refuse_other_shapes(average, dict(self.named_parameters()), "The checkpoint's ema", BESIDE)
        trained = {k: v for k, v in checkpoint["state_dict"].items() if k not in frozen and is_finite(own[k])}
        refuse_non_finite(trained, "The checkpoint", BESIDE)
        refuse_non_finite(average, "The checkpoint's ema", BESIDE)
