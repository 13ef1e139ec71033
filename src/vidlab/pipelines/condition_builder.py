"""What a backbone is told of clips: text, known frames, structure and micro-conditions, for each pass of guidance."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vidlab.autoencoders.base import Autoencoder
from vidlab.backbones.base import VideoDenoiser
from vidlab.clip import IMAGE_PROMPT, Conditions, LatentShape, TextEmbedding
from vidlab.conditioning.base import Conditioning, FrameConditions
from vidlab.conditioning.micro import micro_conditions
from vidlab.randomness import KeyedRNG
from vidlab.structure import StructureSignal
from vidlab.text.base import TextEncoder

Latents = Float[Tensor, "B C t h w"]
Pixels = Float[Tensor, "B 3 T H W"]
Frames = Bool[Tensor, "B T"]
Micro = Mapping[str, Tensor | Sequence[float]]


@dataclass(frozen=True)
class ConditionBuilder:
    """Makes the conditions of a model's clips, in training and in sampling alike.

    Args:
        denoiser: says which micro-conditions it reads.
        autoencoder: encodes known frames.
        text_encoder: captions to features.
        conditioning: how known frames enter.
        clip_shape: (frames, height, width) of a sampled clip in pixels.
    """

    denoiser: VideoDenoiser
    autoencoder: Autoencoder
    text_encoder: TextEncoder
    conditioning: Conditioning
    clip_shape: tuple[int, int, int]

    @property
    def latent(self) -> LatentShape:
        """Latents of a sampled clip."""
        return LatentShape(*self.autoencoder.latent_shape(*self.clip_shape))

    def build(
        self,
        text: TextEmbedding,
        given: FrameConditions,
        latents: Latents,
        size: tuple[int, int, int],
        draw: KeyedRNG | None = None,
        micro: Micro | None = None,
    ) -> Conditions:
        """Everything a backbone is told of clips of these sizes; with ``draw``, in training, tokens may be dropped."""
        shapes = self.denoiser.micro_shapes(LatentShape(*latents.shape[1:]))
        numbers = micro_conditions(shapes, size, len(latents), draw, micro)
        return Conditions(
            text=text,
            known=given.known,
            history=given.history,
            controls=given.controls,
            micro={name: value.to(latents.device) for name, value in numbers.items()},
            structure=given.structure,
        )

    def nothing_known(self, pixels: Pixels) -> FrameConditions:
        """What tells of no frame, for clips of this size, in the form the backbone reads."""
        if not self.conditioning.control_channels(self.latent, self.autoencoder.stride):
            return FrameConditions()
        unknown = torch.zeros(pixels.shape[0], pixels.shape[2], dtype=torch.bool, device=pixels.device)
        return self.conditioning.for_inference(pixels, unknown, self.autoencoder)

    def for_guidance(
        self,
        prompts: Sequence[str],
        noise: Latents,
        pixels: Pixels | None,
        known: Frames | None,
        micro: Micro | None,
        structure: StructureSignal | None,
    ) -> dict[str, Conditions]:
        """The conditions of each pass that guidance may ask for, of one sampled clip for each prompt.

        Args:
            prompts: one per clip.
            noise: of the sampled clips, where the denoiser is.
            pixels: clips whose frames marked in ``known`` are given; None gives none.
            known: True at given frames.
            micro: micro-conditions by name, where the plain ones will not do.
            structure: signals that the clips follow in all passes: guidance is by the text, not by them.

        Returns:
            ``full``: text and known frames; ``image``: known frames alone; ``null``: neither.

        Raises:
            UserError: frames are given that the conditioning cannot take.
        """
        device = noise.device
        given = nothing = self.nothing_known(torch.zeros(len(prompts), 3, *self.clip_shape, device=device))
        if pixels is not None and known is not None:
            given = self.conditioning.for_inference(pixels.to(device), known.to(device), self.autoencoder)
        if structure is not None:
            structure = replace(structure, maps=structure.maps.to(device))
            given, nothing = replace(given, structure=structure), replace(nothing, structure=structure)
        null, size = self.text_encoder([""] * len(prompts)), self.clip_shape
        with_text = {**(micro or {}), IMAGE_PROMPT: (1,)}
        return {
            "full": self.build(self.text_encoder(prompts), given, noise, size, micro=with_text),
            "image": self.build(null, given, noise, size, micro=micro),
            "null": self.build(null, nothing, noise, size, micro=micro),
        }
