"""Every file under conf/ composes, and every choice that this machine can run trains two steps.

A new file is tested without touching this one. Choices that need what is not here fail with their documented message.
Those of different groups share runs, as few as hold them all; each in a run of its own is a slow test.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

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

Case = TypeVar("Case")
CONF = Path(__file__).resolve().parents[1] / "conf"
# groups that training does not read: tests/metrics/test_metrics_conf.py, tests/pipelines and tests/curation go through
# them
EVALUATED = ("metrics", "system", "curation", "engine", "captioner")
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
    "text_encoder/t5_clip": (True, "text_encoder.path and text_encoder.pooled_path are not set. Give local folders"),
    "text_encoder/stable_diffusion": (True, "text_encoder.path is not set. Give a local folder"),
    "text_encoder/minilm": (True, FETCH),
    "text_encoder/classes": (
        True,
        "data=moving_shapes has captions and no classes, and text_encoder.classes is not set",
    ),
    "data/clips": (True, FETCH),
    "data/folder": (True, "data.path is not set: give a folder of videos"),
    "data/captioned": (True, "data.path is not set: give the folder that curate.py stage=caption wrote"),
    "data/shards": (True, "data.path is not set: give the folder of WebDataset shards"),
    "init/from_run": (True, "init.run=last: no run of experiment 'vidlab' has a checkpoint yet"),
    "init/image_to_video": (True, "init.run=last: no run of experiment 'vidlab' has a checkpoint yet"),
    "init/mamba_from_attention": (True, "init.run=last: no run of experiment 'vidlab' has a checkpoint yet"),
    "init/merge": (True, "init.temporal_run=last: no run of experiment 'vidlab' has a checkpoint yet"),
    "init/parents": (True, "init.runs.one=last: no run of experiment 'vidlab' has a checkpoint yet"),
    "init/open_sora_plan": (True, "init.path is not set: give the folder of the released checkpoint"),
    "autoencoder/image_vae": (True, "autoencoder.path is not set. Give a local folder"),
    "experiment/wfvae_nano": (True, FETCH),
    "experiment/wfvae_wavelet_loss": (True, FETCH),
    "losses/reward_clip_hps": (True, "losses.reward.scorers.hps.clip is not set: give a local folder of a CLIP"),
    **{
        f"experiment/m4v_{name}": (True, "init.run=last: no run of experiment 'm4v' has a checkpoint yet")
        for name in ("videos", "reward")
    },
    "conditioning/class": (True, "data=moving_shapes has captions and no classes, and text_encoder.classes is not set"),
    "conditioning/structure": (True, "init=none gives none. Train the model first"),
    **{
        f"structure/{name}": (True, "init=none gives none. Train the model first")
        for name in ("canny", "given", "hed", "shape_edges", "shape_masks")
    },
    "structure/depth": (True, "structure.depth.path is not set: give the folder of a depth model"),
    "structure/sketch": (True, "structure.sketch.path is not set: give PiDiNet's file"),
    "autoencoder/wfvae_nano": (True, "autoencoder.path is not set, so the autoencoder has random weights"),
}
PUBLISHED = ("panda10m", "webvid10m", "openvid1m", "ucf101", "open_sora_plan", "objaverse_views")
ABSENT |= {f"data/{name}": (True, f"data.path is not set: give the folder of {name}") for name in PUBLISHED}
# groups whose choices do not stand at the top
PLACED = {"bucketing": "bucketing@data.bucketing", "lengths": "lengths@_global_"}
# two steps, or a moment
BUDGETS = {"steps": 2, "samples": 4, "tokens": 400, "flops": 1e9, "wall_time": 0.01}
FEW_TOKENS = ["data.height=16", "data.width=16"]
# an image model trained within seconds; frames of one UNet take longer than those of any transformer
HARIVO = ["model.image_training.max_steps=1", "model.image_training.batch_size=1", "model.backbone.width=16",
          "model.backbone.heads=2", *FEW_TOKENS]  # fmt: skip
# what a choice cannot do without
WITH = {
    "init/from_run": ["init.run=last"],
    **{f"experiment/paper/wfvae_stage{number}": ["init.run=last"] for number in (2, 3)},
    **{f"experiment/{name}": ["init.run=last"] for name in ("m4v_videos", "m4v_reward")},
    # its own text encoder needs folders
    **{
        f"experiment/paper/m4v_{name}": ["text_encoder=words", *([] if name == "images" else ["init.run=last"])]
        for name in ("images", "57f", "121f", "768p", "reward")
    },
    "init/image_to_video": ["init.run=last"],
    "init/mamba_from_attention": ["model=mmdim", "init.run=last"],
    "init/parents": ["init.runs={one:last}", "init.parts={one:all}"],
    "init/merge": ["init.image_run=last", "init.temporal_run=last"],
    "model/harivo": HARIVO,
    "losses/harivo": ["model=harivo", *HARIVO],
    "losses/trs": ["model=full3d"],
    "model/paper/open_sora_plan_i2v": ["conditioning=masked_video"],
    **{f"mixer/{name}": ["model=mmdim"] for name in ("ssd", "attention", "parallel")},
    "data/objaverse_views": ["autoencoder=haar_frames", "model.token=[1,4,4]"],
    "data/multiview_solids": [
        "autoencoder=haar_frames",
        "model.token=[1,4,4]",
        "data.source.train_clips=8",
        "data.source.val_clips=4",
    ],
    "lengths/causal": ["autoencoder=trilinear"],
    "guidance/separate_image_text": ["conditioning=frame_replacement"],
    "guidance/prompt": ["conditioning=frame_replacement"],
    "guidance/first_and_later": ["objective=pyramid_flow"],
    "guidance/self_quality": ["objective=pyramid_flow"],
    "sampler/pyramid": ["objective=pyramid_flow"],
    **{f"budget/{unit}": [f"budget.value={value}", "trainer.max_steps=-1"] for unit, value in BUDGETS.items()},
}


WITH |= {choice: ["conditioning=structure"] for choice in CHOICES if re.fullmatch("structure/(?!none).*", choice)}


def group_of(choice: str) -> str:
    return choice.partition("/")[0]


def chosen(choice: str) -> str:
    """The word of the command line that takes a choice."""
    group, _, name = choice.partition("/")
    taken = f"[{','.join(dict.fromkeys(['default', name]))}]" if group in LISTS else name
    return f"{PLACED.get(group, group)}={taken}"


def overrides(*choices: str) -> list[str]:
    """The command line that takes choices of different groups, at the smallest size."""
    words = [chosen(choice) for choice in choices]
    needed = list(dict.fromkeys(word for choice in choices for word in WITH.get(choice, [])))
    named = {choice.partition("/")[0]: choice for choice in choices}
    if any(one in AUTOENCODERS or one.startswith("experiment/paper/wfvae") for one in choices):
        shapes = SMALL["data/moving_shapes"] if "task/autoencoder" in choices else []
        return [*words, *needed, *SMALL["autoencoder"], *SMALL["trainer"], *shapes, "logger=none"]
    if any(choice.startswith("experiment/paper/") for choice in choices):
        return [*words, *needed, *SMALL["trainer"], "logger=none"]
    small = SMALL[""] + (SMALL["trainer"] if "trainer/gpu" not in choices else [])
    small += [] if named.get("model", "").startswith("model/paper/") else SMALL["model"]
    small += FEW_TOKENS if "model" in named else []
    small += SMALL["data/moving_shapes"] if named.get("data", "data/moving_shapes") == "data/moving_shapes" else []
    if named.get("budget", "budget/none") != "budget/none":
        small = [word for word in small if not word.startswith("trainer.max_steps=")]
    # tracking is slow to start and tested with its own choice
    return [*words, *small, *needed, *(["logger=none"] if "logger" not in named else [])]


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
def alone(empty_store, tmp_path, monkeypatch):
    """A working folder with an empty store alone, and no way to the network."""
    shutil.copy(empty_store, tmp_path / "mlflow.db")
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
    if choice == "conditioning/class":
        cfg.text_encoder.classes = ["walking", "running"]
    assert build_module(cfg)


# what brings settings of many groups, or has a run of another kind
BROUGHT = re.compile(r"^ *- override /(\w+)(?:@\S+)?: (\w+)", re.MULTILINE)
ALONE = ("experiment", "task", *CROSSED)


def runs_here(choice: str) -> bool:
    return not ABSENT.get(choice, (False, ""))[0] and "/paper/" not in choice


def asks_for(choice: str) -> dict[str, str]:
    """The settings that a choice makes, brings or cannot do without, by their keys."""
    words = [chosen(choice), *WITH.get(choice, [])]
    files = [CONF / f"{word.replace('=', '/')}.yaml" for word in words]
    brought = [found for file in files if file.is_file() for found in BROUGHT.findall(file.read_text())]
    return dict(brought) | dict(word.split("=", 1) for word in words)


def packed(cases: Iterable[Case], asks_for: Callable[[Case], dict[str, str]]) -> list[list[Case]]:
    """Cases in as few runs as taking each into the first that sets none of its keys otherwise."""
    runs: list[tuple[list[Case], dict[str, str]]] = []
    for case in cases:
        asked = asks_for(case)
        fitting = (run for run in runs if all(run[1].get(key, value) == value for key, value in asked.items()))
        row, settings = next(fitting, ([], {}))
        if not row:
            runs.append((row, settings))
        row.append(case)
        settings.update(asked)
    return [row for row, _ in runs]


SHARING = [choice for choice in CHOICES if runs_here(choice) and group_of(choice) not in ALONE]
TOGETHER = packed(SHARING, asks_for)


@pytest.mark.parametrize("choices", TOGETHER, ids="+".join)
def test_choices_of_different_groups_in_one_run(choices, tmp_path):
    train_two_steps(compose_train(tmp_path, *overrides(*choices)), tmp_path)


def train_two_steps(cfg: DictConfig, folder: Path) -> None:
    OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert own_classes(cfg) == []  # what is shipped can come back in a checkpoint
    loss = run_training(cfg)
    assert loss is None or 0 < loss < float("inf")
    assert (folder / "checkpoints" / "last.ckpt").is_file() and (folder / "summary.json").is_file()


def whole_run(choice: str) -> object:
    crossed = runs_here(choice) and group_of(choice) in CROSSED and choice not in OF_THEIR_KIND
    named = group_of(choice) == "task"  # in all runs of test_advertised_values.py
    return pytest.param(choice, marks=pytest.mark.slow if crossed or named or choice in SHARING else ())


@pytest.mark.parametrize("choice", map(whole_run, CHOICES))
def test_every_choice(choice, tmp_path, monkeypatch):
    name = choice.partition("/")[2]
    cfg = compose_train(tmp_path, *overrides(choice))
    if runs_here(choice):
        train_two_steps(cfg, tmp_path)
        return
    OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert own_classes(cfg) == []
    if name.startswith("paper/"):
        if choice.startswith(("autoencoder/", "experiment/paper/")):
            with torch.device("meta"):
                training = choice.startswith("experiment/")
                autoencoder = build_module(cfg).autoencoder if training else instantiate(cfg.autoencoder, "autoencoder")
            assert autoencoder.latent_shape(cfg.data.frames, cfg.data.height, cfg.data.width)
        else:
            assert build_module(cfg)  # models are counted below
        return
    message = ABSENT[choice][1]
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
