"""Small MM-DiM models and inputs with history, for the tests beside this file."""

from functools import partial

import torch
from torch import nn

from vidlab.backbones.mmdim import MMDiM
from vidlab.clip import DenoiserInput, History, LatentShape, TextEmbedding
from vidlab.layers.mixers.ssd_mixer import SSDMixer

TEXT, CHANNELS = 10, 3
LATENT = LatentShape(channels=CHANNELS, frames=1, height=8, width=8)
SSD = partial(SSDMixer, conv=4)


def make(awake: bool = True, **settings) -> MMDiM:
    """A model of 24 wide in float64; awake, no parameter is zero."""
    sizes = {"width": 24, "depth": 2, "heads": 2, "dual_depth": 2, "patch": (1, 2, 2), "mixer": SSD, "latent": LATENT}
    model = MMDiM(text_width=TEXT, **(sizes | settings)).double()
    for parameter in model.parameters() if awake else ():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.3)
    return model.eval()


def text_of(lengths=(5, 2)) -> TextEmbedding:
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    count = len(lengths)
    return TextEmbedding(
        torch.randn(count, max(lengths), TEXT).double(), mask, torch.randn(count, TEXT, dtype=torch.float64)
    )


def history(frames: int, size: int, first: int = 0, batch: int = 2) -> History:
    return History(torch.randn(batch, CHANNELS, frames, size, size).double(), torch.arange(first, first + frames))


def example(frames=1, size=8, text=True, past=(), batch=2) -> DenoiserInput:
    t = torch.rand(batch)
    latents = torch.randn(batch, CHANNELS, frames, size, size).double()
    return DenoiserInput(latents, t, 1000 * t, text_of((5, 2, 3)[:batch]) if text else None, history=tuple(past))


def pyramid(text=True, frames=1) -> DenoiserInput:
    """Two frames at a quarter of the size, one at half of it, and the current ones at full size."""
    return example(frames=frames, text=text, past=[history(2, 2), history(1, 4, first=2)])
