"""The text-to-image model alone: Stable Diffusion's UNet on each frame by itself, trained."""

from collections.abc import Sequence
from dataclasses import replace

from torch import nn
from typing_extensions import override

from vidlab.backbones.base import BackboneSpec, VideoDenoiser, split_controls
from vidlab.backbones.harivo.unet import (
    FrameControls,
    FramePass,
    clips_of,
    frame_levels,
    frames_of,
    make_unet,
    small_config,
    text_of,
)
from vidlab.clip import DenoiserInput, DenoiserOutput, LatentShape
from vidlab.errors import UserError

# Matrices of the attention alone: kernels are many, and orthogonalizing them takes longer than the rest of a step.
UNET_MATRICES = ("*.attentions.*",)


def check_single_places(patch: Sequence[int]) -> None:
    """Refuse tokens of several latent positions: a UNet reads them one by one.

    Raises:
        UserError: saying which setting makes them.
    """
    if any(size != 1 for size in patch):
        raise UserError(
            f"model.token is {list(patch)} latent positions, and a UNet reads them one by one: use model.token=[1,1,1]."
        )


class ImageUNet(VideoDenoiser):
    """A UNet2DConditionModel of diffusers (Rombach et al. 2022, arXiv 2112.10752) that takes a clip as single frames.

    With width 320, depth 2 and 8 heads it is the one of Stable Diffusion 1.5. Clips whose frames are noised to levels
    of their own are taken too.

    Args:
        latent: shape of the latents.
        text_width: width of text tokens.
        width: channels of the first of four levels; the others have 2, 4 and 4 times as many.
        depth: residual blocks to a level.
        heads: attention heads.
        patch: (1, 1, 1): a UNet reads latent positions one by one.
        activation_checkpointing: to save memory recompute each block in the backward pass (True, ``block``), or
            all of it but matrix products and attention (``selective``).
        control_channels: channels of each part of the controls, added through convolutions that start at zero.

    Raises:
        UserError: sizes that do not divide or are not positive.
    """

    def __init__(
        self,
        latent: LatentShape,
        text_width: int,
        width: int = 320,
        depth: int = 2,
        heads: int = 8,
        patch: Sequence[int] = (1, 1, 1),
        activation_checkpointing: bool | str = False,
        control_channels: Sequence[int] = (),
    ) -> None:
        super().__init__()
        check_single_places(patch)
        self.spec = replace(IMAGE_SPEC, control_channels=tuple(control_channels), hidden_matrices=UNET_MATRICES)
        self.activation_checkpointing, self.text_width = activation_checkpointing, text_width
        self.body = make_unet(small_config(latent.channels, text_width, width, depth, heads))
        self.controls = nn.ModuleList(FrameControls(channels, width) for channels in control_channels)

    @override
    def forward(self, input: DenoiserInput) -> DenoiserOutput:
        self.check_requested(input.requested)
        count = input.latents.shape[2]
        text, bias = (part.repeat_interleave(count, 0) for part in text_of(input, self.text_width))
        parts = split_controls(input.controls, self.spec.control_channels)
        added = [embed(part) for embed, part in zip(self.controls, parts, strict=True)]
        extra = sum(added[1:], added[0]) if added else None
        walk = FramePass(frame_levels(input), text, bias, run=self.run, extra=extra)
        return DenoiserOutput(clips_of(walk(self.body, frames_of(input.latents)), count))

    @override
    def token_count(self, latent: LatentShape) -> int:
        return latent.frames * latent.height * latent.width


IMAGE_SPEC = BackboneSpec(reads_controls=True, reads_pooled_text=False)
