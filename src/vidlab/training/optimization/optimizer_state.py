"""The restored state of an optimizer, compared with the parameters it moves."""

import torch
from torch import Tensor

from vidlab.errors import UserError
from vidlab.tensors import is_finite
from vidlab.training.checkpoint_io import BESIDE
from vidlab.training.optimization.muon import MuonWithAdamW

# Entries of torch's optimizers that have the parameter's shape; torch itself would broadcast another.
SHAPED = frozenset(
    ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "momentum_buffer", "square_avg", "grad_avg", "acc_delta")
)


def refuse_other_state(optimizer: torch.optim.Optimizer) -> None:
    """Refuse a state of other shapes, or numbers that are not finite.

    Raises:
        UserError: naming the parameter, the entry, and both shapes.
    """
    parts = (optimizer.muon, optimizer.adamw) if isinstance(optimizer, MuonWithAdamW) else (optimizer,)
    for part in parts:
        for group in part.param_groups:
            names = group.get("names") or [f"parameter {number}" for number in range(len(group["params"]))]
            for name, parameter in zip(names, group["params"], strict=True):
                _check(name, parameter, part.state.get(parameter, {}))


def _check(name: str, parameter: Tensor, state: dict[str, object]) -> None:
    for entry, value in state.items():
        if entry in SHAPED and (not isinstance(value, Tensor) or value.shape != parameter.shape):
            found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise UserError(
                f"The checkpoint's optimizer holds {entry} {found} for {name}, which has shape "
                f"{tuple(parameter.shape)}. {BESIDE}"
            )
        if isinstance(value, Tensor) and not is_finite(value):
            raise UserError(
                f"The checkpoint's optimizer holds numbers that are not finite in {entry} of {name}. {BESIDE}"
            )
