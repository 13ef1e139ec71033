"""What makes a video goes out as safetensors and JSON and comes back: the same videos, bit by bit."""

import copy
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from vidlab.autoencoders.wfvae import WFVAE
from vidlab.autoencoders.wfvae.weights import export_weights
from vidlab.digests import sealed
from vidlab.errors import UserError
from vidlab.hub import read_json
from vidlab.lab.cli.hydra_main import instantiate
from vidlab.lab.compose import build_module
from vidlab.lab.evaluation.entries import build_entry
from vidlab.lab.evaluation.run import evaluate_run
from vidlab.lab.export import main as export
from vidlab.lab.generate import from_checkpoint
from vidlab.lab.init import CheckpointSource, RunContext
from vidlab.lab.runs.resolve import resolve_run
from vidlab.lab.runs.run_folder import RUNS
from vidlab.metrics.vbench.temporal_flickering import TemporalFlickering
from vidlab.tensors import save_tensors

CONF = Path(__file__).resolve().parents[2] / "conf"
SMALL = ("callbacks=[]", "logger=none", "model.backbone.width=16", "model.backbone.depth=1", "model.backbone.heads=1",
         "data.frames=5", "data.height=16", "data.width=16")  # fmt: skip
HAAR = ("data.frames=4", "autoencoder.scale=0.4", "data.source.train_clips=4", "data.source.val_clips=4")
RELEASE = ("model=open_sora_plan", "model.backbone.heads=2", "model.backbone.width=48", "data.frames=4")
PROMPTS = ["a red square moving right", "a blue circle"]


def composed(name: str, *arguments: str) -> DictConfig:
    return copy.deepcopy(_composed(name, *arguments))


@cache
def _composed(name: str, *arguments: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(name, list(arguments))


def trained(folder: Path, *arguments: str) -> Path:
    """A checkpoint of a denoiser that answers, its averaged weights other than the raw ones."""
    cfg = composed("train", *SMALL, *arguments)
    torch.manual_seed(0)
    module = build_module(cfg)
    module.configure_model()
    with torch.no_grad():
        for parameter in (*module.backbone.parameters(), *module.text_encoder.parameters()):
            parameter.copy_(0.1 * torch.randn(parameter.shape))
    state: dict[str, Any] = {"state_dict": module.state_dict(), "global_step": 7}
    module.on_save_checkpoint(state)
    known = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    state["ema"] = {name: 1.5 * value for name, value in state["state_dict"].items() if name in known}
    state["config"] = OmegaConf.to_yaml(cfg, resolve=True)
    torch.save(state, folder / "run.ckpt")
    return folder / "run.ckpt"


@pytest.fixture
def wfvae(tmp_path) -> Path:
    """Published weights of ``autoencoder=wfvae_nano autoencoder.width=8``, each channel with a scale of its own."""
    node = composed("train", "autoencoder=wfvae_nano", "autoencoder.width=8", "autoencoder.start=random").autoencoder
    model = instantiate(node, "autoencoder")
    model.set_latent_scale([0.1 * number for number in range(1, 9)], [0.3] * 8)
    export_weights(model, tmp_path / "nano")
    return tmp_path / "nano"


def exported(checkpoint: Path, *arguments: str) -> Path:
    folder = checkpoint.parent / "-".join(["exported", *arguments])
    export([str(checkpoint), str(folder), *arguments])
    return folder


def videos(reference: Path, *arguments: str) -> torch.Tensor:
    cfg = composed(
        "generate", "prompt=x", "num_videos=1", "accelerator=cpu", "precision=32-true", "steps=2", *arguments
    )
    cfg.checkpoint = str(reference)
    _, make = from_checkpoint(cfg)
    return torch.stack([torch.from_numpy(sample.frames) for sample in make(PROMPTS)])


@pytest.mark.parametrize("arguments", [HAAR, RELEASE], ids=["words-haar", "open_sora_plan"])
def test_a_run_and_its_export_make_the_same_videos(tmp_path, arguments):
    checkpoint = trained(tmp_path, *arguments)
    folder = exported(checkpoint)
    assert {path.stat().st_mode & 0o777 for path in folder.rglob("*") if path.is_file()} == {0o644}
    checkpoint.rename(tmp_path / "elsewhere.ckpt")
    averaged, again = videos(tmp_path / "elsewhere.ckpt"), videos(folder)
    assert torch.equal(again, averaged) and not torch.equal(again[0], again[1])
    raw = exported(tmp_path / "elsewhere.ckpt", "--weights", "raw")
    assert torch.equal(videos(raw, "weights=raw"), videos(tmp_path / "elsewhere.ckpt", "weights=raw"))
    assert not torch.equal(videos(raw, "weights=raw"), averaged)
    with pytest.raises(UserError, match=r"weights=raw: .* holds averaged weights only. Export the run with --weights"):
        videos(folder, "weights=raw")
    with pytest.raises(UserError, match=r"holds no averaged weights"):
        videos(raw)


def test_an_autoencoder_of_its_own_goes_with_it(tmp_path, wfvae):
    weights = (f"autoencoder.path={wfvae}", "autoencoder.width=8", "conditioning=frame_replacement")
    checkpoint = trained(tmp_path, "autoencoder=wfvae_nano", *weights)
    folder, made = exported(checkpoint), videos(checkpoint)
    assert read_json(folder / "vae" / "config.json") == read_json(wfvae / "config.json"), "in its published form"
    wfvae.rename(tmp_path / "gone")
    folder = folder.rename(tmp_path / "moved")
    assert torch.equal(videos(folder), made)
    assert read_json(folder / "vidlab.json")["settings"]["autoencoder"]["path"] == "vae", "nothing of this machine"
    # its autoencoder is found in an evaluation too
    with initialize_config_dir(str(CONF), version_base="1.3"):
        entry = build_entry(str(folder), compose("evaluate", ["autoencoders=[x]"]))
    latents = torch.randn(1, 8, 2, 2, 2)
    expected = WFVAE.from_published(tmp_path / "gone").eval().decode(latents)
    assert entry.step == 7 and torch.equal(entry.autoencoder.decode(latents), expected)


def test_it_is_evaluated_and_gives_weights_to_a_new_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint = trained(tmp_path, *HAAR)
    folder = exported(checkpoint)
    wanted = (f"run={folder}", "num_videos=2", "noise_levels=0", "steps=2", "accelerator=cpu", "precision=32-true")
    found = []
    for reference in (checkpoint, folder):
        run = resolve_run(str(reference), RUNS, "vidlab", exports=True)
        done = evaluate_run(run, composed("evaluate", *wanted), {"flicker": TemporalFlickering()})
        found.append([clip.frames() for clip in done.clips])
        assert done.step == 7
    assert all((one == other).all() for one, other in zip(*found, strict=True))
    sources = [CheckpointSource(str(path)).load(RunContext("vidlab", None), "init.run")[0].weights
               for path in (checkpoint, folder)]  # fmt: skip
    assert all(torch.equal(value, sources[0][name]) for name, value in sources[1].items())
    assert {name.partition(".")[0] for name in sources[1]} == {"backbone", "text_encoder"}
    with pytest.raises(UserError, match=r"ckpt_path=.* is an exported folder, from which no run goes on"):
        resolve_run(str(folder), RUNS, "vidlab")


def test_a_frozen_text_encoder_is_kept_by_its_name_or_copied(tmp_path, make_module):
    from vidlab.lab.export import Origin
    from vidlab.lab.export import export as write

    local = tmp_path / "t5"
    local.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "pytorch_model.bin"):
        (local / name).write_text(name)
    module = make_module()
    module.text_encoder.trainable = False
    module.text_encoder.requires_grad_(False)
    for number, (path, kept) in enumerate((("asset:minilm", "asset:minilm"), (str(local), "text_encoder"))):
        folder = tmp_path / f"out{number}"
        told = write(module, folder, Origin({"text_encoder": {"path": path, "tokenizer": None}}))
        assert read_json(folder / "vidlab.json")["settings"]["text_encoder"]["path"] == kept
        assert path in told["text encoder"]
    assert not (tmp_path / "out0" / "text_encoder").exists()
    names = {path.name for path in (tmp_path / "out1" / "text_encoder").iterdir()}
    assert names == {"config.json", "model.safetensors", "tokenizer.json"}, "no pickles"


@pytest.fixture
def stranger(tmp_path) -> Path:
    return exported(trained(tmp_path, *HAAR))


def rewritten(folder: Path, **changes: Any) -> Path:
    """The folder with other settings, as if it had been exported so."""
    file = folder / "vidlab.json"
    content = read_json(file)
    for key, value in changes.items():
        group, _, name = key.partition("__")
        content["settings"][group] = {**content["settings"][group], name: value} if name else value
    file.write_text(json.dumps(sealed(content)))
    return folder


def test_a_strangers_folder_names_no_class_and_reads_nothing_else(stranger):
    with pytest.raises(UserError, match=r"asks for os\.system \(autoencoder\._target_\)"):
        videos(rewritten(stranger, autoencoder={"_target_": "os.system"}))
    with pytest.raises(UserError, match=r"objective\.x=\$\{oc\.env:HOME\} in its configuration would be replaced"):
        videos(
            rewritten(
                stranger, autoencoder={"_target_": "vidlab.autoencoders.haar.Haar"}, objective__x="${oc.env:HOME}"
            )
        )


def test_damage_is_named(stranger):
    file = stranger / "vidlab.json"
    whole = file.read_text()
    file.write_text(whole.replace('"scale": 0.4', '"scale": 0.5'))
    with pytest.raises(UserError, match=r"vidlab\.json is damaged"):
        videos(stranger)
    file.write_text(json.dumps(sealed({"format": 2})))
    with pytest.raises(UserError, match=r"is of format 2, this version of vidlab reads 1"):
        videos(stranger)
    file.write_text(whole)
    text = stranger / "text_encoder" / "trained.safetensors"
    content = bytearray(text.read_bytes())
    content[-1] ^= 1
    text.write_bytes(bytes(content))
    with pytest.raises(UserError, match=r"trained\.safetensors cannot be read, it is damaged"):
        videos(stranger)
    save_tensors({"start": torch.zeros(3)}, text)
    with pytest.raises(UserError, match=r"The checkpoint is of another model"):
        videos(stranger)


def test_another_export_does_not_go_into_the_same_folder(stranger, capsys):
    assert export([str(stranger.parent / "run.ckpt"), str(stranger)]) == 2
    assert "already holds weights" in capsys.readouterr().err


def test_it_says_what_was_written_and_what_reads_it(tmp_path, capsys):
    exported(trained(tmp_path, *HAAR))
    told = capsys.readouterr().out
    assert "text_encoder/trained.safetensors, trained with the denoiser" in told and "no weights" in told
    assert "optimizer, data" in told and f"generate.py checkpoint={tmp_path / 'exported'}" in told
