"""Keyed randomness: every random quantity of a clip is a pure function of what it belongs to.

A number is drawn from a generator seeded by (seed, clip key, epoch, visit within the epoch, purpose). It does not
depend on the batch, the rank, the worker or the order of calls, so resuming, resharding and comparing backbones see
the same numbers.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from hashlib import blake2b

import torch
from torch import Tensor

KeyPart = str | int


def seed_of(*parts: KeyPart) -> int:
    """Hash any mixture of strings and integers to a seed in [0, 2**63).

    Parts are separated by a control character, so ``("ab", "c")`` and ``("a", "bc")`` differ.
    """
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(*parts: KeyPart, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator seeded by ``seed_of(*parts)``."""
    return torch.Generator(device=device).manual_seed(seed_of(*parts))


def moment(epoch: int, visit: int) -> KeyPart:
    """The part of a key that tells one visit of a clip from another: the epoch, and of later visits the number too.

    Args:
        epoch: from 0.
        visit: how often the clip was visited earlier in the epoch.
    """
    return f"{epoch}.{visit}" if visit else epoch


@dataclass(frozen=True)
class KeyedRNG:
    """The random numbers of one batch: one independent stream per clip and purpose.

    Args:
        seed: the run's seed.
        keys: clip keys, one per clip of the batch.
        epochs: the epoch each clip is visited in (a batch may straddle two epochs).
        device: where numbers are made. CPU and CUDA generators give different streams for one seed.
        visits: how often each clip was visited earlier in its epoch; empty where none was.
        batch: the global batch number, of which ``shared`` numbers are.
    """

    seed: int
    keys: tuple[str, ...]
    epochs: tuple[int, ...]
    device: torch.device | str = "cpu"
    visits: tuple[int, ...] = ()
    batch: int = 0

    def __post_init__(self) -> None:
        if len(self.keys) != len(self.epochs):
            raise ValueError(f"{len(self.keys)} keys but {len(self.epochs)} epochs")
        if self.visits and len(self.keys) != len(self.visits):
            raise ValueError(f"{len(self.keys)} keys but {len(self.visits)} visits")

    @property
    def on_host(self) -> "KeyedRNG":
        """Made on the CPU, for what the host decides: read from a GPU it would wait for all that is queued there."""
        return self if torch.device(self.device).type == "cpu" else replace(self, device="cpu")

    def normal(self, purpose: str, shape: tuple[int, ...]) -> Tensor:
        """Standard normal float32 numbers of shape ``(B, *shape)``."""
        out = torch.empty((len(self.keys), *shape), device=self.device)
        for row, source in zip(out, self._generators(purpose), strict=True):
            row.normal_(generator=source)
        return out

    def uniform(self, purpose: str, shape: tuple[int, ...] = ()) -> Tensor:
        """Uniform float32 numbers in [0, 1) of shape ``(B, *shape)``."""
        out = torch.empty((len(self.keys), *shape), device=self.device)
        for row, source in zip(out.unbind(0), self._generators(purpose), strict=True):
            row.uniform_(generator=source)
        return out

    def shared(self, purpose: str) -> float:
        """One uniform number in [0, 1) for all clips of a global batch, the same on every rank.

        For what clips of a batch must agree in, such as their shape. It is keyed by (seed, batch number, purpose), and
        made on the CPU.
        """
        return torch.rand((), generator=generator(self.seed, "batch", self.batch, purpose)).item()

    def _generators(self, purpose: str) -> Iterator[torch.Generator]:
        visits = self.visits or (0,) * len(self.keys)
        for key, epoch, visit in zip(self.keys, self.epochs, visits, strict=True):
            yield generator(self.seed, key, moment(epoch, visit), purpose, device=self.device)
