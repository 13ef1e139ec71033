"""Every file under conf/ composes, and every choice that this machine can run trains two steps.

A new file is tested without touching this one. Choices that need what is not here fail with their documented message.
"""

import os
import re
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from vidlab.errors import UserError
from vidlab.lab.cli.hydra_main import instantiate
from vidlab.lab.compose import build_module
from vidlab.lab.runs import run_folder  # noqa: F401  registers its resolver
from vidlab.lab.train import run_training
from vidlab.lab.trusted_config import own_classes

CONF = Path(__file__).resolve().parents[1] / "conf"
# groups that training does not read: tests/metrics/test_metrics_conf.py and tests/pipelines go through them
EVALUATED = ("metrics", "system")
CHOICES = sorted(
    path.relative_to(CONF).with_suffix("").as_posix()
    for path in CONF.glob("*/**/*.yaml")
    if path.relative_to(CONF).parts[0] not in EVALUATED and not path.stem.startswith("_")
)
LISTS = ("callbacks",)  # groups of which several choices may be taken
SMALL = {
    "": ["precision=32-true", "trainer.max_steps=2", "data.batch_size=2", "data.num_workers=0", "data.val_clips=2",
         "sampler.steps=2", "callbacks.previews.count=1"],
    "model": ["model.backbone.width=48", "model.backbone.heads=2", "model.backbone.depth=1"],
    "data/moving_shapes": ["data.source.train_clips=8", "data.source.val_clips=4"],
    "trainer": ["trainer.accelerator=cpu", "trainer.devices=1"],
    # an autoencoder alone: LPIPS would fetch its weights
    "autoencoder": ["precision=32-true", "trainer.max_steps=2", "data.batch_size=2", "data.num_workers=0",
                    "data.val_clips=4", "task.perceptual=null", "data.frames=5", "data.height=16", "data.width=16"],
}  # fmt: skip
# choices that train an autoencoder, which has no denoiser, no sampler and no preview
AUTOENCODERS = ("task/autoencoder", "experiment/wfvae_nano", "experiment/wfvae_wavelet_loss")
FETCH = "could not be fetched"
ABSENT = {
    "trainer/gpu": (not torch.cuda.is_available(), "trainer.accelerator=gpu: no CUDA GPU is visible to torch"),
    "text_encoder/transformers": (True, "text_encoder.path is not set. Give a local folder"),
    "text_encoder/stable_diffusion": (True, "text_encoder.path is not set. Give a local folder"),
    "text_encoder/minilm": (True, FETCH),
    "data/clips": (True, FETCH),
    "data/folder": (True, "data.path is not set: give a folder of videos"),
    "data/shards": (True, "data.path is not set: give the folder of WebDataset shards"),
    "init/from_run": (True, "init.run=last: no run of experiment 'vidlab' has a checkpoint yet"),
    "init/image_to_video": (True, "init.run=last: no run of experiment 'vidlab' has a checkpoint yet"),
    "init/mamba_from_attention": (True, "init.run=last: no run of experiment 'vidlab' has a checkpoint yet"),
    "init/merge": (True, "init.temporal_run=last: no run of experiment 'vidlab' has a checkpoint yet"),
    "init/open_sora_plan": (True, "init.path is not set: give the folder of the released checkpoint"),
    "autoencoder/image_vae": (True, "autoencoder.path is not set. Give a local folder"),
    "experiment/wfvae_nano": (True, FETCH),
    "experiment/wfvae_wavelet_loss": (True, FETCH),
    "losses/reward_clip_hps": (True, "losses.reward.scorers.hps.clip is not set: give a local folder of a CLIP"),
    **{
        f"experiment/m4v_{name}": (True, "init.run=last: no run of experiment 'm4v' has a checkpoint yet")
        for name in ("videos", "reward")
    },
    "conditioning/structure": (True, "init=none gives none. Train the model first"),
    **{
        f"structure/{name}": (True, "init=none gives none. Train the model first")
        for name in ("canny", "given", "hed", "shape_edges", "shape_masks")
    },
    "structure/depth": (True, "structure.depth.path is not set: give the folder of a depth model"),
    "structure/sketch": (True, "structure.sketch.path is not set: give PiDiNet's file"),
    "autoencoder/wfvae_nano": (True, "autoencoder.path is not set, so the autoencoder has random weights"),
}
PUBLISHED = ("panda10m", "webvid10m", "openvid1m", "ucf101", "open_sora_plan")
ABSENT |= {f"data/{name}": (True, f"data.path is not set: give the folder of {name}") for name in PUBLISHED}
# groups whose choices do not stand at the top
PLACED = {"bucketing": "bucketing@data.bucketing", "lengths": "lengths@_global_"}
# two steps, or a moment
BUDGETS = {"steps": 2, "samples": 4, "tokens": 400, "flops": 1e8, "wall_time": 0.01}
FEW_TOKENS = ["data.height=16", "data.width=16"]
# an image model trained within seconds; frames of one UNet take longer than those of any transformer
HARIVO = ["model.image_training.max_steps=1", "model.image_training.batch_size=1", "model.backbone.width=16",
          "model.backbone.heads=2", *FEW_TOKENS]  # fmt: skip
# what a choice cannot do without
WITH = {
    "init/from_run": ["init.run=last"],
    **{f"experiment/paper/wfvae_stage{number}": ["init.run=last"] for number in (2, 3)},
    **{
        f"experiment/{name}": ["init.run=last"]
        for name in ("m4v_videos", "m4v_reward", *(f"paper/m4v_{s}" for s in ("57f", "121f", "768p", "reward")))
    },
    "init/image_to_video": ["init.run=last"],
    "init/mamba_from_attention": ["model=mmdim", "init.run=last"],
    "init/merge": ["init.image_run=last", "init.temporal_run=last"],
    "model/harivo": HARIVO,
    "losses/harivo": ["model=harivo", *HARIVO],
    "model/paper/open_sora_plan_i2v": ["conditioning=masked_video"],
    **{f"mixer/{name}": ["model=mmdim"] for name in ("ssd", "attention", "parallel")},
    "lengths/causal": ["autoencoder=trilinear"],
    "guidance/separate_image_text": ["conditioning=frame_replacement"],
    "guidance/prompt": ["conditioning=frame_replacement"],
    "guidance/first_and_later": ["objective=pyramid_flow"],
    "guidance/self_quality": ["objective=pyramid_flow"],
    "sampler/pyramid": ["objective=pyramid_flow"],
    **{f"budget/{unit}": [f"budget.value={value}", "trainer.max_steps=-1"] for unit, value in BUDGETS.items()},
}


WITH |= {choice: ["conditioning=structure"] for choice in CHOICES if re.fullmatch("structure/(?!none).*", choice)}


def overrides(choice: str) -> list[str]:
    """The command line that takes a choice, at the smallest size."""
    group, _, name = choice.partition("/")
    group_at = PLACED.get(group, group)
    chosen = [f"{group_at}=[{','.join(dict.fromkeys(['default', name]))}]" if group in LISTS else f"{group_at}={name}"]
    if choice in AUTOENCODERS or choice.startswith("experiment/paper/wfvae"):
        shapes = SMALL["data/moving_shapes"] if choice == "task/autoencoder" else []
        return [*chosen, *WITH.get(choice, []), *SMALL["autoencoder"], *SMALL["trainer"], *shapes, "logger=none"]
    if choice.startswith("experiment/paper/"):
        return [*chosen, *WITH.get(choice, []), *SMALL["trainer"], "logger=none"]
    small = SMALL[""] + (SMALL["trainer"] if choice != "trainer/gpu" else [])
    small += SMALL["model"] if group != "model" or name == "full3d" else FEW_TOKENS
    small += SMALL["data/moving_shapes"] if group != "data" or name == "moving_shapes" else []
    # tracking is slow to start and tested with its own choice
    small = [word for word in small if group != "budget" or name == "none" or not word.startswith("trainer.max_steps=")]
    return [*chosen, *small, *WITH.get(choice, []), *(["logger=none"] if group != "logger" else [])]


def compose_train(folder: Path, *arguments: str) -> DictConfig:
    """What ``train.py`` composes, with ``folder`` as the run's folder."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", ["hydra.mode=RUN", *arguments], return_hydra_config=True)
    with open_dict(cfg):
        cfg.hydra.runtime.output_dir = str(folder)
    HydraConfig.instance().set_config(cfg)
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """An empty working folder, and no way to the network."""
    monkeypatch.chdir(tmp_path)
    for name, value in {"INDEX_URL": "http://127.0.0.1:9/simple", "CONFIG_FILE": "/dev/null", "RETRIES": "0"}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    before = dict(os.environ)
    yield
    # trainer=ddp sets LOCAL_RANK and more; a later test would take itself for a launched process and wait for others
    os.environ.clear()
    os.environ.update(before)


# groups of which test_compatibility.py trains and samples every choice; as whole runs they are slow tests
CROSSED = ("objective", "conditioning", "guidance", "sampler")
OF_THEIR_KIND = ("objective/pyramid_flow", "conditioning/masked_video", "guidance/cfg_interval", "sampler/heun")


@pytest.mark.parametrize("choice", [choice for choice in CHOICES if choice.partition("/")[0] in CROSSED])
def test_every_part_of_a_system_is_put_together(choice, tmp_path):
    cfg = compose_train(tmp_path, *overrides(choice))
    OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert own_classes(cfg) == []
    assert build_module(cfg)


def whole_run(choice: str) -> object:
    slow = choice.partition("/")[0] in CROSSED and choice not in OF_THEIR_KIND
    return pytest.param(choice, marks=pytest.mark.slow if slow else ())


@pytest.mark.parametrize("choice", map(whole_run, CHOICES))
def test_every_choice(choice, tmp_path, monkeypatch):
    name = choice.partition("/")[2]
    cfg = compose_train(tmp_path, *overrides(choice))
    OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert own_classes(cfg) == []  # what is shipped can come back in a checkpoint
    if name.startswith("paper/"):
        if choice.startswith(("autoencoder/", "experiment/paper/")):
            with torch.device("meta"):
                training = choice.startswith("experiment/")
                autoencoder = build_module(cfg).autoencoder if training else instantiate(cfg.autoencoder, "autoencoder")
            assert autoencoder.latent_shape(cfg.data.frames, cfg.data.height, cfg.data.width)
        else:
            assert build_module(cfg)  # models are counted below
        return
    absent, message = ABSENT.get(choice, (False, ""))
    if not absent:
        loss = run_training(cfg)
        assert loss is None or 0 < loss < float("inf")
        assert (tmp_path / "checkpoints" / "last.ckpt").is_file() and (tmp_path / "summary.json").is_file()
        return
    monkeypatch.setenv("VIDLAB_CACHE", str(tmp_path / "empty"))
    with pytest.raises(UserError) as caught:
        run_training(cfg)
    assert message in str(caught.value)


def test_an_autoencoder_brings_the_lengths_it_folds(tmp_path):
    short = compose_train(tmp_path, "model=skiparse", "autoencoder=wfvae_nano", "data=clips").data
    assert (short.frames, short.bucketing.first_frame_alone) == (9, True)
    assert compose_train(tmp_path, "autoencoder=paper/wfvae_s", "data.frames=17").data.frames == 17
    whole = compose_train(tmp_path, "autoencoder=haar").data
    assert (whole.frames, whole.bucketing.first_frame_alone) == (8, False)


@pytest.mark.parametrize("choice", [choice for choice in CHOICES if choice.startswith("model/")])
def test_every_model_is_counted_without_memory(choice, tmp_path):
    cost = build_module(compose_train(tmp_path, choice.replace("/", "=", 1), *WITH.get(choice, []))).cost()
    assert cost.parameters > 0 and cost.tokens > 0 and cost.forward_flops > cost.parameters


@pytest.mark.parametrize("name", [path.stem for path in CONF.glob("*.yaml")])
def test_every_program_composes(name):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        assert compose(name)


def test_fast_dev_run(tmp_path):
    """Lightning's own switch takes loggers and checkpoints away; everything else runs."""
    run_training(compose_train(tmp_path, *overrides("model/full3d"), "+trainer.fast_dev_run=true"))
    assert (tmp_path / "summary.json").is_file() and not list(tmp_path.glob("checkpoints/*"))


def test_every_absent_choice_exists():
    assert set(ABSENT) <= set(CHOICES)
