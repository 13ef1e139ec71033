"""CLIPSIM: how well frames fit their caption, by any CLIP."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vidlab.errors import UserError, first_line
from vidlab.hub import refuse_code
from vidlab.metrics.base import ClipMetric
from vidlab.metrics.sets.features import fingerprint
from vidlab.perceptual.resize import resize_frames

_FILES = ("*.json", "*.safetensors", "*.txt", "*.model")
_FRAMES_PER_PASS = 64


class CLIPSIM(ClipMetric):
    """The mean over frames and clips of the cosine of an image's and its caption's CLIP features (GODIVA, Wu et al.
    2021, arXiv:2104.14806), which papers on MSR-VTT give with ViT-B/32.

    The scale is the raw cosine, in [-1, 1] and about 0.2 to 0.35 for fitting captions; others give 100 times as much.
    Negative cosines stay negative. Higher is better. It reads single frames: blind to their order, and freezing a clip
    hardly moves it. Frames are brought to the network's size by antialiased bicubic resizing of the short side and cut
    to the center, then normalized as the model's ``preprocessor_config.json`` says.

    Args:
        path: a local folder of a CLIP with config.json, *.safetensors, its tokenizer and preprocessor_config.json, or a
            hub id such as ``openai/clip-vit-base-patch32``. Pickled weights are not read.
        frames, stride, seed, resamples: as for every metric of single clips.

    Raises:
        UserError: the path is unset, not found, or no such model.
    """

    name: ClassVar[str] = "clipsim"
    needs_captions = True
    higher_is_better = True

    def __init__(
        self,
        path: str | None = None,
        frames: int | None = None,
        stride: int = 1,
        seed: int = 0,
        resamples: int = 1000,
    ) -> None:
        super().__init__(frames, stride, seed, resamples=resamples)
        # a record: the frozen weights are no part of the metric's own state
        self._loaded = load_clip(path, "metrics.clipsim.path")
        self._settings = {"clip": fingerprint(self._loaded["model"]), "scale": "cosine"}

    def settings(self) -> Mapping[str, str]:
        """The network's weights and the scale."""
        return self._settings

    def score(
        self,
        videos: Float[Tensor, "B 3 T H W"],
        reference: Float[Tensor, "B 3 T H W"] | None,
        captions: Sequence[str],
    ) -> Float[Tensor, "B"]:
        """Mean cosine per clip."""
        clips = len(videos)
        with torch.inference_mode(), torch.autocast(videos.device.type, enabled=False):
            text = text_features(self._loaded, captions, videos.device)
            parts = videos.transpose(1, 2).flatten(0, 1).split(_FRAMES_PER_PASS)
            shown = torch.cat([image_features(self._loaded, part) for part in parts])
        frames = F.normalize(shown.double(), dim=1).view(clips, -1, shown.shape[1])
        return (frames * F.normalize(text.double(), dim=1)[:, None]).sum(2).mean(1).clone()


def text_features(loaded: dict[str, Any], captions: Sequence[str], device: torch.device) -> Float[Tensor, "B D"]:
    """Features of captions, not normalized."""
    tokens = loaded["tokenizer"](list(captions), padding=True, truncation=True, return_tensors="pt")
    model = loaded["model"].to(device)
    return _pooled(model.get_text_features(**{name: x.to(device) for name, x in tokens.items()}))


def image_features(loaded: dict[str, Any], images: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N D"]:
    """Features of images in [-1, 1], not normalized."""
    model = loaded["model"].to(images.device)
    return _pooled(model.get_image_features(pixel_values=prepared(loaded, images)))


def prepared(loaded: dict[str, Any], images: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N 3 size size"]:
    """Images in the network's size and normalization."""
    size, (height, width) = loaded["size"], images.shape[2:]
    scale = size / min(height, width)
    tall, wide = max(size, round(height * scale)), max(size, round(width * scale))
    images = resize_frames(images, tall, wide, "bicubic_antialias")
    top, left = (tall - size) // 2, (wide - size) // 2
    images = (images[:, :, top : top + size, left : left + size] + 1) / 2
    mean, std = (torch.tensor(loaded[n], device=images.device).view(1, 3, 1, 1) for n in ("mean", "std"))
    return (images - mean) / std


def _pooled(output: Any) -> Tensor:
    """Projected features, which transformers returns bare or, from version 5 on, in a record."""
    return output if isinstance(output, Tensor) else output.pooler_output


def load_clip(path: str | None, key: str) -> dict[str, Any]:
    """The frozen model, its tokenizer, image size and normalization.

    Args:
        path: a local folder or a hub id.
        key: the setting that named it, for messages.

    Raises:
        UserError: the path is unset, not found, or no such model.
    """
    if not path:
        raise UserError(
            f"{key} is not set: give a local folder of a CLIP or a hub id such as openai/clip-vit-base-patch32."
        )
    import json

    from transformers import AutoModel, AutoTokenizer

    folder, local = _folder(path, key), {"local_files_only": True, "trust_remote_code": False}
    refuse_code(folder, f"{key}={path}")
    try:
        settings = json.loads((folder / "preprocessor_config.json").read_text("utf-8"))
        mean, std = settings["image_mean"], settings["image_std"]
        model = AutoModel.from_pretrained(folder, use_safetensors=True, **local).eval().requires_grad_(False)
        tokenizer = AutoTokenizer.from_pretrained(folder, **local)
        size = int(model.config.vision_config.image_size)
        if not hasattr(model, "get_image_features"):
            raise ValueError("it has no image and text features")
    except Exception as error:  # a strange configuration raises wherever the library first stumbles over it
        reason = first_line(error)
        raise UserError(
            f"{key}={path}: {folder} is not a readable CLIP ({reason}). It needs config.json, "
            "*.safetensors, the tokenizer's files and preprocessor_config.json."
        ) from error
    return {"model": model, "tokenizer": tokenizer, "size": size, "mean": mean, "std": std}


def _folder(path: str, key: str) -> Path:
    """The local folder behind a path or a hub id."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    if path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise UserError(f"{key}={path}: there is no such folder ({folder.absolute()}).")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(path, allow_patterns=list(_FILES)))
    # The hub client raises its own, its HTTP library's and the system's errors.
    except Exception as error:
        reason = first_line(error)
        raise UserError(
            f"{key}={path} is no local folder, and the hub did not give it ({reason}). Correct the "
            "name, connect and run again, or give a local folder."
        ) from error
