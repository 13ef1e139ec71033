"""Weights of others: pickles, TorchScript archives, safetensors, and folders of published models."""

import json
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..edits import EDITS
from ..target import Found, Subject, Target, digest

RELEASE = ("latent_channels", 4), ("width", 8), ("encoder_energy", 4), ("decoder_energy", 4)


def tensors(found: Mapping[str, Tensor]) -> Found:
    """Each tensor by its name."""
    flat = {name: value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() for name, value in found.items()}
    return Found({name: digest(str(value.dtype), tuple(value.shape), flat[name]) for name, value in found.items()})


def arrays() -> dict[str, object]:
    random = np.random.default_rng(0)
    kernel = random.standard_normal((3, 4), dtype=np.float32)
    return {"a": {"kernel": kernel, "bias": np.arange(4, dtype=">f4")}, "b": np.asfortranarray(kernel.T), "step": 3}


def make_pickle(folder: Path) -> Sequence[Subject]:
    (folder / "w.ckpt").write_bytes(pickle.dumps(arrays(), 4))
    return [Subject("w.ckpt", "pickle", countable=False)]


def read_pickled(folder: Path) -> Found:
    from vidlab.perceptual.unpickle import read_pickle

    return tensors(read_pickle(folder / "w.ckpt"))


class Small(torch.nn.Module):
    """Something to be scripted."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(2, 3, 3)
        self.norm = torch.nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


def make_script(folder: Path) -> Sequence[Subject]:
    torch.manual_seed(0)
    torch.jit.trace(Small().eval(), torch.zeros(1, 2, 8, 8)).save(str(folder / "w.pt"))
    return [Subject("w.pt", "zip", countable=False)]


def read_script(folder: Path) -> Found:
    from vidlab.perceptual.unpickle import read_torchscript

    return tensors(read_torchscript(folder / "w.pt"))


def make_safe(folder: Path) -> Sequence[Subject]:
    from safetensors.torch import save_file

    torch.manual_seed(0)
    save_file({"a": torch.randn(3, 4), "b": torch.arange(5)}, folder / "w.safetensors")
    return [Subject("w.safetensors", EDITS["safetensors"], countable=False)]


def read_safe(folder: Path) -> Found:
    from vidlab.perceptual.weights import load_weights

    return tensors(load_weights(str(folder / "w.safetensors")))


def make_wfvae(folder: Path) -> Sequence[Subject]:
    """A WF-VAE as this project exports it."""
    from vidlab.autoencoders.wfvae import WFVAE
    from vidlab.autoencoders.wfvae.weights import export_weights

    torch.manual_seed(0)
    settings = {"encoder_blocks": 1, "decoder_blocks": 1, "connect_blocks": 1, "compat": True}
    export_weights(WFVAE(**dict(RELEASE), **settings), folder)
    return parts_of(folder)


def parts_of(folder: Path) -> Sequence[Subject]:
    """All files of an exported folder."""
    subjects = []
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        edits = "json" if path.suffix == ".json" else "safetensors" if path.suffix == ".safetensors" else "text"
        subjects.append(Subject(path.name, edits, countable=False))
    return subjects


def read_wfvae(folder: Path) -> Found:
    from vidlab.autoencoders.wfvae import WFVAE

    return tensors(WFVAE.from_published(folder).state_dict())


def make_release(folder: Path) -> Sequence[Subject]:
    """An Open-Sora Plan denoiser as this project exports it."""
    from vidlab.backbones.open_sora_plan import OpenSoraPlan
    from vidlab.backbones.open_sora_plan_release import export_release
    from vidlab.clip import LatentShape
    from vidlab.layers.layouts import GroupSkip, LayerPlan, SingleSkip

    torch.manual_seed(0)
    plan = LayerPlan([SingleSkip(4), GroupSkip(4)], 1, 1)
    model = OpenSoraPlan(LatentShape(8, 2, 4, 4), 10, width=24, depth=3, heads=2, patch=(1, 2, 2), layouts=plan)
    export_release(model, folder, 20_000)
    return parts_of(folder)


def read_release(folder: Path) -> Found:
    from vidlab.backbones.open_sora_plan import OpenSoraPlan
    from vidlab.clip import LatentShape

    return tensors(OpenSoraPlan.released(folder, LatentShape(8, 2, 4, 4)).state_dict())


def make_index(folder: Path) -> Sequence[Subject]:
    """A release of two shards with a table of contents, without a configuration."""
    from vidlab.backbones.open_sora_plan_release import write_release

    torch.manual_seed(0)
    write_release({"a": torch.randn(40), "b": torch.randn(40), "c": torch.arange(3)}, folder, 200)
    json.loads(next(folder.glob("*.json")).read_text())
    return parts_of(folder)


def read_index(folder: Path) -> Found:
    from vidlab.backbones.open_sora_plan_release import read_release

    return tensors(read_release(folder))


def make_run(folder: Path) -> Sequence[Subject]:
    """The parts of an exported run that no other target reads."""
    from vidlab.backbones.open_sora_plan_release import write_release
    from vidlab.digests import sealed
    from vidlab.lab.exported import FORMAT, TEXT, TRAINED
    from vidlab.tensors import save_tensors

    torch.manual_seed(0)
    write_release({"a": torch.randn(40)}, folder)
    (folder / TEXT).mkdir()
    save_tensors({"b": torch.randn(3, 4)}, folder / TEXT / TRAINED)
    haar = {"_target_": "vidlab.autoencoders.haar.Haar", "scale": 0.3}
    settings = {"data": {"frames": 8}, "autoencoder": haar, "text_encoder": {"width": 8}, "losses": {}}
    content = {"format": FORMAT, "weights": "ema", "step": 7, "settings": settings}
    (folder / "vidlab.json").write_text(json.dumps(sealed(content), indent=1))
    return [*parts_of(folder), Subject(f"{TEXT}/{TRAINED}", "safetensors", countable=False)]


def read_run(folder: Path) -> Found:
    from vidlab.lab.exported import exported_state
    from vidlab.lab.trusted_config import Allowed, trained_config

    state = exported_state(folder)
    config = trained_config(state, folder, Allowed())
    facts = digest(str(state["averaged"]), str(state["global_step"]), str(config))
    return Found({**tensors(state["state_dict"]).items, "facts": facts})


TARGETS = (
    Target("weights.pickle", make_pickle, read_pickled),
    Target("weights.torchscript", make_script, read_script),
    Target("weights.safetensors", make_safe, read_safe),
    Target("export.wfvae", make_wfvae, read_wfvae, exact=True),
    Target("export.open_sora_plan", make_release, read_release, exact=True),
    Target("export.run", make_run, read_run, exact=True),
    Target("export.shards", make_index, read_index, exact=True),
)
