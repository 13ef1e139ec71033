"""The protocol of published text-to-video systems, and the requests for videos that they serve."""

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import UInt8

from vidlab.pipelines.conditioning_frames import GivenFrames
from vidlab.randomness import KeyedRNG


@dataclass(frozen=True)
class GenerationBatch:
    """Videos to make, by prompt and number; what one of them looks like depends on these and the seed alone."""

    prompts: Sequence[str]
    numbers: Sequence[int]
    seed: int

    def __len__(self) -> int:
        return len(self.prompts)

    def draw(self, clip: int = 0) -> KeyedRNG:
        """The random numbers of the ``clip``-th clip of each video."""
        keys = tuple(f"{prompt}\x1f{number}" for prompt, number in zip(self.prompts, self.numbers, strict=True))
        return KeyedRNG(self.seed, keys, (clip,) * len(keys))

    def batches(self, size: int) -> Iterator["GenerationBatch"]:
        """In order, ``size`` at a time."""
        for start in range(0, len(self), size):
            part = slice(start, start + size)
            yield GenerationBatch(self.prompts[part], self.numbers[part], self.seed)


def all_jobs(prompts: Sequence[str], num_videos: int, seed: int) -> GenerationBatch:
    """``num_videos`` of each prompt, in the order of the prompts."""
    repeated = [prompt for prompt in prompts for _ in range(num_videos)]
    return GenerationBatch(repeated, list(range(num_videos)) * len(prompts), seed)


@dataclass(frozen=True)
class GenerationRequest:
    """What a system is to make, and how.

    Args:
        jobs: the videos.
        given: frames of every video that are known; None for text to video.
        device: ``cpu`` or ``cuda``.
        precision: ``bf16-mixed`` and ``bf16-true`` keep large weights in bfloat16 and compute in it, ``auto`` does so
            where the hardware has it; anything else is float32.
        batch_size: videos denoised at once.
    """

    jobs: GenerationBatch
    given: GivenFrames | None
    device: str
    precision: str
    batch_size: int


@runtime_checkable
class System(Protocol):
    """Turns prompts, and frames where they are given, into videos; loads its parts when it needs them."""

    @property
    def clip_shape(self) -> tuple[int, int, int]:
        """(frames, height, width) of its videos."""
        ...

    @property
    def default_num_frames(self) -> int:
        """How many frames of a given video are known where the user does not say."""
        ...

    @property
    def source(self) -> str:
        """Where it comes from, for messages."""
        ...

    def generate(
        self, request: GenerationRequest, advance: Callable[[float], None]
    ) -> list[UInt8[np.ndarray, "T H W 3"]]:
        """The videos in the order of ``request.jobs``; ``advance`` is told of each share of a video that is done.

        Raises:
            UserError: a part that is missing or does not fit, or a request the system cannot serve.
        """
        ...


def release_memory(device: str) -> None:
    """Give the memory of parts that nothing refers to back to the machine."""
    gc.collect()  # modules refer to themselves, so counting references does not find them
    if device != "cpu":
        torch.cuda.empty_cache()
