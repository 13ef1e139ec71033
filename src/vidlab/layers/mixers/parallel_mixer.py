"""A sum of sequence mixers that read the same tokens, such as attention beside a state space."""

from collections.abc import Callable, Sequence
from functools import reduce
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import override

from vidlab.errors import UserError
from vidlab.features.memory import Memory
from vidlab.layers.mixers.mixer import MixerKernels, Real, ResumableMixer, can_resume


class ParallelMixer(nn.Module):
    """The sum of what several mixers make of the same tokens, each with weights of its own.

    M4V's ablation has attention and a state space in parallel; how they are joined is not printed.

    Args:
        width: D.
        heads: N.
        kernels: each mixer takes its own.
        mixers: make the mixers.

    Raises:
        UserError: there are none.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        kernels: MixerKernels | None = None,
        mixers: Sequence[Callable[..., nn.Module]] = (),
    ) -> None:
        super().__init__()
        if not mixers:
            raise UserError("mixer=parallel: mixer.mixers is empty: name at least one mixer.")
        self.mixers = nn.ModuleList(make(width, heads, kernels or MixerKernels()) for make in mixers)
        self.resumable = all(can_resume(mixer) for mixer in self.mixers)

    @override
    def forward(self, x: Float[Tensor, "B L D"], real: Real | None = None) -> Float[Tensor, "B L D"]:
        return reduce(torch.add, (mixer(x, real) for mixer in self.mixers))

    def remember(self, x: Float[Tensor, "B L D"], real: Real | None = None) -> tuple[Float[Tensor, "B L D"], Memory]:
        """As a call; and what each of the mixers remembers."""
        mixed, memories = zip(*(mixer.remember(x, real) for mixer in self._resumable()), strict=True)
        return reduce(torch.add, mixed), Memory(parts=memories)

    def resume(self, x: Float[Tensor, "B L D"], memory: Memory) -> Float[Tensor, "B L D"]:
        """What a call would give for ``x`` after the tokens of ``memory``."""
        pairs = zip(self._resumable(), memory.parts, strict=True)
        return reduce(torch.add, (mixer.resume(x, part) for mixer, part in pairs))

    def _resumable(self) -> list[ResumableMixer]:
        return [cast(ResumableMixer, mixer) for mixer in self.mixers]
