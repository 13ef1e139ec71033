"""ControlNet (Zhang et al. 2023, arXiv 2302.05543) beside the frozen UNet, on all frames of a clip or a few."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vidlab.backbones.harivo.unet import FramePass, frames_of
from vidlab.errors import UserError
from vidlab.hub import model_folder, read_json, refuse_code
from vidlab.tensors import misfits, read_tensors, refuse_non_finite, refuse_pickled, shape_text

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
KIND = "ControlNetModel"
ORIGINAL = "control_model."  # names in a single file, as ControlNets were first published
AGAIN = "Fetch it again."
# Settings of a ControlNetModel under which it computes something else.
PLAIN: dict[str, Any] = {
    "addition_embed_type": None, "class_embed_type": None, "num_class_embeds": None, "encoder_hid_dim": None,
    "encoder_hid_dim_type": None, "global_pool_conditions": False,
}  # fmt: skip


class FrameControlNet(nn.Module):
    """What a ControlNet adds to the UNet, at the frames that it has pictures of; nothing at the others.

    It reads the latents that the UNet reads, behind the mapping network, and the text without the tokens of frames:
    it was trained beside the image model.

    Args:
        net: a ControlNetModel of diffusers.
        pictures: what it reads, in [0, 1], one for each of ``frames``, of any size; scaled to the size it reads.
        frames: numbers from 0.
        scale: what its output is multiplied by.

    Raises:
        UserError: no frames, as many pictures as there are not, or a frame below 0.
    """

    pictures: Float[Tensor, "F 3 H W"]

    def __init__(self, net: Any, pictures: Float[Tensor, "F 3 H W"], frames: Sequence[int], scale: float = 1.0) -> None:
        super().__init__()
        if not frames or min(frames) < 0 or len(set(frames)) != len(frames) or len(pictures) not in (1, len(frames)):
            raise UserError(
                f"controlnet.frames={list(frames)}: different numbers from 0, and one picture for all of them or one "
                f"for each, of which there are {len(pictures)}."
            )
        self.net = net.requires_grad_(False).eval()
        self.frames, self.scale = tuple(frames), scale
        pictures = pictures.flip(1) if net.config["controlnet_conditioning_channel_order"] == "bgr" else pictures
        self.register_buffer("pictures", pictures.expand(len(frames), -1, -1, -1).contiguous())

    @property
    def factor(self) -> int:
        """Pixels of a picture to a latent position: 8 in those of Stable Diffusion."""
        return math.prod(layer.stride[0] for layer in self.net.controlnet_cond_embedding.blocks)

    def forward(
        self,
        latents: Float[Tensor, "B C T H W"],
        levels: Float[Tensor, "BT"],
        text: Float[Tensor, "BT S D"],
        bias: Float[Tensor, "BT 1 S"],
    ) -> list[Tensor]:
        """What is added at each skip connection and, last, in the middle; zero at frames without a picture."""
        clips, _, count, height, width = latents.shape
        if max(self.frames) >= count:
            raise UserError(f"controlnet.frames={list(self.frames)}: a clip has {count} frames, numbered from 0.")
        rows = [clip * count + frame for clip in range(clips) for frame in self.frames]
        at = torch.tensor(rows, device=latents.device)
        size = (height * self.factor, width * self.factor)
        pictures = self.pictures if self.pictures.shape[2:] == size else nn.functional.interpolate(
            self.pictures, size, mode="bilinear", antialias=True
        )  # fmt: skip
        hint = self.net.controlnet_cond_embedding(pictures.to(self.net.conv_in.weight.dtype))  # (F, D, H, W)
        walk = FramePass(levels[at], text[at], bias[at], extra=hint.repeat(clips, 1, 1, 1))
        skips, middle, _ = walk.encoded(self.net, frames_of(latents)[at])
        found = [zero(skip) for zero, skip in zip(self.net.controlnet_down_blocks, skips, strict=True)]
        found.append(self.net.controlnet_mid_block(middle))
        total = clips * count
        return [part.new_zeros(total, *part.shape[1:]).index_copy(0, at, self.scale * part) for part in found]


def load_controlnet(path: str, body: Any) -> Any:
    """A ControlNetModel for a UNet.

    Args:
        path: a folder of diffusers or a hub id, or a single ``.safetensors`` file as ControlNets were first published.
        body: the UNet that it stands beside.

    Raises:
        UserError: it is not there, damaged, of another kind, or for another UNet.
    """
    from diffusers import ControlNetModel

    place = Path(path).expanduser()
    if place.is_file():
        with torch.device("meta"):
            net = ControlNetModel.from_unet(body, load_weights_from_unet=False)
        weights = _single_file(place, path, dict(net.config))
    else:
        wanted = [CONFIG, WEIGHTS]
        folder = model_folder(path, "controlnet.path", wanted, lambda found: (found / CONFIG).is_file(), "")
        refuse_code(folder, f"controlnet.path={path}")
        config = _checked(read_json(folder / CONFIG), path)
        with torch.device("meta"):
            net = ControlNetModel.from_config(config)
        weights = read_tensors(folder / WEIGHTS, AGAIN, torch.float32)
    refuse_non_finite(weights, f"controlnet.path={path}", AGAIN)
    _check_fit(net, weights, body, path)
    net.to_empty(device="cpu").load_state_dict(weights)
    return net.to(body.conv_in.weight.device)


def _checked(config: dict[str, Any], path: str) -> dict[str, Any]:
    if config.get("_class_name", KIND) != KIND:
        raise UserError(f"controlnet.path={path} holds a {config['_class_name']}, and model=harivo reads a {KIND}.")
    for name, plain in PLAIN.items():
        if config.get(name, plain) != plain:
            raise UserError(f"controlnet.path={path}: {name}={config[name]} is not of Stable Diffusion 1 or 2.")
    return config


def _single_file(file: Path, path: str, config: dict[str, Any]) -> dict[str, Tensor]:
    from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint

    refuse_pickled(file, f"controlnet.path={path}")
    raw = read_tensors(file, AGAIN)
    if not any(name.startswith((ORIGINAL, "controlnet_cond_embedding.", "time_embed.")) for name in raw):
        raise UserError(f"controlnet.path={path}: no ControlNet of Stable Diffusion is in it ({ORIGINAL}*).")
    converted: Mapping[str, Tensor] = convert_controlnet_checkpoint(raw, config)
    return {name: value.float() for name, value in converted.items()}


def _check_fit(net: Any, weights: Mapping[str, Tensor], body: Any, path: str) -> None:
    expected = net.state_dict()
    wrong = misfits(weights, expected)
    if wrong:
        raise UserError(
            f"controlnet.path={path}: the weights do not fit ({len(wrong)} differ, the first is {wrong[0]}, "
            f"{shape_text(weights, wrong[0])} in the file and {shape_text(expected, wrong[0])} in a ControlNet of "
            "this image model)."
        )
    for name in ("in_channels", "cross_attention_dim", "block_out_channels", "layers_per_block"):
        mine, theirs = (list(v) if isinstance(v, tuple | list) else v for v in (body.config[name], net.config[name]))
        if mine != theirs:
            raise UserError(
                f"controlnet.path={path} is for a UNet with {name}={theirs}, and the image model has {mine}."
            )
