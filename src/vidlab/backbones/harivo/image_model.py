"""A frozen text-to-image UNet from a folder or a file of Stable Diffusion, without memory until it is asked for."""

import copy
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vidlab.backbones.harivo.unet import make_unet
from vidlab.errors import UserError
from vidlab.hub import model_folder, read_json, refuse_code
from vidlab.tensors import misfits, read_tensors, refuse_non_finite, refuse_pickled, shape_text

CONFIG = "config.json"
WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors")
SUBFOLDER = "unet"  # where a whole pipeline keeps it
KIND = "UNet2DConditionModel"
ORIGINAL = "model.diffusion_model."  # names in a single file, as Stable Diffusion was first published
AGAIN = "Fetch it again."
ELSEWHERE = " For a trained model whose image model has moved: generate.py ... image_model=FOLDER."
DIGEST = 16  # bytes


def weights_digest(tensors: Mapping[str, Tensor]) -> bytes:
    """16 bytes over names, types, shapes and bits, the same on every machine."""
    digest = blake2b(digest_size=DIGEST)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.digest()


class ImageModel:
    """Where a frozen image UNet is, and how large it is; its weights are read when it is built.

    Args:
        path: a folder of Stable Diffusion as diffusers keeps it (with a folder ``unet``), the folder of its UNet alone
            (``config.json``, ``diffusion_pytorch_model.safetensors``), a single ``.safetensors`` file as it was first
            published, or a hub id of the first two. None: there is none, and random weights take its place, which
            serves planning and tests.

    Raises:
        UserError: nothing is there, or it is of another kind.
    """

    def __init__(self, path: str | None = None) -> None:
        self.path = path
        self.config: dict[str, Any] | None = None
        if path is None:
            return
        self.place = located(path)
        self.config = single_file_config(self.place) if self.place.is_file() else _folder_config(self.place, path)
        self.config.pop("_name_or_path", None)
        with torch.device("meta"):
            self._hollow = make_unet(self.config)

    @property
    def origin(self) -> str:
        """Its name for messages."""
        return f"model.image_model={self.path}"

    def hollow(self) -> Any:
        """The UNet on the meta device, which holds no numbers."""
        return copy.deepcopy(self._hollow)

    def build(self) -> tuple[Any, bytes]:
        """The UNet with its weights in float32, and the digest of them.

        Raises:
            UserError: they are damaged or do not fit the configuration.
        """
        assert self.config is not None
        weights = self._weights()
        body = self.hollow()
        wrong = misfits(weights, body.state_dict())
        if wrong:
            raise UserError(
                f"{self.origin}: the weights do not fit the configuration ({len(wrong)} differ, the first is "
                f"{wrong[0]}, {shape_text(weights, wrong[0])} in the file). {AGAIN}"
            )
        refuse_non_finite(weights, self.origin, AGAIN)
        body.to_empty(device="cpu")
        body.load_state_dict(weights)
        return body, weights_digest(weights)

    def _weights(self) -> dict[str, Tensor]:
        if self.place.is_file():
            return single_file_weights(self.place, self.config or {})
        file = next(self.place / name for name in WEIGHTS if (self.place / name).is_file())
        return read_tensors(file, AGAIN, torch.float32)


def located(path: str) -> Path:
    """The single file, or the folder with the UNet's ``config.json`` and weights.

    Raises:
        UserError: there is none.
    """
    file = Path(path).expanduser()
    if file.is_file():
        refuse_pickled(file, f"model.image_model={path}")
        return file
    wanted = [f"{folder}{name}" for folder in ("", f"{SUBFOLDER}/") for name in (CONFIG, *WEIGHTS)]
    folder = model_folder(path, "model.image_model", wanted, lambda found: _unet_in(found) is not None, ELSEWHERE)
    place = _unet_in(folder)
    if place is None:
        raise UserError(
            f"model.image_model={path}: {folder} holds no {CONFIG} with {WEIGHTS[0]}, nor does its folder {SUBFOLDER}. "
            "Pickled weights are not read."
        )
    return place


def _unet_in(folder: Path) -> Path | None:
    for place in (folder / SUBFOLDER, folder):
        if (place / CONFIG).is_file() and any((place / name).is_file() for name in WEIGHTS):
            return place
    return None


def _folder_config(folder: Path, path: str) -> dict[str, Any]:
    refuse_code(folder, f"model.image_model={path}")
    config = read_json(folder / CONFIG)
    kind = config.get("_class_name", KIND)
    if kind != KIND:
        raise UserError(f"model.image_model={path} holds a {kind}, and model=harivo freezes a {KIND}.")
    return config


def single_file_config(file: Path) -> dict[str, Any]:
    """The sizes of a UNet out of the shapes in a single file; its heads are 8, as in all of Stable Diffusion 1.

    Raises:
        UserError: no UNet of that kind is in it.
    """
    shapes = _shapes(file)
    channels = [s for n in range(64) if (s := shapes.get(f"input_blocks.{n}.0.in_layers.2.weight")) is not None]
    first, text = (
        shapes.get("input_blocks.0.0.weight"),
        shapes.get("input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"),
    )
    if not channels or first is None or text is None or "label_emb.0.0.weight" in shapes:
        raise UserError(f"model.image_model={file}: no UNet of Stable Diffusion 1 is in it ({ORIGINAL}*).")
    depth = next(n for n in range(1, 64) if f"input_blocks.{n}.0.op.weight" in shapes) - 1
    levels = [channels[n * depth][0] for n in range(len(channels) // depth)]
    return {
        "in_channels": first[1], "out_channels": shapes["out.2.weight"][0], "cross_attention_dim": text[1],
        "layers_per_block": depth, "block_out_channels": tuple(levels), "attention_head_dim": 8,
    }  # fmt: skip


def _shapes(file: Path) -> dict[str, tuple[int, ...]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as opened:
            names = [name for name in opened.keys() if name.startswith(ORIGINAL)]  # noqa: SIM118  no mapping
            return {name.removeprefix(ORIGINAL): tuple(opened.get_slice(name).get_shape()) for name in names}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} cannot be read, it is damaged or no safetensors file ({error}). {AGAIN}") from None


def single_file_weights(file: Path, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The UNet's weights out of a single file, by the names of diffusers, in float32."""
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    found = {name: value for name, value in read_tensors(file, AGAIN).items() if name.startswith(ORIGINAL)}
    converted: dict[str, Tensor] = convert_ldm_unet_checkpoint(found, {**config, "class_embed_type": None,
                                                                       "addition_embed_type": None})  # fmt: skip
    return {name: value.float() for name, value in converted.items()}
