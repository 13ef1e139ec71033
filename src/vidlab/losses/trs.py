"""The temporal regularized self-attention loss (TRS) of HARIVO: attention maps of neighboring frames stay alike."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from vidlab.clip import LossContext
from vidlab.errors import UserError
from vidlab.features import SELF_ATTENTION
from vidlab.losses.attention_variation import attention_variation
from vidlab.losses.base import check_weight


@dataclass(frozen=True)
class TRS:
    """sum_i lambda_i sum_j |A_i^j - A_i^(j-1)| with lambda_i = i / N (Kwon et al. 2024, HARIVO, eq. 3).

    A_i^j is the map of the i-th of N self-attentions over space at frame j; later layers count more. The paper does not
    say over what |.| is a mean or a sum. Here it is a mean over clips, heads, queries and keys, and the sums over
    frames and layers are sums, as they are written: at 256 x 256 and 24 frames the term is then about 0.9 times the
    share of attention that moves from frame to frame, of the size of the objective. Summed over all elements it would
    be a million times that, and averaged over pairs too it would be lost.

    Args:
        weight: 0.1 in the paper.
        chunk: queries whose maps are held at a time; None takes as many as suit the device.

    Raises:
        UserError: an argument out of range.
    """

    requested: ClassVar[frozenset[str]] = frozenset({SELF_ATTENTION})

    weight: float = 0.1
    chunk: int | None = None

    def __post_init__(self) -> None:
        check_weight("trs", self.weight)
        if self.chunk is not None and self.chunk < 1:
            raise UserError(f"losses.trs.chunk={self.chunk} must be at least 1, or null to suit the device.")

    def __call__(self, context: LossContext) -> Float[Tensor, ""]:
        """The unweighted term."""
        layers = context.output.features[SELF_ATTENTION]
        assert isinstance(layers, tuple)
        terms = [attention_variation(layer.q, layer.k, self.chunk) for layer in layers]
        # eq. 3: lambda_i = i / N
        weighted = [number / len(terms) * term for number, term in enumerate(terms, start=1)]
        return sum(weighted[1:], start=weighted[0])
