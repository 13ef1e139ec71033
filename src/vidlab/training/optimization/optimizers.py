"""Parameter groups, the optimizer and learning-rate schedules."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from vidlab.errors import UserError
from vidlab.parallel.shards import clip_to, is_shard, total_norm

LrFactor = Callable[[int], float]


@runtime_checkable
class HiddenMatrices(Protocol):
    """A network that declares which of its matrices lie between its first and its last layer.

    ``hidden_matrices`` are shell-style patterns of its own parameter names.
    """

    @property
    def hidden_matrices(self) -> Sequence[str]:
        """The patterns."""
        ...


@dataclass(frozen=True)
class OptimizerFactory:
    """Builds an optimizer over the trainable parameters, in groups by rule.

    Weight decay is for the weights of layers: parameters of two dimensions or more whose name ends in ``weight``. It is
    left off biases, gains, every table that a module adds or multiplies (modulation, positions, tokens), whatever its
    shape, and off embeddings.

    Args:
        algorithm: called with parameter groups, e.g. a partial of ``torch.optim.AdamW``.
        lr: base learning rate.
        weight_decay: decay of the groups that decay.
        clip_norm: largest global gradient norm, applied after every other treatment of gradients; null is off.
        lr_multipliers: shell-style name pattern to a factor on the learning rate; the first match counts.

    Raises:
        UserError: a negative setting, a ``clip_norm`` of 0, or a pattern that matches no trainable parameter.
    """

    algorithm: Callable[..., torch.optim.Optimizer]
    lr: float
    weight_decay: float = 0.0
    clip_norm: float | None = None
    lr_multipliers: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("lr", "weight_decay", "clip_norm"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise UserError(f"optimizer.{name}={value} must not be negative.")
        if self.clip_norm == 0:
            raise UserError("optimizer.clip_norm=0 would stop all training; null turns clipping off.")
        for pattern, multiplier in self.lr_multipliers.items():
            if multiplier < 0:
                raise UserError(f"optimizer.lr_multipliers: {pattern}={multiplier} must not be negative.")

    def build(self, module: nn.Module) -> torch.optim.Optimizer:
        """The optimizer of a module's trainable parameters."""
        groups = self.groups(module)
        if not groups:
            raise UserError("Nothing to train: every parameter of the model is frozen.")
        return self.algorithm(groups, lr=self.lr)

    def clip(self, module: nn.Module) -> torch.Tensor:
        """Clip the global gradient norm of what is trained to ``clip_norm``; returns the norm as it was.

        Without a limit gradients are only looked at: clipping to an infinite norm would turn one infinite element
        into NaN everywhere.
        """
        parameters = list(trainable_parameters(module))
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = total_norm(gradients)
        if self.clip_norm is not None and any(map(is_shard, gradients)):
            clip_to(gradients, self.clip_norm, norm)
        elif self.clip_norm is not None:
            nn.utils.clip_grads_with_norm_(parameters, self.clip_norm, norm)
        return norm

    def groups(self, module: nn.Module) -> list[dict[str, Any]]:
        """Parameter groups with keys params, names, weight_decay, lr, and hidden: names that a network declares."""
        patterns = [
            f"{prefix}.{pattern}".removeprefix(".")
            for prefix, part in module.named_modules() if isinstance(part, HiddenMatrices)
            for pattern in part.hidden_matrices
        ]  # fmt: skip
        no_decay = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)}
        groups: dict[tuple[float, float], dict[str, Any]] = {}
        matched: set[str] = set()
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:
                continue
            decays = parameter.ndim >= 2 and name.endswith("weight") and id(parameter) not in no_decay
            decay = self.weight_decay if decays else 0.0
            pattern = next((p for p in self.lr_multipliers if fnmatch(name, p)), None)
            matched |= {pattern} if pattern else set()
            lr = self.lr * (self.lr_multipliers[pattern] if pattern else 1.0)
            group = groups.setdefault(
                (decay, lr), {"params": [], "names": [], "hidden": [], "weight_decay": decay, "lr": lr}
            )
            group["params"].append(parameter)
            group["names"].append(name)
            if any(fnmatch(name, declared) for declared in patterns):
                group["hidden"].append(name)
        unmatched = [pattern for pattern in self.lr_multipliers if pattern not in matched]
        if unmatched:
            raise UserError(
                f"optimizer.lr_multipliers: {unmatched} match no trainable parameter that an earlier pattern has not "
                f"taken. Names look like {[name for name, p in module.named_parameters() if p.requires_grad][:3]}."
            )
        return list(groups.values())


def trainable_parameters(module: nn.Module) -> Iterable[nn.Parameter]:
    """Parameters that receive gradients."""
    return (parameter for parameter in module.parameters() if parameter.requires_grad)


@dataclass(frozen=True)
class Constant:
    """Linear warm-up from lr / warmup_steps, then a constant learning rate."""

    warmup_steps: int = 0

    def factor(self, max_steps: int) -> LrFactor:
        """The factor on the learning rate by optimizer step; ``max_steps`` is not used."""
        _check_warmup(self.warmup_steps)
        return lambda step: _warmup(step, self.warmup_steps)


@dataclass(frozen=True)
class Cosine:
    """Linear warm-up, then half a cosine from 1 down to ``final`` (Loshchilov & Hutter 2016, eq. 5).

    ``final`` is the factor at ``max_steps``, one past the last step taken.
    """

    warmup_steps: int = 0
    final: float = 0.0

    def factor(self, max_steps: int) -> LrFactor:
        """The factor by optimizer step."""
        _check_length("cosine", self.warmup_steps, max_steps)

        def at(step: int) -> float:
            progress = _progress(step, self.warmup_steps, max_steps)
            decay = self.final + (1 - self.final) * (1 + math.cos(math.pi * progress)) / 2
            return _warmup(step, self.warmup_steps) * decay

        return at


@dataclass(frozen=True)
class LinearDecay:
    """Linear warm-up, then a straight line from 1 down to ``final`` at ``max_steps``, one past the last step taken."""

    warmup_steps: int = 0
    final: float = 0.0

    def factor(self, max_steps: int) -> LrFactor:
        """The factor by optimizer step."""
        _check_length("linear_decay", self.warmup_steps, max_steps)

        def at(step: int) -> float:
            decay = 1 - (1 - self.final) * _progress(step, self.warmup_steps, max_steps)
            return _warmup(step, self.warmup_steps) * decay

        return at


def _warmup(step: int, warmup_steps: int) -> float:
    return min(1.0, (step + 1) / warmup_steps) if warmup_steps > 0 else 1.0


def _progress(step: int, warmup_steps: int, max_steps: int) -> float:
    return min(max((step - warmup_steps) / max(max_steps - warmup_steps, 1), 0.0), 1.0)


def _check_length(name: str, warmup_steps: int, max_steps: int) -> None:
    if max_steps <= 0:
        raise UserError(
            f"lr_schedule={name} needs the length of the run: set trainer.max_steps, or use lr_schedule=constant."
        )
    _check_warmup(warmup_steps)


def _check_warmup(warmup_steps: int) -> None:
    if warmup_steps < 0:
        raise UserError(f"lr_schedule.warmup_steps={warmup_steps} must not be negative.")
