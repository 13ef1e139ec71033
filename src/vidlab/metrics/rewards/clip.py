"""Scores of frames and captions by a frozen CLIP: its own, or one that was trained on human preferences (HPSv2)."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vidlab.clip import ClipBatch
from vidlab.metrics.clipsim import image_features, load_clip, text_features
from vidlab.metrics.rewards.open_clip import read_open_clip


class CLIPScore:
    """The mean over frames of the cosine of an image's and its caption's CLIP features; gradients pass to the pixels.

    The same number as the metric CLIPSIM gives.

    Args:
        path: a local folder of a CLIP with config.json, *.safetensors, its tokenizer and preprocessor_config.json, or a
            hub id such as ``openai/clip-vit-base-patch32``.

    Raises:
        UserError: the path is unset, not found, or no such model.
    """

    def __init__(self, path: str | None = None) -> None:
        self.loaded = load_clip(path, "losses.reward.scorers.clip.path")

    def __call__(self, pixels: Float[Tensor, "B 3 T H W"], batch: ClipBatch) -> Float[Tensor, "B"]:
        """A cosine for each clip."""
        return mean_cosines(self.loaded, pixels, batch.captions)


class HPSv2:
    """Human Preference Score v2 (Wu et al. 2023, arXiv 2306.09341): CLIP ViT-H/14 trained on people's choices.

    The score of a frame is the cosine of its features and its caption's, about 0.2 to 0.35.

    Args:
        path: the weights as they are published for HPSv2: a checkpoint whose ``state_dict`` has open_clip's names, such
            as ``HPS_v2.1_compressed.pt``. Nothing but tensors is read of it.
        clip: a local folder of the CLIP that they were trained from, which tells the architecture, the tokenizer and
            the normalization, such as that of ``laion/CLIP-ViT-H-14-laion2B-s32B-b79K``.

    Raises:
        UserError: a path is unset or not found, or the weights do not fit that CLIP.
    """

    def __init__(self, path: str | None = None, clip: str | None = None) -> None:
        self.loaded = load_clip(clip, "losses.reward.scorers.hps.clip")
        read_open_clip(
            self.loaded["model"], Path(path).expanduser() if path else None, "losses.reward.scorers.hps.path"
        )

    def __call__(self, pixels: Float[Tensor, "B 3 T H W"], batch: ClipBatch) -> Float[Tensor, "B"]:
        """A score for each clip."""
        return mean_cosines(self.loaded, pixels, batch.captions)


def mean_cosines(
    loaded: dict[str, Any], videos: Float[Tensor, "B 3 T H W"], captions: tuple[str, ...]
) -> Float[Tensor, "B"]:
    """The mean cosine of each clip's frames and its caption, in float32 whatever the trainer's precision."""
    with torch.autocast(videos.device.type, enabled=False):
        with torch.no_grad():
            text = F.normalize(text_features(loaded, captions, videos.device), dim=1)  # (B, D)
        shown = image_features(loaded, videos.float().transpose(1, 2).flatten(0, 1))  # (B T, D)
        frames = F.normalize(shown, dim=1).unflatten(0, (len(videos), -1))  # (B, T, D)
        return (frames * text[:, None]).sum(dim=2).mean(dim=1)
