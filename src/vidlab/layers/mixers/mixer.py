"""What every sequence mixer is: (B, L, D) tokens in, (B, L, D) tokens out, from left to right."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Bool, Float
from torch import Tensor

from vidlab.features.memory import Memory
from vidlab.layers.kernels import AttentionKernel
from vidlab.layers.kernels import auto as auto_attention
from vidlab.layers.mixers.ssm_kernels import SSMKernel
from vidlab.layers.mixers.ssm_kernels import auto as auto_ssm

Real = Bool[Tensor, "B L"]


class Mixer(Protocol):
    """A causal mixer: the output at a token depends on it and on the real tokens before it, never on a pad."""

    def __call__(self, x: Float[Tensor, "B L D"], real: Real | None = None) -> Float[Tensor, "B L D"]:
        """Mix.

        Args:
            x: tokens in the order of the scan.
            real: False at pads, which may stand anywhere; None where every token is real. What comes out at a pad
                has no meaning.
        """
        ...


@runtime_checkable
class ResumableMixer(Mixer, Protocol):
    """A mixer that can stop and go on: ``remember`` of a beginning and ``resume`` of the rest are one call of both.

    Attributes:
        resumable: False where it depends on a part that cannot.
    """

    resumable: bool

    def remember(self, x: Float[Tensor, "B L D"], real: Real | None = None) -> tuple[Float[Tensor, "B L D"], Memory]:
        """As a call; and what later tokens need of these."""
        ...

    def resume(self, x: Float[Tensor, "B L D"], memory: Memory) -> Float[Tensor, "B L D"]:
        """What a call would give for ``x``, all real, after the tokens of ``memory``."""
        ...


def can_resume(mixer: object) -> bool:
    """Whether a mixer can stop and go on."""
    return isinstance(mixer, ResumableMixer) and mixer.resumable


@dataclass(frozen=True)
class MixerKernels:
    """The kernels that a mixer may choose from; each takes its own.

    Args:
        attention: softmax attention, ``attention=``.
        ssm: state spaces, ``ssm=``.
    """

    attention: AttentionKernel = auto_attention
    ssm: SSMKernel = auto_ssm
