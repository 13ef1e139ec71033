"""What claims are computed from: vidlab's own configurations and models, the latter without memory."""

from functools import cache
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from vidlab.clip import LatentShape, Stride
from vidlab.cost.flops import DenoiserCounter, ModelCost, StepInput
from vidlab.diffusion.objective import InputShape
from vidlab.lab.cli.composed import compose
from vidlab.lab.cli.programs import config_folder
from vidlab.lab.compose import make_backbone

composed = cache(compose)  # many claims read one configuration


def setting(key: str, *words: str) -> float:
    """The number at a key of a composed training."""
    return float(OmegaConf.select(composed(*words), key, throw_on_missing=True))


def choice(file: str) -> DictConfig:
    """The settings of one shipped choice, such as "guidance/cfg", without those that it begins from."""
    found = OmegaConf.load(config_folder() / f"{file}.yaml")
    assert isinstance(found, DictConfig)
    return found


def chosen(file: str, key: str) -> float:
    """The number at a key of one shipped choice."""
    return float(OmegaConf.select(choice(file), key, throw_on_missing=True))


def denoiser(model: str, stride: Stride, latent: LatentShape | None = None, **changes: Any) -> nn.Module:
    """A model of published size on the meta device.

    Args:
        model: choice of the group, such as "paper/stiv_xl".
        stride: of its autoencoder.
        latent: of a clip; None is what its configuration names.
        changes: settings of the backbone that differ from the configuration's.
    """
    config = composed(f"model={model}").model
    build = make_backbone(config, stride)
    width = changes.pop("text_width", config.published.text_width)
    with torch.device("meta"):
        return build(latent=latent or LatentShape(**config.published.latent), text_width=width, **changes)


def parameters(module: nn.Module, unit: float = 1e6) -> float:
    """Numbers in a module, by default in millions."""
    return sum(p.numel() for p in module.parameters()) / unit


def cost(model: nn.Module, shape: InputShape, text_width: int, text_tokens: int) -> ModelCost:
    """The cost of one clip in a training step."""
    return DenoiserCounter(model, text_width).cost(StepInput(shape, text_tokens))  # type: ignore[arg-type]


@cache
def stable_diffusion_parameters() -> dict[str, int]:
    """Parameters of the parts of Stable Diffusion 1.x, as diffusers and transformers build them from their sizes."""
    from diffusers import AutoencoderKL
    from transformers import CLIPTextConfig, CLIPTextModel

    from vidlab.backbones.harivo.model import HARIVO

    text = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
    with torch.device("meta"):
        parts = {
            "unet": HARIVO(LatentShape(4, 24, 32, 32), 768).body,
            "text": CLIPTextModel(text),
            "vae": AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                block_out_channels=(128, 256, 512, 512),
                layers_per_block=2,
            ),
        }
    return {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
