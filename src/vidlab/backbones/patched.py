"""What denoisers on linear patches share: embedding latents with their controls, and growing from image models."""

import math
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import override

from vidlab.backbones.base import BackboneSpec, BlockSpec, VideoDenoiser, split_controls
from vidlab.clip import DenoiserInput, LatentShape
from vidlab.layers.patches import inflated_embedding, inflated_head, patchify


class ControlEmbed(nn.Module):
    """Embeds patches of one control; ``out`` starts at zero."""

    def __init__(self, patch_channels: int, width: int) -> None:
        super().__init__()
        self.embed = nn.Linear(patch_channels, width)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, patches: Float[Tensor, "B L K"]) -> Float[Tensor, "B L D"]:
        """What to add to the tokens."""
        return self.out(self.embed(patches))


class PatchedDenoiser(VideoDenoiser):
    """A denoiser with a linear ``embed``, a ``ControlEmbed`` per control in ``controls``, and a linear ``head``."""

    patch: tuple[int, int, int]
    latent_channels: int
    control_channels: tuple[int, ...]
    embed: nn.Linear
    controls: nn.ModuleList

    def declare(
        self,
        patch: Sequence[int],
        control_channels: Sequence[int],
        reads_history: bool = False,
        features: frozenset[str] = frozenset(),
        blocks: BlockSpec | None = None,
        shares_sequence: bool = False,
        temporal: tuple[str, ...] = (),
    ) -> None:
        """Set ``spec``: a transformer of blocks that reads pooled text and controls."""
        frames, rows, columns = patch
        self.patch, self.control_channels = (frames, rows, columns), tuple(control_channels)
        self.spec = BackboneSpec(
            patch=self.patch, reads_controls=True, control_channels=self.control_channels, takes_attention=True,
            reads_history=reads_history, features=features, hidden_matrices=("blocks.*",), blocks=blocks,
            shares_sequence=shares_sequence, temporal=temporal,
        )  # fmt: skip

    @override
    def token_count(self, latent: LatentShape) -> int:
        return latent.frames * latent.height * latent.width // math.prod(self.patch)

    def embed_patches(self, input: DenoiserInput) -> Float[Tensor, "B L D"]:
        """Patches of the noisy latents, plus those of each control."""
        tokens = self.embed(patchify(input.latents, self.patch))  # (B, L, D)
        for embed, part in zip(self.controls, split_controls(input.controls, self.control_channels), strict=True):
            tokens = tokens + embed(patchify(part.to(tokens.dtype), self.patch))
        return tokens

    @override
    def inflated(self, name: str, weight: Tensor) -> Tensor | None:
        """Patch embeddings and head of a model with shorter patches, such as the text-to-image parent."""
        if name == "embed.weight":
            return inflated_embedding(weight, self.latent_channels, self.patch)
        if name in ("head.weight", "head.bias"):
            return inflated_head(weight, self.latent_channels, self.patch)
        for number, channels in enumerate(self.control_channels):
            if name == f"controls.{number}.embed.weight":
                return inflated_embedding(weight, channels, self.patch)
        return None
