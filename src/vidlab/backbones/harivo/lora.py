"""LoRA (Hu et al. 2021, arXiv 2106.09685) on the frozen UNet: trained here, and read and written as diffusers does.

peft is imported where a LoRA is asked for, and only there.
"""

import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vidlab.backbones.harivo.lora_files import FILE, LoRAFile
from vidlab.errors import UserError

log = logging.getLogger(__name__)

TRAINED, ADDED = "default", "added"  # names of the adapters in the UNet
# The maps of attention over space and to the text: those that diffusers trains. Temporal modules stand beside the UNet.
MAPS = ("to_q", "to_k", "to_v", "to_out.0")


@dataclass(frozen=True)
class LoRA:
    """A LoRA that is trained with the rest: W becomes W + (alpha / rank) B A in every map of the UNet's attention.

    B starts at zero, so a new one changes nothing; W stays as it is.

    Args:
        rank: rows of A and columns of B; 0 for none.
        alpha: scale times the rank; None is the rank, a scale of 1.

    Raises:
        UserError: a rank or an alpha out of range.
    """

    rank: int = 0
    alpha: float | None = None

    def __post_init__(self) -> None:
        if self.rank < 0 or (self.alpha is not None and self.alpha <= 0):
            raise UserError(
                f"model.backbone: lora_rank={self.rank} must not be negative, and lora_alpha={self.alpha} must be "
                "positive, or null for the rank."
            )

    @property
    def scale(self) -> float:
        """What B A is multiplied by."""
        return 1.0 if self.alpha is None else self.alpha / self.rank

    def put_into(self, body: Any) -> None:
        """Add it to a frozen UNet; without a rank nothing changes."""
        if not self.rank:
            return
        from peft import LoraConfig

        settings = {"r": self.rank, "lora_alpha": self.rank * self.scale, "target_modules": list(MAPS)}
        body.add_adapter(LoraConfig(**settings), TRAINED)

    def write(self, body: Any, folder: Path) -> None:
        """Write what was trained as ``pytorch_lora_weights.safetensors``, for ``load_lora_weights`` of diffusers."""
        from diffusers.loaders import StableDiffusionLoraLoaderMixin
        from peft import get_peft_model_state_dict

        told = {"r": self.rank, "lora_alpha": self.rank * self.scale, "target_modules": list(MAPS)}
        layers = get_peft_model_state_dict(body, adapter_name=TRAINED)
        whole = {name: value.detach().float().cpu().contiguous() for name, value in layers.items()}
        StableDiffusionLoraLoaderMixin.save_lora_weights(
            folder, whole, weight_name=FILE, unet_lora_adapter_metadata=told
        )


def is_lora(name: str) -> bool:
    """Whether a parameter of the UNet is one of the LoRA that is trained."""
    return ".lora_" in name and f".{TRAINED}." in name


def add_lora(body: Any, path: str, scale: float = 1.0) -> int:
    """Add a LoRA out of a file to the UNet, beside the one that was trained; both stay apart from its weights.

    Args:
        body: the UNet.
        path: a file of diffusers or kohya, or a folder with ``pytorch_lora_weights.safetensors``.
        scale: what it is multiplied by; 1 is as trained, 0 switches it off.

    Returns:
        How many maps it changes.

    Raises:
        UserError: it is damaged, of another UNet, has maps that this one does not have, or changes nothing.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    file = LoRAFile.read(path)
    _check(body, file)
    if file.left_out:
        log.info("lora=%s: %d tensors are of a text encoder and are left out", path, file.left_out)
    before = list(getattr(body, "peft_config", {}))
    if ADDED in before:
        body.delete_adapters(ADDED)
        before.remove(ADDED)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # two of them are meant
        body.load_lora_adapter(
            dict(file.weights), prefix="unet", adapter_name=ADDED, network_alphas=file.alphas, metadata=file.metadata
        )
    body.set_adapters([*before, ADDED], [*[1.0] * len(before), scale])
    for name, parameter in body.named_parameters():
        parameter.requires_grad_(is_lora(name))
    return sum(ADDED in module.scaling for module in body.modules() if isinstance(module, BaseTunerLayer))


def _check(body: Any, file: LoRAFile) -> None:
    """Refuse a file whose maps this UNet does not have, or whose effect is none."""
    shapes = _maps(body)
    for name, change in file.shapes().items():
        if shapes.get(name) != change:
            raise UserError(
                f"lora={file.path} changes {name} {change}, and the image model has "
                f"{shapes.get(name, 'no such map')}: it was made for another UNet."
            )
    if not any(bool(value.any()) for name, value in file.weights.items() if "lora_B" in name or "lora.up" in name):
        raise UserError(f"lora={file.path} changes nothing: all its maps are zero.")


def _maps(body: torch.nn.Module) -> Mapping[str, tuple[int, int]]:
    """(outputs, inputs) of every linear map and convolution, by its name without a LoRA in it."""
    found: dict[str, tuple[int, int]] = {}
    for name, module in body.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and weight.ndim in (2, 4) and ".lora_" not in name:
            found[name.removesuffix(".base_layer")] = (weight.shape[0], weight.shape[1])
    return found
