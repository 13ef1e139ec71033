"""Checkpoints, and the configuration that travels in them."""

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import torch
from omegaconf import OmegaConf, open_dict

from ..edits import TEXT_EDITS, change_tree, hostile
from ..target import Found, PromiseBrokenError, Subject, Target, digest

CONF = Path(__file__).resolve().parents[3] / "conf"
TINY = (
    *("trainer=cpu", "precision=32-true", "logger=none", "model.backbone.width=24", "model.backbone.heads=2"),
    *("model.backbone.depth=1", "data.frames=4", "data.height=16", "data.width=16", "data.num_workers=0"),
    *("text_encoder.rows=64", "text_encoder.width=16"),
)
# What a configuration from a stranger could ask for; each would leave a trace or end the process.
STRANGERS = (
    *("os.system", "os._exit", "os.abort", "builtins.exec", "builtins.eval", "sympy.sympify", "pathlib.Path.touch"),
    *("pandas.read_pickle", "torch.load", "subprocess.run", "hydra.utils.get_class", "runpy.run_path"),
    *("vidlab.hub.model_folder", "torch.nn.Linear", "omegaconf.OmegaConf.load"),
)
CANARY = "ran"


@cache
def module() -> Any:
    """A tiny denoiser, and the configuration it was made of as YAML."""
    from hydra import compose, initialize_config_dir

    import vidlab.lab.runs.run_folder  # noqa: F401  registers its resolver
    from vidlab.lab.compose import build_module

    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", [*TINY])
    torch.manual_seed(0)
    built = build_module(cfg)
    built.configure_model()
    with open_dict(cfg):
        cfg.callbacks = {}  # they name Hydra's folder, which there is none of here
    return built, OmegaConf.to_yaml(cfg, resolve=True)


def content(config: str | None = None) -> dict[str, Any]:
    """What a run stores."""
    built, own = module()
    state = {name: value.clone() for name, value in built.state_dict().items()}
    ema = {name: value.detach() + 0.5 for name, value in built.named_parameters()}
    stored = {
        "state_dict": state,
        "ema": ema,
        "config": own if config is None else config,
        "global_step": 7,
        "epoch": 0,
    }
    built.on_save_checkpoint(stored)
    return stored


def save(path: Path, stored: dict[str, Any]) -> None:
    from vidlab.training.checkpoint_io import AtomicCheckpointIO

    AtomicCheckpointIO().save_checkpoint(stored, path)


def make_checkpoint(folder: Path) -> Sequence[Subject]:
    save(folder / "last.ckpt", content())
    return [Subject("last.ckpt", edits) for edits in ("zip.unforged", "bytes")]


def make_forged(folder: Path) -> Sequence[Subject]:
    make_checkpoint(folder)
    return [Subject("last.ckpt", "zip", countable=False)]


def read_checkpoint(folder: Path) -> Found:
    """Everything in it."""
    from vidlab.training.checkpoint_io import load_checkpoint

    items: dict[str, str] = {}
    walk(load_checkpoint(folder / "last.ckpt"), "", items)
    return Found(items)


def walk(value: Any, place: str, items: dict[str, str]) -> None:
    """Digests of all leaves."""
    if isinstance(value, torch.Tensor):
        data = value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        items[place] = digest(str(value.dtype), tuple(value.shape), data)
    elif isinstance(value, dict):
        for key, inner in value.items():
            walk(inner, f"{place}/{key}", items)
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            walk(inner, f"{place}/{number}", items)
    else:
        items[place] = digest(value)


def make_rebuilt(folder: Path) -> Sequence[Subject]:
    """The configuration as a file of its own, to be damaged and put back."""
    (folder / "config.yaml").write_text(module()[1])
    return [Subject("config.yaml", (in_config,) * 12 + TEXT_EDITS, countable=False)]


def in_config(random: Random, data: bytes) -> tuple[bytes, str]:
    """Another value somewhere, or a class of the stranger's choice."""
    try:
        tree = OmegaConf.to_container(OmegaConf.create(data.decode()))
        assert isinstance(tree, dict)
    except Exception:
        return data[:-1], "cut"
    tree, said = change_tree(random, tree, stranger)
    try:
        return OmegaConf.to_yaml(OmegaConf.create(tree)).encode("utf-8", "surrogatepass"), said
    except Exception:  # no configuration can hold it
        return data, "nothing"


def stranger(random: Random) -> Any:
    """A class to be built, or any hostile value."""
    if random.random() < 0.5:
        return hostile(random)
    name = random.choice(STRANGERS)
    arguments = random.choice(
        ([f"touch {CANARY}"], [f"open({CANARY!r}, 'w')"], [CANARY], [], [f"__import__('os').mkdir({CANARY!r})"])
    )
    return {"_target_": name, "_args_": arguments, **({"_partial_": True} if random.random() < 0.3 else {})}


def read_rebuilt(folder: Path) -> Found:
    """What generate.py builds of it."""
    from vidlab.lab.loading import LoadSettings, module_of
    from vidlab.lab.trusted_config import Allowed, trained_config
    from vidlab.training.checkpoint_io import load_checkpoint

    text = (folder / "config.yaml").read_bytes().decode("utf-8", "replace")
    save(folder / "last.ckpt", content(text))
    before = Path.cwd()
    os.chdir(folder)
    try:
        state = load_checkpoint(folder / "last.ckpt")
        trained = trained_config(state, folder / "last.ckpt", Allowed())
        built = module_of(state, trained, folder / "last.ckpt", LoadSettings())
    finally:
        os.chdir(before)
        if (folder / CANARY).exists():
            raise PromiseBrokenError("escaped", "a stranger's code ran")
    items: dict[str, str] = {}
    walk(dict(built.state_dict()), "", items)
    return Found({"module": digest(*items.items())})


TARGETS = (
    Target("checkpoint", make_checkpoint, read_checkpoint, exact=True),
    Target("checkpoint.forged", make_forged, read_checkpoint),
    Target("checkpoint.config", make_rebuilt, read_rebuilt),
)
