"""One of two networks trained in turn: its gradients, its clipping, its optimizer steps."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from vidlab.errors import UserError
from vidlab.tensors import refuse_other_shapes
from vidlab.training.checkpoint_io import BESIDE
from vidlab.training.optimization.clipping import AdaptiveClipper, ClipDecision, NormStatistics, global_norm

log = logging.getLogger(__name__)

PATIENCE = 50  # discarded steps in a row that end the training


class GANOptimizerStep:
    """Takes the optimizer steps of one network where Lightning leaves them to the module.

    Args:
        name: ``generator`` or ``discriminator``.
        network: what it trains.
        clip_norm: largest global gradient norm, applied last; None is off.
        clipper: leaves outlying gradients out, by statistics of this network alone; None is off. With several ranks
            their averaged gradient is judged, so that all ranks decide alike.

    Attributes:
        steps: optimizer steps taken.
        discarded: steps left out, which change nothing.
    """

    def __init__(
        self, name: str, network: nn.Module, clip_norm: float | None, clipper: AdaptiveClipper | None = None
    ) -> None:
        self.name, self.network = name, network
        self.clip_norm, self.clipper = clip_norm, clipper
        self.statistics = NormStatistics()
        self.steps = self.discarded = self._in_a_row = 0
        self._waiting: dict[str, Tensor] = {}

    def step(self, optimizer: Optimizer, take: Callable[[Optimizer], Any], keys: Sequence[str]) -> dict[str, float]:
        """Use the gradients that have accumulated, and clear them.

        Args:
            optimizer: of the network.
            take: takes a step of it.
            keys: the clips the gradients are of, for the log of discarded ones.

        Returns:
            ``grad_norm`` before clipping, and with a clipper its threshold.

        Raises:
            UserError: ``PATIENCE`` steps in a row were discarded.
        """
        gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
        norm = global_norm(gradients).item()
        decision = self._decide(norm)
        found = {"grad_norm": norm}
        if decision is not None and math.isfinite(decision.threshold):
            found["clip_threshold"] = decision.threshold
        if decision is None or not decision.skip:
            self._limit(gradients, norm)
            take(optimizer)
            self.steps += 1
        else:
            log.warning(
                "%s: gradient norm %.4g, threshold %.4g: discarded clips %s",
                self.name, norm, decision.threshold, ", ".join(keys),
            )  # fmt: skip
        optimizer.zero_grad(set_to_none=True)
        return found

    def _decide(self, norm: float) -> ClipDecision | None:
        if self.clipper is None:
            return None
        decision = self.clipper.decide(self.statistics, [norm])
        self.statistics = decision.statistics
        self.discarded += decision.skip
        self._in_a_row = self._in_a_row + 1 if decision.skip else 0
        if self._in_a_row >= PATIENCE:
            raise UserError(
                f"task.adaptive_clipping: {PATIENCE} steps of the {self.name} in a row were discarded, the last with "
                f"gradient norm {norm:.4g}. If it is not finite the training has diverged: lower optimizer.lr. If it "
                "has grown for good, raise task.adaptive_clipping.sigmas or use its variant=paper."
            )
        return decision

    def _limit(self, gradients: list[Tensor], norm: float) -> None:
        if self.clip_norm is not None and norm > self.clip_norm:
            torch._foreach_mul_(gradients, self.clip_norm / (norm + 1e-6))

    def state(self, unfinished: bool) -> dict[str, Any]:
        """What a checkpoint keeps; ``unfinished`` when gradients are being accumulated, which are kept too."""
        parameters = self.network.named_parameters() if unfinished else ()
        gradients = {name: p.grad.clone() for name, p in parameters if p.grad is not None}
        counts = {"steps": self.steps, "discarded": self.discarded, "in_a_row": self._in_a_row}
        return {"statistics": asdict(self.statistics), "gradients": gradients, **counts}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue where a checkpoint was written."""
        self.statistics = NormStatistics(**state["statistics"])
        self.steps, self.discarded, self._in_a_row = state["steps"], state["discarded"], state["in_a_row"]
        self._waiting = dict(state["gradients"])

    def restore_gradients(self) -> None:
        """Put restored gradients in place, once nothing that follows a checkpoint's reading clears them."""
        parameters = dict(self.network.named_parameters())
        refuse_other_shapes(self._waiting, parameters, f"The checkpoint's waiting gradients of the {self.name}", BESIDE)
        for name, gradient in self._waiting.items():
            parameters[name].grad = gradient.to(parameters[name])
        self._waiting = {}
