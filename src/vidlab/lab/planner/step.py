"""The memory of a training step: its own code, run on tensors that have sizes and no numbers."""

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from lightning.pytorch.plugins.precision import Precision
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from typing_extensions import override

from vidlab.clip import ClipBatch
from vidlab.cost.memory import MemoryTracker, process_peak
from vidlab.layers.compilation.offloading import ActivationOffload
from vidlab.randomness import KeyedRNG
from vidlab.training.encoding import TrainingEncoders
from vidlab.training.optimization.fully_sharded import ShardedWeights
from vidlab.training.video_diffusion import VideoDiffusion


@dataclass(frozen=True)
class StepMemory:
    """Bytes on one device.

    Args:
        weights: of everything the module holds, frozen parts included.
        average: of the moving average.
        gradients: of all trained weights.
        optimizer: its state after the first step.
        activations: what the largest batch and the step add at most to all these.
        peak: above the process before the first batch, in which weights and their average are: gradients, optimizer
            state, activations, and with ``in_process`` what a CPU adds.
        offloaded: of activations that lie in main memory instead, at most.
    """

    weights: int
    average: int
    gradients: int
    optimizer: int
    activations: int
    peak: int
    offloaded: int = 0

    def without_average(self) -> "StepMemory":
        """Of a run that keeps none."""
        return replace(self, average=0)

    def sharded(self, weights: ShardedWeights, devices: int) -> "StepMemory":
        """Of one of several devices that share out weights, average, gradients and optimizer state."""
        gradients, optimizer = self.gradients // devices, self.optimizer // devices
        gone = self.gradients - gradients + self.optimizer - optimizer
        return StepMemory(
            weights=self.weights - weights.kept + weights.kept // devices,
            average=self.average // devices,
            gradients=gradients,
            optimizer=optimizer,
            activations=self.activations + weights.whole,
            peak=self.peak - gone + weights.whole,
            offloaded=self.offloaded,
        )

    def in_process(self, dtype: torch.dtype, recomputes: bool | str) -> "StepMemory":
        """On a CPU: the peak is that of the process, see ``process_peak``."""
        return replace(self, peak=process_peak(self.peak, dtype, recomputes))

    @property
    def total(self) -> int:
        """Weights, average and peak."""
        return self.weights + self.average + self.peak


class _CountedOffload(ActivationOffload):
    """Counts the bytes that would lie in main memory, and holds none there.

    Attributes:
        peak: the most there were.
    """

    def __init__(self, smallest: int) -> None:
        super().__init__(smallest, pinned=False)
        self.held = self.peak = 0

    @override
    def away(self, block: Tensor) -> Any:
        size = block.numel() * block.element_size()
        kept = _Moved(block.numel(), block.dtype)
        self.held += size
        self.peak = max(self.peak, self.held)
        weakref.finalize(kept, self._gone, size)
        return kept

    @override
    def back(self, kept: Any, device: torch.device) -> Tensor:
        return torch.empty(kept.elements, dtype=kept.dtype, device=device)

    def _gone(self, size: int) -> None:
        self.held -= size


@dataclass(frozen=True)
class _Moved:
    """What a block of memory holds that has been moved away."""

    elements: int
    dtype: torch.dtype


class _WholeCaptions(TrainingEncoders):
    """Which captions are dropped changes no size."""

    @override
    def dropped_captions(self, captions: Sequence[str], draw: KeyedRNG) -> list[str]:
        return list(captions)


def step_memory(
    module: VideoDiffusion,
    clip_shape: tuple[int, int, int],
    clips: int,
    batches: int,
    precision: Precision,
    device: str,
) -> StepMemory:
    """The memory of a steady step on one device: one optimizer step is taken, and another is followed to its end.

    Args:
        module: its denoiser built on the meta device; afterwards it is good for nothing else.
        clip_shape: (frames, height, width) of its clips.
        clips: of a batch.
        batches: that accumulate to a step.
        precision: how the trainer computes.
        device: ``cpu`` or ``cuda``.
    """
    with (
        nullcontext() if module.compile_mode is None else torch.compiler.set_stance("force_eager"),
        FakeTensorMode(allow_non_fake_inputs=True),
        MemoryTracker() as tracker,
    ):
        module._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype, device=device))
        precision.convert_module(module.train())
        trained = [p for p in module.parameters() if p.requires_grad]
        weights = tracker.live
        with without_trainer(module), _counted_offload(module) as offload:
            before = tracker.live
            optimizer = module.optimizer_factory.build(module)
            for parameter in trained:
                parameter.grad = torch.empty_like(parameter)
            gradients = tracker.live - before
            optimizer.step()
            module.zero_grad(set_to_none=True)
            state = tracker.live - before
            tracker.restart()
            for number in range(min(batches, 2)):
                batch = made_up_batch(module, clip_shape, clips, number, device)
                with precision.forward_context():
                    loss: Any = module.training_step(batch, number)["loss"]
                loss.backward()
                del batch, loss
            module.optimizer_factory.clip(module)
            optimizer.step()
        peak = tracker.peak - before
        activations = max(peak - gradients - state, 0)
    average = sum(p.numel() * max(p.element_size(), 4) for p in trained)
    return StepMemory(weights, average, gradients, state, activations, peak, offload.peak if offload else 0)


@contextmanager
def without_trainer(module: VideoDiffusion) -> Iterator[None]:
    """What a step tells the trainer is told to nobody; no caption is dropped."""
    nobody = {"log": lambda *_, **__: None, "count": lambda _: None}
    plain = module.encoders
    module.encoders = _WholeCaptions(**{one.name: getattr(plain, one.name) for one in fields(plain) if one.init})
    vars(module).update(nobody)
    try:
        yield
    finally:
        module.encoders = plain
        for name in nobody:
            del vars(module)[name]


@contextmanager
def _counted_offload(module: VideoDiffusion) -> Iterator[_CountedOffload | None]:
    plain = module.offload
    counted = None if plain is None else _CountedOffload(plain.smallest)
    module.offload = counted
    try:
        yield counted
    finally:
        module.offload = plain


def made_up_batch(
    module: nn.Module, clip_shape: tuple[int, int, int], clips: int, number: int, device: str
) -> ClipBatch:
    """A batch of black clips with captions of the planned length."""
    assert isinstance(module, VideoDiffusion)
    words = module.encoders.planned_text_tokens - 1  # and the start token
    sizes = {"original_resolution": 2, "crop": 2, "sampling_stride": 1}
    return ClipBatch(
        torch.zeros(clips, 3, *clip_shape, dtype=torch.uint8, device=device),
        captions=(" ".join(["a"] * words),) * clips,
        keys=tuple(map(str, range(clips))),
        epochs=(0,) * clips,
        number=number,
        fps=(8.0,) * clips,
        micro={name: torch.ones(clips, size, device=device) for name, size in sizes.items()},
    )
