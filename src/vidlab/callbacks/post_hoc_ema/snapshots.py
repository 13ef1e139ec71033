"""Post-hoc EMA in training: keeps power-function averages of the weights and stores snapshots of them."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from vidlab.callbacks.ema import averaged_parameters, averaged_steps, precise
from vidlab.callbacks.post_hoc_ema.profiles import Snapshot, decay_at, exponent_of
from vidlab.errors import UserError
from vidlab.parallel.shards import local, sharded_like, whole
from vidlab.tensors import read_tensors, save_tensors

NAME = re.compile(r"step-(\d+)-length-(\d+\.\d+)\.safetensors")


class PostHocEMA(Callback):
    """Averages of two lengths beside the trained weights; ``python -m vidlab.lab.ema`` makes others of them.

    What validation, checkpoints and generation use is still the average of ``callbacks.ema``.

    Args:
        folder: of the snapshots.
        lengths: sigma_rel of the averages that are kept; from 0.05 and 0.10 those from 0.03 to 0.20 can be had well.
        every_n_steps: how often they are stored, in optimizer steps, and at the end; a snapshot is as large as the
            weights in float32, for each length.

    Raises:
        UserError: fewer than two lengths, one that cannot be, or no interval.
    """

    def __init__(self, folder: str, lengths: Sequence[float] = (0.05, 0.10), every_n_steps: int = 100) -> None:
        if len(set(lengths)) < 2:
            raise UserError(f"callbacks.post_hoc_ema.lengths={list(lengths)}: other lengths are made from two or more.")
        if every_n_steps < 1:
            raise UserError(f"callbacks.post_hoc_ema.every_n_steps={every_n_steps} must be at least 1.")
        self.folder, self.every_n_steps = Path(folder), every_n_steps
        self.exponents = {float(one): exponent_of(one, "callbacks.post_hoc_ema.lengths") for one in lengths}
        self.averages: dict[float, dict[str, Tensor]] = {}
        self._last_step, self._restored = 0, False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start from the current weights, which count nothing after the first step, or go on with restored averages."""
        current = averaged_parameters(pl_module)
        for length in self.exponents:
            kept = self.averages.get(length) or {name: precise(p).clone() for name, p in current.items()}
            if kept.keys() != current.keys():
                raise UserError(
                    "The checkpoint's averages of callbacks.post_hoc_ema are of other weights. Use the settings it was "
                    "trained with, or callbacks.post_hoc_ema=null."
                )
            self.averages[length] = {name: sharded_like(kept[name], p) for name, p in current.items()}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Only now a resumed run knows its step.

        Raises:
            UserError: the run has taken steps that no average has seen.
        """
        self._last_step = averaged_steps(trainer, pl_module)
        if self._last_step and not self._restored:
            raise UserError(
                f"callbacks.post_hoc_ema: this run has taken {self._last_step} steps without it, and averages begin "
                "with the first. Resume without it; a new run with init=from_run can have it."
            )

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Average once per optimizer step, and store when it is time."""
        step = averaged_steps(trainer, pl_module)
        if step == self._last_step:
            return
        self._last_step = step
        current = averaged_parameters(pl_module)
        with torch.no_grad():
            values = [local(precise(parameter)) for parameter in current.values()]  # in the order of each average
            for length, gamma in self.exponents.items():
                kept = [local(value) for value in self.averages[length].values()]
                torch._foreach_lerp_(kept, values, 1 - decay_at(step, gamma))
        if step % self.every_n_steps == 0:
            self._store(trainer, step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Store the last averages."""
        if self._last_step % self.every_n_steps and self._last_step:
            self._store(trainer, self._last_step)

    def state_dict(self) -> dict[str, Any]:
        """The averages, by their lengths as text."""
        return {
            str(length): {name: value.clone() for name, value in average.items()}
            for length, average in self.averages.items()
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with stored averages.

        Raises:
            UserError: the run has kept other lengths.
        """
        if set(map(float, state_dict)) != set(self.exponents):
            raise UserError(
                f"The run has kept averages of lengths {', '.join(state_dict)}; an average is kept from the first step "
                f"on. Resume with callbacks.post_hoc_ema.lengths=[{','.join(state_dict)}]."
            )
        self.averages = {float(length): dict(average) for length, average in state_dict.items()}
        self._restored = True

    def _store(self, trainer: Trainer, step: int) -> None:
        for length, average in self.averages.items():
            gathered = {name: whole(value) for name, value in average.items()}  # of all ranks, by all ranks
            if trainer.is_global_zero:
                self.folder.mkdir(parents=True, exist_ok=True)
                save_tensors(gathered, self.folder / file_name(Snapshot(length, step)))


def file_name(one: Snapshot) -> str:
    """The file of a snapshot."""
    return f"step-{one.step:08d}-length-{one.sigma_rel:.4f}.safetensors"


def stored_in(folder: Path) -> dict[Snapshot, Path]:
    """The snapshots of a folder, the earliest first."""
    found = ((NAME.fullmatch(path.name), path) for path in sorted(folder.glob("step-*.safetensors")))
    return {Snapshot(float(name[2]), int(name[1])): path for name, path in found if name is not None}


def combined(factors: Mapping[Path, float]) -> dict[str, Tensor]:
    """The sum of stored averages, each times its factor, in float32; summed in float64.

    Raises:
        UserError: a damaged file, or files of different weights.
    """
    found: dict[str, Tensor] = {}
    for path, factor in factors.items():
        weights = read_tensors(path, "Delete the file to do without it.")
        if found and {n: w.shape for n, w in found.items()} != {n: w.shape for n, w in weights.items()}:
            raise UserError(f"{path} holds an average of other weights than the files before it.")
        for name, weight in weights.items():
            term = factor * weight.double()
            found[name] = found[name].add_(term) if name in found else term
    return {name: weight.float() for name, weight in found.items()}
