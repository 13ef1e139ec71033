"""Features that losses may ask of a denoiser, by name, and the one that is no plain tensor.

A denoiser names those it has in ``BackboneSpec.features``, and returns exactly those of ``DenoiserInput.requested``.
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

# Queries and keys of its decoder's, or later half of, self-attentions over space: a tuple of ``FrameAttention``, in the
# order in which they run.
SELF_ATTENTION = "self_attention"
# What a UNet has at its bottleneck (Kwon et al. 2023, Asyrp): (B, C, T, h, w).
H_SPACE = "h_space"
# The prediction of a frozen image model for each frame alone, with gradient to what is before it: as the prediction.
IMAGE_BRANCH = "image_branch"


@dataclass(frozen=True)
class FrameAttention:
    """One layer's queries and keys frame by frame; of each frame and head the map is softmax(q k^T / sqrt(d)).

    Args:
        q: queries as they are compared, after normalization and rotation; L tokens to a frame.
        k: keys.
    """

    q: Float[Tensor, "B T L N d"]
    k: Float[Tensor, "B T L N d"]


Feature = Tensor | tuple[FrameAttention, ...]
