"""Small parts of HARIVO for tests: latents, text, a model of few thousand parameters, an image model in a folder."""

from pathlib import Path

import torch
from torch import nn

from vidlab.backbones.harivo.image_model import ImageModel
from vidlab.backbones.harivo.model import HARIVO
from vidlab.backbones.harivo.unet import make_unet, small_config
from vidlab.clip import DenoiserInput, LatentShape, TextEmbedding

LATENT = LatentShape(channels=4, frames=3, height=8, width=8)
TEXT = 8
SIZES = {"width": 8, "depth": 2, "heads": 2}


def make(path: str | None = None, latent: LatentShape = LATENT, **settings) -> HARIVO:
    return HARIVO(latent, TEXT, ImageModel(path), **{**SIZES, "text_tokens": 5, **settings})


def shaken(model: nn.Module, std: float = 0.1) -> nn.Module:
    """Every trainable parameter random, so that none is silent."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=std)
    return model


def example(frames: int = 3, clips: int = 2, requested=frozenset()) -> DenoiserInput:
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])[:clips]
    text = TextEmbedding(torch.randn(clips, 5, TEXT) * mask[..., None], mask, torch.randn(clips, TEXT))
    t = torch.tensor([0.3, 0.8])[:clips]
    return DenoiserInput(torch.randn(clips, 4, frames, 8, 8), t, 1000 * t, text, requested=requested)


def per_frame(model: HARIVO, input: DenoiserInput, latents: torch.Tensor | None = None) -> torch.Tensor:
    """What diffusers' own UNet predicts of each frame; levels and text are repeated by hand."""
    latents = input.latents if latents is None else latents
    found = [
        model.body(latents[:, :, j], input.embedded_t, input.text.tokens,
                   encoder_attention_mask=input.text.mask).sample
        for j in range(latents.shape[2])
    ]  # fmt: skip
    return torch.stack(found, dim=2)


def saved_image_model(folder: Path, seed: int = 1, **changes) -> Path:
    """A folder in diffusers' form, with a folder ``unet``."""
    torch.manual_seed(seed)
    unet = make_unet({**small_config(4, TEXT, **SIZES), **changes})
    unet.save_pretrained(folder / "unet")
    return folder
