"""LAION's aesthetic predictor, on frames of a clip."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import override

from vidlab.assets import sha256_of
from vidlab.curation.engine.records import Clip, Measurement
from vidlab.curation.engine.stage import Measure, check_given
from vidlab.curation.engine.video_file import VideoFile, spread
from vidlab.errors import UserError, first_line
from vidlab.hub import refuse_code
from vidlab.perceptual.weights import load_weights

SCORE = "aesthetic"
WIDTHS = (1024, 128, 64, 16, 1)  # of the published head, behind an image feature
PLACES = (0, 2, 4, 6, 7)  # of its linear layers in the published file; dropouts lie between


@dataclass(frozen=True)
class LaionAesthetic(Measure):
    """Mean score of frames by LAION's improved aesthetic predictor (v2), about 1 to 10, as ``aesthetic``.

    A head of five linear layers on the image feature of CLIP ViT-L/14, scaled to length 1.

    Args:
        clip: folder of the CLIP model in the form of transformers (``config.json``, ``model.safetensors``,
            ``preprocessor_config.json``).
        head: the published file of the head, ``sac+logos+ava1-l14-linearMSE.pth``, or its tensors as .safetensors.
        frames: number of frames, evenly over the clip; the paper takes five.

    Raises:
        UserError: a path is missing or holds something else.
    """

    clip: str | None = None
    head: str | None = None
    frames: int = 5

    not_in_version = ("clip", "head")

    def __post_init__(self) -> None:
        if self.frames < 1:
            raise UserError(f"frames={self.frames}: it must be 1 or more.")

    @property
    @override
    def provides(self) -> tuple[str, ...]:
        return (SCORE,)

    @override
    def check(self, key: str) -> None:
        clip, head = (None if given is None else Path(given).expanduser() for given in (self.clip, self.head))
        check_given(f"{key}.clip", clip, "the folder of CLIP ViT-L/14 as transformers stores it", "config.json")
        check_given(f"{key}.head", head, "the file sac+logos+ava1-l14-linearMSE.pth of LAION's aesthetic predictor")

    @override
    def weights(self) -> Sequence[str]:
        return [_digest(self.clip or ""), _digest(self.head or "")]

    @override
    def measure(self, video: VideoFile, clips: Sequence[Clip]) -> Sequence[Measurement]:
        model = aesthetic_model(str(self.clip), str(self.head))
        return [
            Measurement({SCORE: model.score(video.frames(clip, spread(clip.frames, self.frames)))}) for clip in clips
        ]


@cache
def _digest(path: str) -> str:
    """SHA-256 of a file, or of the weights in a folder."""
    place = Path(path).expanduser()
    if place.is_dir():
        return ",".join(sha256_of(file) for file in sorted(place.glob("*.safetensors")))
    return sha256_of(place) if place.is_file() else ""


@cache
def aesthetic_model(clip: str, head: str) -> "AestheticModel":
    """The networks, once per process.

    Raises:
        UserError: a file of them is missing or holds something else.
    """
    from transformers import CLIPImageProcessorPil, CLIPVisionModelWithProjection

    folder = Path(clip).expanduser()
    refuse_code(folder, "the folder of CLIP")
    try:
        tower: Any
        tower, told = CLIPVisionModelWithProjection.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
        prepare = CLIPImageProcessorPil.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # a strange folder raises wherever the library first stumbles over it
        reason = first_line(error)
        raise UserError(
            f"curation.aesthetic: clip={clip} is no readable CLIP with its image processor ({reason})."
        ) from error
    if told["missing_keys"]:
        raise UserError(
            f"curation.aesthetic: clip={clip}: {sorted(told['missing_keys'])[0]} is missing in its weights."
        )
    return AestheticModel(tower.eval(), prepare, load_head(Path(head).expanduser(), tower.config.projection_dim))


def aesthetic_head(width: int) -> nn.Sequential:
    """The head on features of ``width`` numbers; no activation lies between its layers, as published."""
    sizes = (width, *WIDTHS)
    return nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(sizes)))


def load_head(path: Path, width: int) -> nn.Sequential:
    """The head with the weights of a file, of which nothing but tensors is read.

    Raises:
        UserError: the file holds something else.
    """
    found = load_weights(str(path))
    head = aesthetic_head(width)
    for layer, place in zip(head, PLACES, strict=True):
        for name, parameter in layer.named_parameters():
            tensor = found.get(f"layers.{place}.{name}")
            if tensor is None or tensor.shape != parameter.shape:
                shape = "missing" if tensor is None else f"of shape {tuple(tensor.shape)}"
                raise UserError(
                    f"curation.aesthetic: head={path}: layers.{place}.{name} is {shape}, expected "
                    f"{tuple(parameter.shape)}; it is the head of another CLIP, or no aesthetic predictor."
                )
            parameter.data = tensor.float()
    return head.eval().requires_grad_(False)


class AestheticModel:
    """CLIP's image tower and the head.

    Args:
        tower: a ``CLIPVisionModelWithProjection``.
        prepare: its image processor.
        head: of ``aesthetic_head``.
    """

    def __init__(self, tower: Any, prepare: Any, head: nn.Sequential) -> None:
        self.tower, self.prepare, self.head = tower, prepare, head

    @torch.no_grad()
    def score(self, frames: np.ndarray) -> float:
        """The mean score of frames, uint8 (T, H, W, 3)."""
        from PIL import Image

        pixels = self.prepare(images=[Image.fromarray(frame) for frame in frames], return_tensors="pt")["pixel_values"]
        features: Tensor = self.tower(pixel_values=pixels).image_embeds.float()  # (T, D)
        scores = self.head(features / features.norm(dim=-1, keepdim=True))  # (T, 1)
        return float(scores.mean())
