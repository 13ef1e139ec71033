"""The models that benchmarks of training steps measure, at laptop size and at published block sizes."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from vidlab.backbones.base import VideoDenoiser
from vidlab.clip import LatentShape
from vidlab.lab.cli.hydra_main import instantiate
from vidlab.lab.compose import build_module
from vidlab.lab.runs import run_folder  # noqa: F401  registers its resolver

CONF = Path(__file__).resolve().parents[1] / "conf"
WIDE = (
    "model.backbone.width=1152",
    "model.backbone.heads=18",
    "model.backbone.depth=4",
    "model.backbone.qk_norm=true",
)


@dataclass(frozen=True)
class Case:
    """One model at one size.

    Args:
        words: of the command line.
        latent: (channels, frames, height, width); None is that of the composed run.
        text: (width, tokens); None is that of the composed run and 16.
        patch: of those that have none of their own.
        batch: clips.
    """

    words: tuple[str, ...]
    latent: tuple[int, int, int, int] | None = None
    text: tuple[int, int] | None = None
    patch: tuple[int, int, int] | None = None
    batch: int = 1


LARGE = {"latent": (8, 24, 64, 64), "text": (4096, 128), "patch": (1, 2, 2)}
CASES: dict[str, Case] = {
    **{name: Case((f"model={name}",), batch=8) for name in
       ("full3d", "2p1d", "skiparse", "stiv", "open_sora_plan", "mmdim", "harivo")},
    **{f"{name} 1152": Case((f"model={name}", *WIDE), **LARGE) for name in ("full3d", "2p1d", "skiparse")},
    "paper/open_sora_plan": Case(("model=paper/open_sora_plan",), (8, 24, 44, 80), (4096, 512)),
    "paper/stiv_xl": Case(("model=paper/stiv_xl",), (8, 20, 32, 32), (1280, 77)),
    "paper/m4v": Case(("model=paper/m4v",), (16, 2, 48, 80), (4096, 128)),
}  # fmt: skip


@dataclass(frozen=True)
class Described:
    """What a model is built of, and what it reads.

    Args:
        build: with settings of the backbone, such as its attention kernel.
        text_width: of text tokens.
        latent: of a clip.
        text_tokens: of a caption.
        head_size: channels of a head of attention.
    """

    build: Callable[..., VideoDenoiser]
    text_width: int
    latent: LatentShape
    text_tokens: int
    head_size: int


def described(case: Case) -> Described:
    """The denoiser of a case, not yet built."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", list(case.words))
    head_size = int(cfg.model.backbone.width) // int(cfg.model.backbone.heads)
    if case.latent is None or case.text is None:
        module = build_module(cfg)
        plan = module.plan

        def laptop(**settings: Any) -> VideoDenoiser:
            taken = settings if plan.spec.takes_attention else {}
            return plan._backbone(latent=plan._latent, text_width=plan._text_width, **taken)

        return Described(laptop, module.text_encoder.width, module.latent, 16, head_size)
    OmegaConf.set_struct(cfg, False)
    settings = {"patch": list(case.patch)} if case.patch else {}
    latent = LatentShape(*case.latent)
    with torch.device("meta"):
        make = instantiate(cfg.model.backbone, "model.backbone")
    build = partial(make, latent=latent, text_width=case.text[0], **settings)
    return Described(build, case.text[0], latent, case.text[1], head_size)
