"""What encoded clips depend on, from a composed configuration; a run that a cache does not fit is refused."""

import json
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from omegaconf import DictConfig, OmegaConf
from torch import nn

from vidlab.autoencoders.base import Autoencoder
from vidlab.data.module import ClipDataModule
from vidlab.data.storage.latent_cache import FORMAT, CacheHeader, refuse_stale
from vidlab.errors import UserError
from vidlab.lab.compose import resolve_accelerator
from vidlab.precision import resolve_precision
from vidlab.text.base import TextEncoder
from vidlab.training.module import ClipModule
from vidlab.training.video_diffusion import VideoDiffusion

# Where a component's files are, how much it keeps and takes at once: what it computes is in the digest of its weights.
NEUTRAL = ("path", "pooled_path", "cache_dir", "cache_mb", "chunk", "frames_at_once")
LEARNED = "learned with the model"


def check_cache(cfg: DictConfig, module: ClipModule, data: LightningDataModule) -> None:
    """Refuse ``data.cache`` where this run cannot be trained on it.

    Raises:
        UserError: the conditioning needs pixels, or the cache is of other data, encoders or settings.
    """
    if not isinstance(data, ClipDataModule) or data.cache_folder is None:
        return
    reader = module.reader_of_pixels()
    if reader is not None:
        instead = "Use conditioning=frame_replacement or none, or train" if "conditioning" in reader else "Train"
        raise UserError(
            f"data.cache={data.cache_folder}: {reader} reads pixels at every step, and a cache has none. "
            f"{instead} without data.cache"
        )
    assert isinstance(module, VideoDiffusion)
    key = cache_key(cfg, module.autoencoder, module.text_encoder, data, resolve_accelerator(cfg.trainer.accelerator))
    refuse_stale(data.cache_folder, CacheHeader.read(data.cache_folder).key, key)
    assert data.cache is not None  # opened: it is finished


def cache_key(
    cfg: DictConfig, autoencoder: Autoencoder, text: TextEncoder, data: ClipDataModule, accelerator: str
) -> dict[str, Any]:
    """Everything that the latents and text features of a data set depend on, by dotted name.

    ``precision`` is the run's, because the autoencoder computes in it.
    """
    key = {"format": FORMAT, "precision": resolve_precision(cfg.precision, accelerator), **data.cache_key}
    key |= settings(cfg.autoencoder, "autoencoder") | {"autoencoder.weights": weights_digest(autoencoder)}
    if text.trainable:
        return key | {"text_encoder": LEARNED}
    key |= settings(cfg.text_encoder, "text_encoder") | {"text_encoder.weights": weights_digest(text)}
    return key | {"text_encoder.tokenizer": _digest(text.tokenization().encode())}


def settings(node: DictConfig, name: str) -> dict[str, Any]:
    """The settings of a component by dotted name, its class under ``name`` itself."""
    values = OmegaConf.to_container(node, resolve=True)
    assert isinstance(values, dict)
    found = dict(_leaves(values, name))
    return {name: found.pop(f"{name}._target_"), **found}


def _leaves(values: Mapping[Any, Any], name: str) -> list[tuple[str, Any]]:
    found = []
    for key, value in values.items():
        if key in NEUTRAL:
            continue
        place = f"{name}.{key}"
        found += _leaves(value, place) if isinstance(value, dict) and value else [(place, value)]
    return found


def weights_digest(module: nn.Module) -> str:
    """32 hex digits over the names, types, shapes and bits of all parameters and buffers."""
    digest = blake2b(digest_size=16)
    for name, tensor in sorted([*module.named_parameters(), *module.named_buffers()]):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def key_digest(key: Mapping[str, Any]) -> str:
    """16 hex digits over a key."""
    return _digest(json.dumps(key, sort_keys=True).encode())[:16]


def _digest(content: bytes) -> str:
    return blake2b(content, digest_size=16).hexdigest()
