"""IP-Adapter (Ye et al. 2023, arXiv 2308.06721): a picture as a prompt, read by the cross-attention beside the text."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vidlab.backbones.harivo.unet import record_attention
from vidlab.errors import UserError, first_line
from vidlab.hub import refuse_code
from vidlab.tensors import read_tensors, refuse_non_finite, refuse_pickled

AGAIN = "Fetch it again."
PARTS = ("image_proj.", "ip_adapter.")
# Normalization of CLIP's pictures (Radford et al. 2021, code).
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class ImagePrompt(nn.Module):
    """Tokens of a picture, and those of none, which guidance predicts without it.

    Args:
        tokens: of the picture and of none.
    """

    tokens: Float[Tensor, "2 I D"]

    def __init__(self, tokens: Float[Tensor, "2 I D"]) -> None:
        super().__init__()
        self.register_buffer("tokens", tokens)

    def forward(self, present: Float[Tensor, "B 1"], frames: int) -> Float[Tensor, "BT I D"]:
        """Those of every frame; ``present`` is 1 where a clip follows the picture, 0 elsewhere."""
        with_it, without = self.tokens  # (I, D) each
        return torch.where(present[..., None] > 0, with_it, without).repeat_interleave(frames, 0)


def add_image_prompt(
    body: Any,
    path: str,
    features: Float[Tensor, "1 ..."],
    nothing: Float[Tensor, "1 ..."],
    scale: float = 1.0,
    state: Mapping[str, Mapping[str, Tensor]] | None = None,
) -> ImagePrompt:
    """Let a UNet's cross-attention read a picture.

    Args:
        body: the UNet; its attention to text gets maps for the picture's tokens.
        path: a ``.safetensors`` file of an IP-Adapter as published, for Stable Diffusion 1.
        features: of the picture, (1, E) or for an IP-Adapter Plus (1, L, E), see ``picture_features``.
        nothing: those that stand for no picture.
        scale: what its attention is multiplied by.
        state: what ``read_ip_adapter`` has read of the file; None reads it.

    Raises:
        UserError: it is damaged, of another kind, or for another UNet or image encoder.
    """
    state = read_ip_adapter(path) if state is None else state
    try:
        body._load_ip_adapter_weights([state], low_cpu_mem_usage=False)
        body.requires_grad_(False)
        with torch.no_grad():
            tokens = [body.encoder_hid_proj([part[:, None].to(body.dtype)])[0][0, 0] for part in (features, nothing)]
    except (RuntimeError, KeyError) as error:  # shapes and names of another model, wherever they are met first
        reason = str(error).strip().splitlines()[-1].strip()
        raise UserError(
            f"ip_adapter.path={path} is for another UNet than this image model or another image encoder ({reason})."
        ) from None
    record_attention(body)  # the loader has given the decoder's self-attention other processors
    for processor in body.attn_processors.values():
        if hasattr(processor, "to_k_ip"):
            processor.scale = [scale]
    return ImagePrompt(torch.stack(tokens))


def read_ip_adapter(path: str) -> dict[str, dict[str, Tensor]]:
    """The two parts of a published file, ``image_proj`` and ``ip_adapter``.

    Raises:
        UserError: it is not there, damaged, or no IP-Adapter of a kind that is read.
    """
    file = Path(path).expanduser()
    refuse_pickled(file, f"ip_adapter.path={path}")
    if not file.is_file():
        raise UserError(f"ip_adapter.path={path}: there is no such file.")
    raw = read_tensors(file, AGAIN, torch.float32)
    refuse_non_finite(raw, f"ip_adapter.path={path}", AGAIN)
    strange = [name for name in raw if not name.startswith(PARTS)]
    parts = {part[:-1]: {n.removeprefix(part): v for n, v in raw.items() if n.startswith(part)} for part in PARTS}
    if strange or not all(parts.values()):
        raise UserError(f"ip_adapter.path={path} is no IP-Adapter: {strange[0] if strange else 'a part is absent'}.")
    if not ({"proj.weight", "latents"} & parts["image_proj"].keys()) or any("lora" in n for n in parts["ip_adapter"]):
        raise UserError(f"ip_adapter.path={path}: IP-Adapter and IP-Adapter Plus are read, not those of faces.")
    return parts


def reads_patches(state: Mapping[str, Mapping[str, Tensor]]) -> bool:
    """Whether it is an IP-Adapter Plus, which reads the features of all patches of the picture."""
    return "latents" in state["image_proj"]


@torch.no_grad()
def picture_features(encoder: Any, picture: Float[Tensor, "1 3 H W"], patches: bool) -> tuple[Tensor, Tensor]:
    """Features of a picture, and of none, by a CLIPVisionModelWithProjection.

    Of the projection these are the vector and zeros; of patches the last but one layer's, for the picture and for a
    prepared picture of zeros, as in diffusers.

    Args:
        encoder: the image encoder.
        picture: in [0, 1]; its short side is scaled to what the encoder reads and the middle cut out.
        patches: of all patches, or the projected vector.
    """
    pixels = _prepared(picture, int(encoder.config.image_size)).to(encoder.dtype)
    if not patches:
        features = encoder(pixels).image_embeds
        return features, torch.zeros_like(features)
    found = [encoder(part, output_hidden_states=True).hidden_states[-2] for part in (pixels, torch.zeros_like(pixels))]
    return found[0], found[1]


def _prepared(picture: Float[Tensor, "1 3 H W"], size: int) -> Float[Tensor, "1 3 size size"]:
    scale = size / min(picture.shape[2:])
    tall, wide = (max(size, round(side * scale)) for side in picture.shape[2:])
    scaled = nn.functional.interpolate(picture, (tall, wide), mode="bicubic", antialias=True).clamp(0, 1)
    top, left = (tall - size) // 2, (wide - size) // 2
    mean, std = (torch.tensor(part, device=picture.device).view(1, 3, 1, 1) for part in (MEAN, STD))
    return (scaled[:, :, top : top + size, left : left + size] - mean) / std


def load_image_encoder(path: str) -> Any:
    """A CLIPVisionModelWithProjection in a local folder, frozen.

    Raises:
        UserError: it is not there or not readable.
    """
    from transformers import CLIPVisionModelWithProjection

    folder = Path(path).expanduser()
    if not (folder / "config.json").is_file():
        raise UserError(
            f"ip_adapter.encoder={path}: no config.json is there. Give the folder of the image encoder that the "
            "IP-Adapter was trained with (models/image_encoder where it is published)."
        )
    refuse_code(folder, f"ip_adapter.encoder={path}")
    try:
        found = CLIPVisionModelWithProjection.from_pretrained(folder, use_safetensors=True, local_files_only=True)
    except Exception as error:  # a strange configuration raises wherever the library first stumbles over it
        reason = first_line(error)
        raise UserError(f"ip_adapter.encoder={path} is not a readable image encoder of CLIP ({reason}).") from error
    return found.eval().requires_grad_(False)
