"""Gradients of outlying batches are left out of a step, by the running statistics of gradient norms."""

import logging
from dataclasses import asdict
from typing import Any

import torch
from jaxtyping import Float
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, SingleDeviceStrategy
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from vidlab.callbacks.finite_loss import FiniteLoss
from vidlab.clip import ClipBatch
from vidlab.errors import UserError
from vidlab.parallel.exchange import make_team
from vidlab.parallel.ranks import data_ranks, sequence_parallel_of
from vidlab.training.optimization.clipping import (
    AdaptiveClipper,
    DeviceDecision,
    DeviceStatistics,
    NormStatistics,
    global_norm,
)
from vidlab.training.optimization.clipping_ddp import ClippingReducer
from vidlab.training.optimization.fully_sharded import FullyShardedStrategy

log = logging.getLogger(__name__)

NAME = "callbacks.adaptive_clipping"


class AdaptiveClipping(Callback):
    """Adaptive gradient clipping (Lin et al. 2024, Open-Sora Plan, section 3.2); see ``AdaptiveClipper`` for the rule.

    With trainer=ddp the gradients of an abnormal rank are left out of the average over ranks. On one device an
    abnormal batch is discarded. With accumulation the accumulated gradient of a rank is judged as a whole. With
    trainer=fsdp2, which averages over ranks while gradients are computed, the average is judged, as on one device.

    Where no rank is left, the step is not taken: gradients are None, so that weights, decay and momentum do not move,
    and neither do the averaged weights nor the learning rate. ``trainer.global_step`` counts such a step, so that
    compared runs still see the same data; ``discarded_steps`` counts them alone.

    Each rank logs a warning with the clip keys of a batch of its own that is discarded. ``optimizer.clip_norm``
    applies afterwards, to the averaged gradient. A training loss that is not finite belongs to a discarded batch
    here, so ``FiniteLoss`` gives way to ``patience``.

    Gradients are judged and rescaled, and the statistics kept, on their device. The host reads one thing of a step,
    before the optimizer takes it: whether it is to be taken.

    Args:
        variant: "released" or "paper": what the statistics are updated with.
        alpha: share of the old statistics that each step keeps.
        sigmas: standard deviations above the mean at which a norm becomes abnormal.
        warmup_steps: steps before a finite norm can be abnormal; gradients of a fresh model still find their size.
        patience: discarded steps in a row that end the training.

    Logs:
        train/clip/max_norm, processed_max, deviation, threshold, abnormal_ranks, ema, ema_variance per optimizer step:
        figure 11 (d), (f), (e), (c), (b), (g), (h). A threshold or statistic that there is not yet is left out.

    Raises:
        UserError: a setting out of range; a strategy or precision that hides the gradients of single ranks; or
            ``patience`` steps in a row discarded.
    """

    def __init__(
        self,
        variant: str = "released",
        alpha: float = 0.99,
        sigmas: float = 3.0,
        warmup_steps: int = 100,
        patience: int = 50,
    ) -> None:
        self.clipper = AdaptiveClipper(variant, alpha, sigmas, warmup_steps)
        if patience < 1:
            raise UserError(f"{NAME}.patience={patience} must be at least 1.")
        self.patience = patience
        self.discarded_steps = 0
        self.decision: DeviceDecision | None = None
        self._kept: NormStatistics | DeviceStatistics = NormStatistics()
        self._in_a_row = 0
        self._keys: list[str] = []

    @property
    def statistics(self) -> NormStatistics:
        """The running statistics; the host waits for the device."""
        return self._kept.read() if isinstance(self._kept, DeviceStatistics) else self._kept

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what cannot work before anything is computed."""
        _check_strategy(trainer)
        if getattr(trainer.precision_plugin, "scaler", None) is not None:
            raise UserError(
                f"{NAME}: precision={trainer.precision} scales gradients and drops steps by a rule of its own. "
                "Use precision=bf16-mixed or precision=32-true."
            )
        if not pl_module.automatic_optimization:
            raise UserError(
                f"{NAME}: {type(pl_module).__name__} takes its optimizer steps itself; it can call "
                f"vidlab.training.optimization.clipping.AdaptiveClipper. Set {NAME}=null."
            )
        if any(isinstance(callback, FiniteLoss) for callback in trainer.callbacks):  # type: ignore[attr-defined]
            raise UserError(
                f"callbacks.finite_loss ends the training at a loss that {NAME} would discard. Name adaptive_clipping "
                "after default, or set callbacks.finite_loss=null."
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over the reduction between ranks."""
        self._keys = []
        if isinstance(trainer.model, DistributedDataParallel):
            shared = sequence_parallel_of(trainer)
            team = make_team(shared) if shared > 1 else None
            ClippingReducer(self._decide, team=team).register(trainer.model)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Remember what the coming gradient is made of."""
        self._keys.extend(batch.keys if isinstance(batch, ClipBatch) else [f"batch {batch_idx}"])

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Judge the gradient, unless the reduction between ranks has; drop it when nothing of it is left."""
        if not isinstance(trainer.model, DistributedDataParallel):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            self._decide(global_norm([p.grad for p in parameters if p.grad is not None])[None])
        decision, self.decision = self.decision, None
        if decision is None:
            raise RuntimeError("an optimizer step without a backward pass")
        rank = min(data_ranks(trainer).rank, len(decision.norms) - 1)  # one norm for all where gradients are sharded
        logged = _quantities(decision)
        # the one read: it decides which kernels follow
        there = torch.stack(list(logged.values())).isfinite()
        skip, kept, *known = torch.cat([torch.stack([decision.skip, decision.kept[rank]]), there]).tolist()
        pl_module.log_dict(
            {name: value for (name, value), is_known in zip(logged.items(), known, strict=True) if is_known}
        )
        if not kept:
            self._name_discarded(trainer, decision, rank)
        self._keys = []
        if skip:
            # optimizers leave a parameter without a gradient alone; with a gradient of 0 most would still move it
            optimizer.zero_grad(set_to_none=True)
        self._count(trainer, decision, skip)

    def state_dict(self) -> dict[str, Any]:
        """The statistics and what has been discarded."""
        counts = {"discarded_steps": self.discarded_steps, "in_a_row": self._in_a_row}
        return {"statistics": asdict(self.statistics), **counts}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where a checkpoint was written."""
        self._kept = NormStatistics(**state_dict["statistics"])
        self.discarded_steps, self._in_a_row = state_dict["discarded_steps"], state_dict["in_a_row"]

    def _decide(self, norms: Float[Tensor, "N"]) -> DeviceDecision:
        if isinstance(self._kept, NormStatistics):
            self._kept = DeviceStatistics.of(self._kept, norms.device)
        self.decision = self.clipper.decide_on_device(self._kept, norms)
        self._kept = self.decision.statistics
        return self.decision

    def _name_discarded(self, trainer: Trainer, decision: DeviceDecision, rank: int) -> None:
        log.warning(
            "step %d, rank %d: gradient norm %.4g, threshold %.4g: discarded the batch of clips %s",
            trainer.global_step, trainer.global_rank, decision.norms[rank], decision.threshold, ", ".join(self._keys),
        )  # fmt: skip

    def _count(self, trainer: Trainer, decision: DeviceDecision, skip: bool) -> None:
        self._in_a_row = self._in_a_row + 1 if skip else 0
        self.discarded_steps += skip
        if self._in_a_row >= self.patience:
            norms = [float(f"{norm:.4g}") for norm in decision.norms.tolist()]
            raise UserError(
                f"{NAME}.patience={self.patience}: as many steps in a row were discarded up to step "
                f"{trainer.global_step}, the last with gradient norms {norms} "
                f"and threshold {decision.threshold.item():.4g}. Norms that are not finite mean that the training has "
                "diverged: lower optimizer.lr, set optimizer.clip_norm, or warm up longer. Finite ones have grown for "
                f"good: raise {NAME}.sigmas or warmup_steps, or use {NAME}.variant=paper, whose threshold follows them."
            )


def _check_strategy(trainer: Trainer) -> None:
    strategy = trainer.strategy
    known = DDPStrategy | SingleDeviceStrategy | FullyShardedStrategy
    plain = isinstance(strategy, known) and not isinstance(strategy, DeepSpeedStrategy)
    if not plain:
        raise UserError(
            f"{NAME}: {type(strategy).__name__} reduces gradients while they are computed, so that the norms of single "
            f"ranks cannot be known. Use trainer=ddp, or set {NAME}=null and use optimizer.clip_norm."
        )
    if getattr(strategy, "_ddp_comm_hook", None) is not None:
        raise UserError(
            f"{NAME}: trainer.strategy has a ddp_comm_hook, and DDP takes one. Remove it, or set {NAME}=null."
        )


def _quantities(decision: DeviceDecision) -> dict[str, Float[Tensor, ""]]:
    """What is logged, where it is finite."""
    statistics = decision.statistics
    found = {
        "max_norm": decision.max_norm,
        "processed_max": decision.processed_max,
        "deviation": decision.deviation,
        "threshold": decision.threshold,
        "abnormal_ranks": (~decision.kept).sum(),
        "ema": statistics.ema,
        "ema_variance": statistics.variance,
    }
    return {f"train/clip/{name}": value.float() for name, value in found.items()}
