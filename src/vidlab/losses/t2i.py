"""HARIVO's regularization: the video model stays near its frozen image model where frames are nearly clean."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from vidlab.clip import LossContext
from vidlab.features import IMAGE_BRANCH
from vidlab.losses.base import check_weight


@dataclass(frozen=True)
class T2IRegularization:
    """(1 - t) mean |f_video - f_image|^2, averaged over clips (Kwon et al. 2024, HARIVO, eq. 2).

    f_image is the prediction of the image model for each frame alone, behind whatever is trained before it (the mapping
    network), and gradients pass through both branches: the term keeps what that gives within what the image model
    knows. The weight 1 - t, in the paper 1 - t / T, spares high noise, where an image model's frames have nothing to do
    with each other. Squares are averaged over elements, not summed as the paper writes, as in the objective beside it.

    Args:
        weight: 0.1 in the paper.

    Raises:
        UserError: a negative weight.
    """

    requested: ClassVar[frozenset[str]] = frozenset({IMAGE_BRANCH})

    weight: float = 0.1

    def __post_init__(self) -> None:
        check_weight("t2i", self.weight)

    def __call__(self, context: LossContext) -> Float[Tensor, ""]:
        """The unweighted term."""
        image, t = context.output.features[IMAGE_BRANCH], context.input.t
        assert isinstance(image, Tensor)
        error = (context.output.prediction.float() - image.float()).square().mean(dim=(1, 3, 4))  # (B, T)
        share = 1 - t.float()  # of eq. 2: (B,), or (B, T) with a level per latent frame
        return (error * (share if share.ndim == 2 else share[:, None])).mean()
