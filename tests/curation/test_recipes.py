"""Recipes, steps and engines of conf/, and what curate.py makes of them."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from vidlab.curation.curate import Settings, curate
from vidlab.curation.engine.engines import Engine, Serial
from vidlab.curation.engine.stage import Measure
from vidlab.curation.output.lists import write_lists
from vidlab.curation.output.report import write_report
from vidlab.curation.output.shards import ShardExport
from vidlab.curation.recipe import Recipe, recipe
from vidlab.curation.sources import source_videos
from vidlab.curation.stages.slicing import Slice
from vidlab.data.datasets.folder import FolderSource
from vidlab.data.datasets.webdataset import TarShards
from vidlab.data.storage.index import ClipIndex
from vidlab.data.video import encode
from vidlab.errors import UserError
from vidlab.lab.cli.hydra_main import instantiate
from vidlab.lab.curate import run_curation
from vidlab.lab.curating.live import LiveFunnel
from vidlab.lab.curating.run import build_recipe, build_settings, curation_text
from vidlab.lab.runs import run_folder  # noqa: F401  registers its resolver
from vidlab.lab.trusted_config import own_classes

CONF = Path(__file__).resolve().parents[2] / "conf"
RECIPES = sorted(path.stem for path in (CONF / "curation").glob("*.yaml"))
STEPS = sorted(path.stem for path in (CONF / "curation" / "step").glob("*.yaml"))
ENGINES = sorted(path.stem for path in (CONF / "engine").glob("*.yaml"))


def composed(*words: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("curate", ["hydra.mode=RUN", "logger=none", *words], return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe(name):
    cfg = composed(f"curation={name}")
    made = build_recipe(cfg)
    assert isinstance(made, Recipe) and own_classes(cfg.curation) == []
    published = {step.name for step in made.steps if step.published}
    assert published == set(cfg.curation.published)
    if "ocr_crop" in cfg.curation:  # RapidOCR is an extra, whose absence is told first
        cfg.curation.ocr_crop = None
        made = build_recipe(cfg)
    with pytest.raises(
        UserError, match=r"curation\.aesthetic.*is not set.*leave the step out with curation.aesthetic=null"
    ):
        made.check()


@pytest.mark.parametrize("name", STEPS)
def test_every_step(name):
    cfg = OmegaConf.load(CONF / "curation" / "step" / f"{name}.yaml")
    (_, step) = recipe("one", more=instantiate(cfg, "more")).steps
    assert step.stages and own_classes(OmegaConf.create({"more": cfg})) == []
    for named in step.stages:
        named.stage.version()
        assert not isinstance(named.stage, Measure) or named.stage.provides


@pytest.mark.parametrize("name", ENGINES)
def test_every_engine(name):
    cfg = composed("curation=stiv", f"engine={name}")
    settings = build_settings(cfg, build_recipe(cfg))
    assert isinstance(settings, Settings) and isinstance(settings.engine, Engine)
    assert settings.root.name == "moving_shapes-stiv"


def test_the_steps_of_open_sora_plan_are_those_of_its_table():
    names = [step.name for step in build_recipe(composed("curation=open_sora_plan")).steps]
    assert names == ["open", "slice", "jump_cuts", "motion", "ocr_crop", "aesthetic", "technical", "motion_again"]
    brisque = build_recipe(composed("curation=open_sora_plan", "curation/step@curation.technical=brisque"))
    assert [step.name for step in brisque.steps] == names and brisque.left_out == ()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("stage=curate",), "stage=curate needs a recipe: add curation=open_sora_plan"),
        (("curation=stiv", "curation.scenes=3"), "curation.scenes=3: a step is a stage"),
        (("curation=stiv", "sources_per_partition=0"), "sources_per_partition=0"),
        (("curation=open_sora_plan", "curation.motion.highest=1"), "curation.motion.highest=1: Range has no setting"),
        (("engine=process", "engine.start=thread", "curation=stiv"), "engine.start=thread"),
        (
            ("curation=open_sora_plan", "curation.motion.least=1"),
            "curation.motion: least=1 is above most=0.3 of motion",
        ),
        (("curation=open_sora_plan", "curation.jump_cuts.keep.max_frames=9"), "curation.jump_cuts.keep: every=1, min_"),
        (
            ("curation=stiv", "curation/step@curation.scenes=transnet_cuts", "curation.scenes.measure.threshold=1"),
            "curation.scenes.measure: threshold=1: it must be",
        ),
        (
            (
                "curation=open_sora_plan",
                "curation/step@curation.technical=brisque",
                "curation.technical.measure.frames=0",
            ),
            "curation.technical.measure: frames=0, short_side=480",
        ),
    ],
)
def test_mistakes_are_one_message(words, message):
    with pytest.raises((UserError, Exception), match=message.replace(".", r"\.")):
        cfg = composed(*[word for word in words if "highest" not in word])
        if "curation.motion.highest=1" in words:
            OmegaConf.update(cfg, "curation.motion.highest", 1, force_add=True)
        run_curation(cfg)


def test_what_a_recipe_lacks_is_told_before_clips_are_looked_for(monkeypatch):
    def made(node, key):
        assert key != "data.source", "a data set was made"
        return instantiate(node, key)

    monkeypatch.setattr("vidlab.lab.curating.run.instantiate", made)
    with pytest.raises(UserError, match=r"curation\.aesthetic.*is not set"):
        run_curation(composed("curation=stiv"))


def color_field(number: int) -> np.ndarray:
    """A smooth picture (24, 32, 3) of one hue, which tells it from its neighbors."""
    rows, columns = np.mgrid[:24, :32] * 2 * np.pi
    wave = 150 + 60 * np.sin(columns / 32 + number) * np.cos(rows / 24)
    return (wave[..., None] * [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1)][number]).astype(np.uint8)


def test_from_raw_videos_to_clips_that_train(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VIDLAB_CACHE", str(tmp_path / "cache"))
    raw = tmp_path / "raw"
    raw.mkdir()
    scenes = [color_field(number) for number in range(4)]
    for number, scene in enumerate(scenes):
        moving = [np.roll(one, frame, axis=1) for one in (scene, scenes[number - 1]) for frame in range(20)]
        frames = np.stack([scene] * 40 if number == 3 else moving)
        (raw / f"{number} <b>.mp4").write_bytes(encode(frames, 10, lossless=True))
        (raw / f"{number} <b>.txt").write_text(f"scene {number}")
    without = [f"curation.{step}=null" for step in ("aesthetic", "most_motion", "most_aesthetic")]
    words = ("data=folder", f"data.path={raw}", "curation.scenes.keep.min_frames=8", "folder=out")
    cfg = composed("curation=stiv", *without, *words)
    run_curation(cfg)
    out = capsys.readouterr().out
    assert "6 clips kept" in out and "aesthetic, most_motion, most_aesthetic did not run" in out
    assert "rejected: 1 at motion: flow below 0.01" in out and "train.py data=shards data.path=" in out
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<b>.mp4" not in page and "0 &lt;b&gt;.mp4" in page and "flow below 0.01" in page and "42.9 %" in page
    assert 'src="http' not in page and "href" not in page and "<script" not in page
    index = ClipIndex.open(TarShards(str(tmp_path / "out" / "shards")).prepare())
    rows = [index.row(at) for at in range(len(index))]
    assert sorted((row.source, row.captions[0], row.frames) for row in rows) == [
        (f"{n} <b>.mp4", f"scene {n}", 20) for n in range(3) for _ in range(2)
    ]
    assert all(row.scores["flow"] > 0.01 for row in rows)
    listed = json.loads((tmp_path / "out" / "open_sora_plan.json").read_text())
    assert [item["cut"] for item in listed] == [[0, 20], [20, 40]] * 3 and listed[0]["cap"] == ["scene 0"]
    assert (tmp_path / "out" / "open_sora_plan.json").parent.joinpath(listed[0]["path"]).is_file()
    from vidlab.data.datasets.panda70m import read_panda_csv

    clips = list(read_panda_csv(tmp_path / "out" / "panda.csv"))
    assert [(clip.start, clip.end) for clip in clips] == [(0.0, 2.0), (2.0, 4.0)] * 3


def test_videos_of_a_folder_are_named_by_their_paths_in_it(tmp_path):
    names = [b"one/a.mp4", b"one/caf\xe9.mp4"]
    for name in map(os.fsdecode, names):
        (tmp_path / "raw" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "raw" / name).write_bytes(encode(np.zeros((4, 24, 32, 3), np.uint8), 4))
    sources = list(source_videos(FolderSource(str(tmp_path / "raw"))))
    assert [source.name for source in sources] == ["one/a.mp4", r"one/caf\xe9.mp4"]
    made = recipe("test", slice=Slice(1.0))
    done = curate(made, sources, Settings(tmp_path / "out", Serial(), export=ShardExport()), LiveFunnel())
    write_lists(done)
    assert json.loads((tmp_path / "out" / "open_sora_plan.json").read_text()) == []
    write_lists(done, "grey")
    assert [item["cap"] for item in json.loads((tmp_path / "out" / "open_sora_plan.json").read_text())] == [
        ["grey"]
    ] * 2
    assert done.funnel.kept == 2 and write_report(done, tmp_path / "report.html").is_file()
    text = curation_text(done, composed("curation=stiv"))
    assert "2 kept clips have no caption and are not in the shards" in text and "train on it" not in text


def test_an_engine_is_chosen_by_name():
    assert isinstance(instantiate(composed("engine=serial").engine, "engine"), Engine)
