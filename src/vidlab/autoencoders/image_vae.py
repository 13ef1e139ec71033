"""A pretrained image autoencoder (AutoencoderKL of diffusers), applied frame by frame and frozen."""

import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from vidlab.autoencoders.base import ExportedFormat, Posterior
from vidlab.autoencoders.streaming import FrameGroups
from vidlab.autoencoders.weight_files import CONFIG, SAFETENSORS
from vidlab.clip import Stride
from vidlab.errors import MissingPackageError, UserError, first_line
from vidlab.hub import model_folder, refuse_code

SUBFOLDER = "vae"  # where a whole pipeline keeps it
KIND = "AutoencoderKL"
# Of a scale or a shift: far above any, and within float32.
LARGEST_NUMBER = 1e30


class ImageVAE(FrameGroups):
    """The KL autoencoder of latent diffusion (Rombach et al. 2022, arXiv 2112.10752), each frame by itself; frozen.

    Latents are ``(z - shift) * scale`` of the published z, ``scale`` and ``shift`` being ``scaling_factor`` and
    ``shift_factor`` of its ``config.json``; they are float32 whatever the network computes in. A clip of T frames has T
    latent frames. Gradients pass through to the pixels, and reach no weights.

    Args:
        path: a local folder with ``config.json`` and ``diffusion_pytorch_model.safetensors``, a local folder of a whole
            pipeline with such a folder ``vae``, or the hub id of either, such as ``stabilityai/sd-vae-ft-mse``.
        frames_at_once: frames that pass the network together; None is all. It changes memory, not results.

    Raises:
        MissingPackageError: diffusers is not installed.
        UserError: the path is unset, not found, not readable or another kind of autoencoder.
    """

    published_class = KIND

    def __init__(self, path: str | None = None, frames_at_once: int | None = 16) -> None:
        super().__init__()
        if not path:
            raise UserError(
                "autoencoder.path is not set. Give a local folder with config.json and "
                "diffusion_pytorch_model.safetensors, or a hub id such as stabilityai/sd-vae-ft-mse."
            )
        if frames_at_once is not None and frames_at_once < 1:
            raise UserError(f"autoencoder.frames_at_once={frames_at_once} must be 1 or more, or null.")
        self.path, self.frames_at_once = path, frames_at_once
        self.network = _load(path).eval().requires_grad_(False)
        config = self.network.config
        side = 2 ** (len(config.block_out_channels) - 1)
        self.channels, self.stride = int(config.latent_channels), Stride(1, side, side)
        self.scale, self.shift = _number(path, config, "scaling_factor"), _number(path, config, "shift_factor", 0.0)
        if self.scale <= 0:
            raise UserError(f"autoencoder.path={path}: scaling_factor={self.scale} in config.json must be positive.")

    @override
    def train(self, mode: bool = True) -> "ImageVAE":
        return super().train(False)  # frozen

    @override
    def posterior(self, pixels: Float[Tensor, "B 3 T H W"]) -> Posterior:
        self.check_clip(pixels)
        moments = []
        for part in self._frames(pixels):
            found = self.network.encode(part).latent_dist
            moments.append(torch.stack([found.mean.float(), found.logvar.float()], dim=1))  # (frames, 2, C, h, w)
        mean, log_variance = _clips(torch.cat(moments), len(pixels)).unbind(1)
        gain = 2 * torch.tensor(self.scale).log().item()
        return Posterior((mean - self.shift) * self.scale, log_variance + gain)

    @override
    def encode(self, pixels: Float[Tensor, "B 3 T H W"]) -> Float[Tensor, "B C t h w"]:
        return self.posterior(pixels).mode

    @override
    def decode(self, latents: Float[Tensor, "B C t h w"]) -> Float[Tensor, "B 3 T H W"]:
        self.check_latents(latents)
        z = latents / self.scale + self.shift
        frames = torch.cat([self.network.decode(part).sample.float() for part in self._frames(z)])
        return _clips(frames, len(latents))

    @classmethod
    @override
    def locate(cls, reference: str) -> str | None:
        folder = Path(reference).expanduser()
        return str(folder.resolve()) if folder.exists() else reference  # a hub id, never a run

    @override
    def exported_format(self) -> ExportedFormat | None:
        if not Path(self.path).expanduser().is_dir():
            return None  # a hub id is a name everywhere
        source = weights_folder(self.path)
        return ExportedFormat(f"a copy of {source}", partial(_copy, source))

    def _frames(self, clips: Tensor) -> tuple[Tensor, ...]:
        """(B, C, T, H, W) as batches of frames in the weights' precision."""
        frames = clips.transpose(1, 2).flatten(0, 1).to(self.network.dtype)
        return frames.split(self.frames_at_once or len(frames))


def _copy(source: Path, folder: Path) -> None:
    """Published weights of one folder to another."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in (CONFIG, SAFETENSORS):
        shutil.copyfile(source / name, folder / name)


def _clips(frames: Tensor, count: int) -> Tensor:
    """(B T, ..., H, W) as (B, ..., T, H, W)."""
    return frames.unflatten(0, (count, -1)).movedim(1, -3)


def _number(path: str, config: Mapping[str, Any], name: str, absent: float | None = None) -> float:
    """A finite number of a published configuration; ``absent`` stands for null."""
    value = absent if config.get(name) is None else config[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < LARGEST_NUMBER:
        raise UserError(f"autoencoder.path={path}: {name}={str(value)[:40]} in config.json must be a finite number.")
    return float(value)


def _load(path: str) -> Any:
    try:
        from diffusers import AutoencoderKL
    except ImportError as error:
        raise MissingPackageError(
            f"autoencoder=image_vae needs the package diffusers ({error}): pip install diffusers."
        ) from error
    folder = weights_folder(path)
    refuse_code(folder, f"autoencoder.path={path}")
    try:
        kind = AutoencoderKL.load_config(folder).get("_class_name", KIND)
        if kind != KIND:
            raise UserError(f"autoencoder.path={path} holds a {kind}, and autoencoder=image_vae reads an {KIND}.")
        found, report = AutoencoderKL.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True, low_cpu_mem_usage=False
        )
    except UserError:
        raise
    except Exception as error:  # a strange configuration raises wherever the library first stumbles over it
        raise UserError(f"autoencoder.path={path} cannot be read: {first_line(error)}") from error
    wrong = {name: names for name, names in report.items() if names}
    if wrong:
        told = "; ".join(f"{name}: {len(names)}, such as {next(iter(names))}" for name, names in wrong.items())
        raise UserError(
            f"autoencoder.path={path}: the weights do not fit the configuration ({told}). Fetch them again."
        )
    return found


def weights_folder(path: str) -> Path:
    """The local folder of the weights that ``ImageVAE(path)`` reads.

    Raises:
        UserError: there is none.
    """
    files = [f"{place}{name}" for place in ("", f"{SUBFOLDER}/") for name in (CONFIG, SAFETENSORS)]
    found = model_folder(path, "autoencoder.path", files, lambda folder: _place(folder) is not None)
    place = _place(found)
    if place is None:
        raise UserError(
            f"autoencoder.path={path}: {found} holds no {CONFIG} with {SAFETENSORS}, nor does its folder {SUBFOLDER}. "
            "Pickled weights are not read."
        )
    return place


def _place(folder: Path) -> Path | None:
    """Where the weights lie: in the folder itself, or in a pipeline's."""
    places = (folder, folder / SUBFOLDER)
    return next((one for one in places if (one / CONFIG).is_file() and (one / SAFETENSORS).is_file()), None)
