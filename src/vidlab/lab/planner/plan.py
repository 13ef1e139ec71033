"""The plan of a training: what it would compute, keep in memory, exchange and store, before anything runs."""

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Trainer
from omegaconf import DictConfig, OmegaConf

from vidlab.callbacks.cost.budget import Budget, check_length, planned_cost
from vidlab.callbacks.ema import EMA
from vidlab.clip import LatentShape
from vidlab.cost.exchange import exchange_by_layer
from vidlab.cost.rates import matmul_rate
from vidlab.data.module import ClipDataModule
from vidlab.errors import UserError
from vidlab.lab.cli.hydra_main import instantiate
from vidlab.lab.compose import build_data, build_module, build_trainer
from vidlab.lab.image_models.provide import provide_image_model
from vidlab.lab.planner.step import StepMemory, step_memory
from vidlab.layers.layouts import Grid
from vidlab.parallel.ranks import data_ranks, sequence_parallel_of
from vidlab.precision import uses_bf16
from vidlab.training.optimization.fully_sharded import (
    FullyShardedStrategy,
    ShardedWeights,
    check_parallelism,
    gathered_dtype,
    sharded_weights,
)
from vidlab.training.video_diffusion import VideoDiffusion

# Of the rate of large matrix products; laptop models reach about this share of it on a CPU in training.
ASSUMED_USE = 0.3
RUNNING = {"cpu": 900 * 10**6, "cuda": 10**9}  # bytes before any model: Python with torch and Lightning; a CUDA context


@dataclass(frozen=True)
class BucketCost:
    """What a step on clips of one shape costs, on all devices together.

    Args:
        shape: (frames, height, width).
        clips: of a batch on one device.
        share: of all steps.
        tokens, flops: of an optimizer step.
    """

    shape: tuple[int, int, int]
    clips: int
    share: float
    tokens: int
    flops: float


@dataclass(frozen=True)
class SharedLayer:
    """Layers of one kind whose processes share clips.

    Args:
        layout: its name.
        count: how many layers.
        sent: bytes that each process sends in a step for one of them, forward and backward.
    """

    layout: str
    count: int
    sent: int


@dataclass(frozen=True)
class TrainingPlan:
    """The plan.

    Args:
        trained, frozen: parameters of the denoiser and of a text encoder that is trained with it.
        buckets: costs by shape, one without bucketing.
        memory: of the bucket that needs most, on one device.
        device: ``cpu`` or ``cuda``.
        available: bytes of that device, or of main memory.
        exchanged: bytes that each device sends in a step; 0 for one device.
        checkpoint: bytes of a checkpoint file.
        steps: of the run; None where its end is not a number of steps.
        rate: FLOP/s that are expected of all devices, from a measurement of matrix products here.
        notes: what else to know.
        sharing: what processes that share clips send each other, by layer; empty where none do.
        sharded: whether each device keeps a share of the weights; ``memory`` is then what it keeps.
    """

    trained: int
    frozen: int
    buckets: tuple[BucketCost, ...]
    memory: StepMemory
    device: str
    available: int
    exchanged: int
    checkpoint: int
    steps: int | None
    rate: float
    notes: tuple[str, ...] = ()
    sharing: tuple[SharedLayer, ...] = ()
    sharded: bool = False

    @property
    def flops_per_step(self) -> float:
        """Mean over the buckets."""
        return sum(one.share * one.flops for one in self.buckets)

    @property
    def tokens_per_step(self) -> float:
        """Mean over the buckets."""
        return sum(one.share * one.tokens for one in self.buckets)

    @property
    def seconds(self) -> float | None:
        """Of all steps at the expected rate, without validation, previews and decoding."""
        return None if self.steps is None else self.steps * self.flops_per_step / self.rate

    @property
    def needed(self) -> int:
        """Bytes of one device, with what runs before any model."""
        return self.memory.total + RUNNING[self.device]

    @property
    def fits(self) -> bool:
        """Whether that is there."""
        return self.needed <= self.available


def plan_training(cfg: DictConfig) -> TrainingPlan:
    """The plan of a composed training; no run, no file and no weights come of it.

    A run that ``model.image_model`` names is written once as a folder of the cache, as for a training.

    Data with buckets is opened, as ``vidlab plan`` does, since its shapes are only known from its index.

    Raises:
        UserError: a configuration that cannot work, or a task that is not planned.
    """
    cfg = cfg.copy()
    notes = _without_image_model(cfg)
    if not notes:
        provide_image_model(cfg, tuple(cfg.get("allow") or ()))
    module = build_module(cfg)
    if not isinstance(module, VideoDiffusion):
        raise UserError("plan=true plans trainings of denoisers. Leave it out for task=autoencoder.")
    with torch.device("meta"):
        module.configure_model()
    if notes:
        module.text_encoder.requires_grad_(False)  # it was trained with the image model, and is frozen with it
    trainer = build_trainer(cfg, False)
    check_parallelism(trainer, module)
    data = build_data(cfg) if OmegaConf.select(cfg, "data.bucketing.max_tokens") is not None else cfg.data
    buckets = _buckets(data, module, trainer)
    kind = trainer.strategy.root_device.type
    trained, frozen = _parameters(module)
    cost = max(buckets, key=lambda one: one.tokens)
    dtype = torch.bfloat16 if uses_bf16(cfg.precision, kind) else torch.float32
    rate = matmul_rate(dtype, trainer.strategy.root_device, seconds=0.2) * ASSUMED_USE * trainer.world_size
    steps = _steps(cfg, module, data, trainer, sum(one.share * one.flops for one in buckets) / rate)
    sharing = _sharing(module, cost, trainer, dtype)
    memory, exchanged, checkpoint = _of_a_device(module, cost, trainer, dtype)
    return TrainingPlan(
        trained, frozen, buckets, memory, kind, device_memory(kind), exchanged, checkpoint, steps, rate,
        (*notes, *_of_whole_clips(module, cost, trainer)), sharing, isinstance(trainer.strategy, FullyShardedStrategy),
    )  # fmt: skip


def _of_a_device(
    module: VideoDiffusion, largest: BucketCost, trainer: Trainer, dtype: torch.dtype
) -> tuple[StepMemory, int, int]:
    """Memory, bytes sent in a step, and bytes of a checkpoint; the module is good for nothing afterwards."""
    recomputes, kind = module.denoiser.activation_checkpointing, trainer.strategy.root_device.type
    precision, batches, ranks = trainer.precision_plugin, trainer.accumulate_grad_batches, trainer.world_size
    memory = step_memory(module, largest.shape, largest.clips, batches, precision, kind)
    averaged = any(isinstance(one, EMA) for one in trainer.callbacks)  # type: ignore[attr-defined]
    memory = memory if averaged else memory.without_average()
    checkpoint = memory.gradients + memory.optimizer + memory.average
    exchanged = exchanged_bytes(memory.gradients, ranks)
    if isinstance(trainer.strategy, FullyShardedStrategy):
        weights = sharded_weights(module, gathered_dtype(trainer))
        memory, exchanged = memory.sharded(weights, ranks), exchanged_by_shards(weights, ranks, batches)
    return memory.in_process(dtype, recomputes) if kind == "cpu" else memory, exchanged, checkpoint


def exchanged_bytes(gradients: int, ranks: int) -> int:
    """Bytes that a device sends to average gradients once a step: 2 (n - 1) / n of them.

    A ring of n devices sums n parts in n - 1 rounds and hands them round in as many (Patarasuk & Yuan 2009).
    """
    return 2 * (ranks - 1) * gradients // ranks


def exchanged_by_shards(weights: ShardedWeights, ranks: int, batches: int) -> int:
    """Bytes that a device sends in a step where weights are sharded: (n - 1) / n of the gradients and twice of weights.

    A ring gathers n parts in n - 1 rounds, and sums them in as many; each batch of a step does both.
    """
    return batches * (ranks - 1) * (2 * weights.gathered + weights.averaged) // ranks


def _of_whole_clips(module: VideoDiffusion, largest: BucketCost, trainer: Trainer) -> tuple[str, ...]:
    """Notes on what is planned for whole clips where processes share them."""
    ranks = sequence_parallel_of(trainer)
    if ranks == 1:
        return ()
    latent = LatentShape(*module.autoencoder.latent_shape(*largest.shape))
    shapes = [(one.latent, one.history) for one in module.objective.input_shapes(latent)]
    notes = [f"activations are those of whole clips; {ranks} processes share them, and each needs less"]
    if shapes != [(latent, ())]:
        notes.append("what processes send is that of whole clips; the objective gives the model parts of them")
    return tuple(notes)


def device_memory(kind: str) -> int:
    """Bytes of main memory, or of the first GPU."""
    import psutil

    if kind == "cuda":
        return int(torch.cuda.get_device_properties(0).total_memory)
    return int(psutil.virtual_memory().total)


def _without_image_model(cfg: DictConfig) -> tuple[str, ...]:
    """A note where HARIVO's body is planned by its small structure, as none is named: nothing is trained for a plan."""
    model = cfg.get("model") or {}
    if "image_model" not in model or model["image_model"] is not None:
        return ()
    steps = OmegaConf.select(cfg, "model.image_training.max_steps")
    return (f"model.image_model is not set: a small one is trained first, {steps} steps, which are not counted here",)


def _steps(cfg: DictConfig, module: VideoDiffusion, data: Any, trainer: Trainer, seconds_per_step: float) -> int | None:
    """Optimizer steps of the run: those that reach its budget, or the trainer's; None without either.

    Raises:
        UserError: a budget that training would refuse.
    """
    limit = trainer.max_steps
    if not cfg.get("budget"):
        return limit if limit > 0 else None
    budget: Budget = instantiate(cfg.budget, "budget")
    if budget.unit == "wall_time":
        assert budget.value is not None
        steps = math.ceil(budget.value / seconds_per_step)
        return min(steps, limit) if limit > 0 else steps
    planned = planned_cost(budget, module, data, data_ranks(trainer).size, trainer.accumulate_grad_batches)
    return check_length(budget, planned, limit)


def _sharing(
    module: VideoDiffusion, largest: BucketCost, trainer: Trainer, dtype: torch.dtype
) -> tuple[SharedLayer, ...]:
    """Of the largest batch: what processes that share its clips send, equal layers together."""
    ranks = sequence_parallel_of(trainer)
    if ranks == 1:
        return ()
    denoiser, (frames, rows, columns) = module.denoiser, module.patch
    latent = module.autoencoder.latent_shape(*largest.shape)
    grid = Grid(latent[1] // frames, latent[2] // rows, latent[3] // columns)
    layers = exchange_by_layer(denoiser.sequence_layers(), grid, ranks, bool(denoiser.activation_checkpointing))
    batches = largest.clips * trainer.accumulate_grad_batches
    sent = Counter((type(one.layout).__name__, batches * one.bytes_sent(dtype.itemsize) // ranks) for one in layers)
    return tuple(SharedLayer(name, count, size) for (name, size), count in sent.items())


def _parameters(module: VideoDiffusion) -> tuple[int, int]:
    counted = [*module.denoiser.parameters()]
    counted += [p for p in module.text_encoder.parameters() if p.requires_grad]
    trained = sum(p.numel() for p in counted if p.requires_grad)
    return trained, sum(p.numel() for p in counted) - trained


def _buckets(data: Any, module: VideoDiffusion, trainer: Trainer) -> tuple[BucketCost, ...]:
    batches = data_ranks(trainer).size * trainer.accumulate_grad_batches
    shapes = [(module.clip_shape, int(data.batch_size), 1.0)]
    if isinstance(data, ClipDataModule):
        plan = data.planned(data_ranks(trainer).size).plan
        shapes = [
            ((one.bucket.frames, one.bucket.height, one.bucket.width), one.batch_size, share)
            for one, share in zip(plan.stats, plan.step_fractions, strict=True)
        ]
    found = []
    for shape, clips, share in shapes:
        cost = module.cost(shape)
        found.append(
            BucketCost(shape, clips, share, cost.tokens * clips * batches, cost.training_flops * clips * batches)
        )
    return tuple(found)
