"""The protocol of every video denoiser."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vidlab.clip import Controls, DenoiserInput, DenoiserOutput, LatentShape


class VideoDenoiser(nn.Module, ABC):
    """Reads noisy latents and conditions, returns a prediction in the shape of the latents.

    Args of every subclass begin with ``latent: LatentShape`` and ``text_width: int``; the rest is its own. One that has
    attention takes its kernel's name as ``attention``, one that reads controls the channels of their parts as
    ``control_channels``. ``features`` names what can be requested, ``reads_pooled_text`` says whether
    ``input.text.pooled`` is used: what is learned for it alone is not trained where it is not.
    """

    features: frozenset[str] = frozenset()
    reads_pooled_text: bool = True
    activation_checkpointing: bool = False

    @abstractmethod
    def forward(self, input: DenoiserInput) -> DenoiserOutput:
        """Predict the objective's target.

        Raises:
            ValueError: a requested feature this backbone does not have, or latents it cannot take.
        """

    @abstractmethod
    def token_count(self, latent: LatentShape) -> int:
        """Tokens per clip that the backbone processes for latents of this shape."""

    def check_requested(self, requested: frozenset[str]) -> None:
        """Refuse features that this backbone does not have."""
        unknown = requested - self.features
        if unknown:
            raise ValueError(
                f"{type(self).__name__} has no feature {sorted(unknown)}; it has {sorted(self.features) or 'none'}"
            )

    def micro_shapes(self, latent: LatentShape) -> dict[str, tuple[int, ...]]:
        """What ``input.micro`` must hold for latents of this shape, by name, the shape for one clip."""
        return {}

    def inflated(self, name: str, weight: Tensor) -> Tensor | None:
        """A weight of an image model in the shape this video model needs, or None where there is no such rule."""
        return None

    def run(self, block: nn.Module, *inputs: Any) -> Any:
        """Apply a block; with ``activation_checkpointing`` its activations are recomputed in the backward pass."""
        if self.activation_checkpointing and self.training:
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)


def split_controls(
    controls: Controls | None, control_channels: Sequence[int]
) -> tuple[Float[Tensor, "B K T H W"], ...]:
    """The parts of the control channels a backbone embeds one by one.

    Raises:
        ValueError: controls of another width than the backbone was built for, or none where it needs them.
    """
    found = 0 if controls is None else controls.channels.shape[1]
    if found != sum(control_channels):
        raise ValueError(f"the backbone was built for {sum(control_channels)} control channels and got {found}")
    return () if controls is None else controls.channels.split(list(control_channels), dim=1)
