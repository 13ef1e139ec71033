"""Files of LoRA weights for Stable Diffusion, in the forms of diffusers and of kohya's scripts."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from vidlab.errors import UserError
from vidlab.hub import model_folder
from vidlab.tensors import read_tensors, refuse_non_finite, refuse_pickled

FILE = "pytorch_lora_weights.safetensors"
OF_UNET = "unet."
AGAIN = "Fetch it again."
# Settings in a file's header that are followed; all others are no part of a LoRA on linear maps.
FOLLOWED = ("r", "lora_alpha", "target_modules", "rank_pattern", "alpha_pattern", "use_rslora")
REFUSED = ("dora_scale", "lokr_", "hada_", "lora_magnitude_vector")


@dataclass(frozen=True)
class LoRAFile:
    """What a file holds for the UNet, by the names of peft with the prefix ``unet.``.

    Args:
        path: of the file, for messages.
        weights: A and B of each map.
        alphas: of each map by ``<map>.alpha``, where the file has them beside the weights.
        metadata: the settings of its header that are followed, where it has any.
        left_out: tensors of text encoders.
    """

    path: str
    weights: Mapping[str, Tensor]
    alphas: dict[str, float] | None
    metadata: dict[str, Any] | None
    left_out: int

    @classmethod
    def read(cls, path: str) -> "LoRAFile":
        """Read a file, or that of a folder.

        Raises:
            UserError: none is there, it is damaged, or it is no LoRA of Stable Diffusion 1 or 2.
        """
        from diffusers.loaders import StableDiffusionLoraLoaderMixin
        from diffusers.utils import convert_unet_state_dict_to_peft

        file = _located(path)
        raw = read_tensors(file, AGAIN)
        refuse_non_finite(raw, f"lora={path}", AGAIN)
        strange = [name for name in raw if any(kind in name for kind in REFUSED)]
        if strange:
            raise UserError(f"lora={path}: {strange[0]} is of another kind than LoRA, which alone is read.")
        found, alphas, metadata = StableDiffusionLoraLoaderMixin.lora_state_dict(
            str(file.parent), weight_name=file.name, local_files_only=True, return_lora_metadata=True
        )
        named = {name if name.startswith(("unet.", "text_encoder")) else f"{OF_UNET}{name}": value
                 for name, value in found.items()}  # fmt: skip
        mine = {name.removeprefix(OF_UNET): v for name, v in named.items() if name.startswith(OF_UNET)}
        if not mine:
            raise UserError(f"lora={path} holds nothing for the UNet of Stable Diffusion ({OF_UNET}*).")
        if not any("lora_A" in name for name in mine):
            mine = convert_unet_state_dict_to_peft(mine)
        weights = {f"{OF_UNET}{name}": value.float() for name, value in mine.items()}
        return cls(path, weights, _numbers(alphas), _followed(metadata), len(named) - len(mine))

    def shapes(self) -> dict[str, tuple[int, int]]:
        """(outputs, inputs) of what it changes, by the names of the UNet's maps.

        Raises:
            UserError: a tensor that is no A or B, or one without the other.
        """
        parts: dict[str, dict[str, Tensor]] = {}
        for name, value in self.weights.items():
            place, _, kind = name.removeprefix(OF_UNET).rpartition(".lora_")
            parts.setdefault(place, {})[kind] = value
        found = {}
        for place, both in parts.items():
            if set(both) != {"A.weight", "B.weight"}:
                raise UserError(f"lora={self.path}: {place or next(iter(both))} is no pair of lora_A and lora_B.")
            found[place] = (both["B.weight"].shape[0], both["A.weight"].shape[1])
        return found


def _located(path: str) -> Path:
    file = Path(path).expanduser()
    if not file.is_file():
        file = model_folder(path, "lora", [FILE], lambda folder: (folder / FILE).is_file(), "") / FILE
    refuse_pickled(file, f"lora={path}")
    return file


def _numbers(alphas: Mapping[str, Any] | None) -> dict[str, float] | None:
    return {name: float(value) for name, value in alphas.items()} if alphas else None


def _followed(metadata: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Settings of the UNet's LoRA; a file of ``save_lora_adapter`` has them without the prefix."""
    if not metadata:
        return None
    plain = {name.removeprefix(OF_UNET): value for name, value in metadata.items()}
    return {f"{OF_UNET}{name}": plain[name] for name in FOLLOWED if name in plain} or None
