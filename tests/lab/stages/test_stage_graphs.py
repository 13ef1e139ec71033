"""Graphs of stages: what a file may say, what is trained again after a change, and after a kill at any moment."""

import itertools
import json
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from vidlab.errors import UserError
from vidlab.files import write_json, write_text
from vidlab.lab.cli.composed import compose
from vidlab.lab.stages import running, trained
from vidlab.lab.stages.graph import GIVEN, Graph, read_graph
from vidlab.lab.stages.picture import PARTS as NAMES_OF_PARTS
from vidlab.lab.stages.report import rows_of, table_of, write_report
from vidlab.lab.stages.running import StageRunner, new_record
from vidlab.lab.stages.seeds import compare_seeds, in_words, split_seeds
from vidlab.lab.stages.trained import RECORD, weights_digest
from vidlab.lab.sweeps import record
from vidlab.lab.sweeps.record import read_sweep, write_sweep

SHIPPED = sorted(Path(__file__).resolve().parents[3].glob("experiments/*/stages*.yaml"))
DIAMOND = """
name: diamond
overrides: [model=stiv, seed=0]
stages:
  large_videos: {parents: {large_images: all_but_temporal_attention, videos: temporal_attention}, budget: {steps: 3}}
  images: {overrides: [data.images=true], budget: {steps: 1}}
  videos: {parents: {images: all_but_temporal_attention}, budget: {flops: 1e9}}
  large_images: {parents: {images: all}, overrides: [seed=1]}
"""


def graph_of(folder: Path, text: str = DIAMOND, *extra: str) -> Graph:
    path = folder / "stages.yaml"
    path.write_text(text)
    return read_graph(path, extra)


class Trainings:
    """Stands for ``train.py``: weights that are a function of the command line."""

    def __init__(self) -> None:
        self.begun: list[str] = []

    def __call__(self, words, folder: Path) -> int:
        self.begun.append(folder.name.rpartition("-")[0])
        kept = [word for word in words if not word.startswith(("hydra.run.dir", "ckpt_path", "init.runs"))]
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        value = torch.tensor([hash(tuple(kept)) % 1000], dtype=torch.float32)
        torch.save({"state_dict": {"w": value - 1}, "ema": {"w": value}}, folder / "checkpoints" / "last.ckpt")
        write_json(folder / "run.json", {"mlflow_run_id": None, "experiment": "diamond"})
        last = {"val/loss": 0.25, "hidden": 1.0}
        write_json(folder / "summary.json", {"steps": 3, "last": last, "shown": ["val/loss"], "cost": {"flops": 2e9}})
        return 0


def runner_of(folder: Path, graph: Graph, launch) -> StageRunner:
    folder.mkdir(exist_ok=True)
    if not (folder / record.RECORD).is_file():
        write_sweep(folder, new_record(graph, folder, ()))
    return StageRunner(graph, folder, launch, tell=write_report)


def train(folder: Path, graph: Graph, launch, **selection) -> StageRunner:
    runner = runner_of(folder, graph, launch)
    runner.run(graph.selected(**selection))
    return runner


def test_stages_come_after_their_parents_and_with_shared_words(tmp_path):
    graph = graph_of(tmp_path, DIAMOND, "trainer=cpu")
    assert list(graph.stages) == ["images", "videos", "large_images", "large_videos"]
    assert graph.stages["large_images"].words() == ("model=stiv", "seed=1", "trainer=cpu")
    assert graph.stages["videos"].words()[-2:] == ("budget=flops", "budget.value=1000000000")
    assert graph.selected(first="videos") == ("videos", "large_videos")
    assert graph.selected(last="large_images") == ("images", "large_images")
    with pytest.raises(UserError, match="does not follow"):
        graph.selected(first="videos", last="large_images")
    with pytest.raises(UserError, match="choose from images, videos"):
        graph.selected(first="vidoes")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\nstages: {a: {parents: {b: all}}}", "no stage b"),
        ("name: x\nstages: {a: {budget: {flops_of: b}}}", "budget.flops_of: there is no stage b"),
        ("name: x\ncompare: {a: b}\nstages: {a: {}}", "there is no stage b"),
        ("name: x\nstages: {a: {parents: {b: all}}, b: {parents: {a: all}}}", "circle"),
        ("name: x\nstages: {a: {parents: {b: most}}, b: {}}", "all_but_temporal_attention"),
        ("name: x\nstages: {a: {overrides: ['+x._target_=os.system']}}", "no classes"),
        ("name: x\nstages: {a: {overrides: ['model={_target_:os.system}']}}", "no classes"),
        ("name: x\nstages: {a: {overrides: ['name=${oc.env:HOME}']}}", "decides name itself"),
        ("name: x\nstages: {a: {overrides: ['seed=${oc.env:HOME}']}}", "plain values"),
        ("name: x\nstages: {a: {overrides: ['allow=[os.system]']}}", "decides allow"),
        ("name: x\nstages: {a: {overrides: ['hydra.run.dir=/etc']}}", "decides hydra.run.dir"),
        ("name: x\nstages: {a: {overrides: ['--config-dir=/tmp']}}", "no setting"),
        ("name: x\nstages: {a: {budget: {minutes: 3}}}", "wall_time"),
        ("name: x\nstages: {a: {budget: {steps: -3}}}", "above 0"),
        ("name: x\nstages: {a: {overides: []}}", "no 'overides'"),
        ("name: ../x\nstages: {a: {}}", "lower-case"),
        ("name: x\nstages: {../a: {}}", "lower-case"),
        ("name: x\nstages: !!python/object/apply:os.system ['true']", "not YAML"),
        ("name: x\nstages: {a: &a {}, b: *a}", "anchors"),
        ("name: x", "at least one"),
    ],
)
def test_a_file_is_data_and_mistakes_are_named(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        graph_of(tmp_path, text)


def test_only_what_a_change_reaches_is_trained_again(tmp_path):
    launch, folder = Trainings(), tmp_path / "stages"
    train(folder, graph_of(tmp_path), launch)
    assert launch.begun == ["images", "videos", "large_images", "large_videos"]
    train(folder, graph_of(tmp_path), launch)
    train(folder, graph_of(tmp_path, DIAMOND, "logger=none"), launch)  # where metrics go changes no weight
    assert len(launch.begun) == 4
    train(folder, graph_of(tmp_path, DIAMOND.replace("steps: 3", "steps: 4")), launch)
    assert launch.begun[4:] == ["large_videos"]
    train(folder, graph_of(tmp_path, DIAMOND.replace("flops: 1e9", "flops: 2e9")), launch)
    assert launch.begun[5:] == ["videos", "large_videos"]
    train(folder, graph_of(tmp_path), launch)  # as it was at first: all of it is there
    assert len(launch.begun) == 7


def test_from_takes_what_is_trained_and_until_ends(tmp_path):
    launch, folder = Trainings(), tmp_path / "stages"
    train(folder, graph_of(tmp_path), launch, last="videos")
    assert launch.begun == ["images", "videos"]
    with pytest.raises(UserError, match="comes after large_images"):
        train(folder, graph_of(tmp_path), launch, first="large_videos")
    train(folder, graph_of(tmp_path), launch, first="large_images")
    assert launch.begun == ["images", "videos", "large_images", "large_videos"]


class Killed(BaseException):
    """As SIGKILL: nothing that follows it in the program is run."""


def test_a_graph_killed_at_any_written_moment_goes_on_to_the_same_end(tmp_path, monkeypatch):
    graph = graph_of(tmp_path)
    undisturbed = train(tmp_path / "undisturbed", graph, Trainings())
    wanted = {name: one.digest for name, one in undisturbed.trained.items()}
    folder, begun, moments = tmp_path / "killed", [], 0
    for moment in itertools.count():
        left = [moment % 7]  # kills come after 0 to 6 written files, again and again

        def dying(write, left=left):
            def die(*arguments):
                if left[0] == 0:
                    raise Killed
                left[0] -= 1
                return write(*arguments)

            return die

        launch = Trainings()
        with monkeypatch.context() as patch:
            patch.setattr(record, "write_json", dying(write_json))
            patch.setattr(trained, "write_json", dying(write_json))
            patch.setattr("vidlab.lab.stages.report.write_json", dying(write_json))
            patch.setattr("vidlab.lab.stages.report.write_text", dying(write_text))
            try:
                runner = train(folder, graph, launch)
                begun += launch.begun
                break
            except Killed:
                moments += 1
        begun += launch.begun
        assert moment < 200
    assert moments >= 7
    assert {name: one.digest for name, one in runner.trained.items()} == wanted
    states = {job.folder: job.state for job in read_sweep(folder).jobs}
    assert len(states) == 4
    assert set(begun) == set(wanted)


def test_a_stage_that_stopped_goes_on_and_one_that_failed_is_named(tmp_path):
    graph, folder, whole = graph_of(tmp_path), tmp_path / "stages", Trainings()
    seen = []

    def stopped(words, place):
        seen.append([word.partition("=")[0] for word in words])
        whole(words, place)
        return 143

    with pytest.raises(SystemExit) as ended:
        train(folder, graph, stopped)
    assert ended.value.code == 143
    assert [job.state for job in read_sweep(folder).jobs] == ["interrupted"]
    with pytest.raises(UserError, match="stage images failed"):
        train(folder, graph, lambda words, _: seen.append([word.partition("=")[0] for word in words]) or 2)
    assert "ckpt_path" not in seen[0]
    assert "ckpt_path" in seen[1]
    assert [job.state for job in read_sweep(folder).jobs] == ["failed"]


def test_weights_that_changed_behind_the_graph_are_refused(tmp_path):
    graph, folder = graph_of(tmp_path), tmp_path / "stages"
    runner = train(folder, graph, Trainings())
    checkpoint = runner.places["images"] / "checkpoints" / "last.ckpt"
    kept = torch.load(checkpoint)
    torch.save(kept, checkpoint)  # a copy of the same weights
    train(folder, graph, Trainings())
    torch.save({**kept, "ema": {"w": kept["ema"]["w"] + 1}}, checkpoint)
    with pytest.raises(UserError, match="no longer what stage images ended with"):
        train(folder, graph, Trainings())
    (runner.places["images"] / RECORD).write_text("{")
    with pytest.raises(UserError, match="damaged"):
        train(folder, graph, Trainings())


def test_the_digest_is_of_averaged_weights_and_their_names(tmp_path):
    path = tmp_path / "x.ckpt"

    def digest(state) -> str:
        torch.save(state, path)
        return weights_digest(path)

    one, two = torch.ones(2), torch.zeros(2)
    first = digest({"state_dict": {"a": one, "b": two}, "ema": {"a": two}})
    assert first == digest({"ema": {"a": two}, "state_dict": {"b": two, "a": two}, "steps": 3})
    assert first != digest({"state_dict": {"a": one, "b": two}})
    assert first != digest({"state_dict": {"a": two, "c": two}})
    assert first != digest({"state_dict": {"a": two.bfloat16(), "b": two}})
    assert len(digest({"state_dict": {"a": two.bfloat16(), "b": torch.tensor(1.0)}})) == 64


def test_the_picture_stands_alone_and_shows_scores(tmp_path):
    graph, folder = graph_of(tmp_path), tmp_path / "stages"
    runner = train(folder, graph, Trainings(), last="videos")
    write_report(runner)
    picture = ElementTree.fromstring((folder / "stages.svg").read_text())
    texts = [one.text for one in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert texts.count("val/loss 0.2500") == 2
    assert texts.count("all but temporal") == 2
    assert {*graph.stages, "finished", "planned"} <= set(texts)
    assert "href" not in (folder / "stages.svg").read_text()
    rows = json.loads((folder / "stages.json").read_text())["stages"]
    assert rows == rows_of(runner)
    assert rows[1]["scores"] == {"val/loss": 0.25}
    assert [line[1] for line in table_of(runner).rows] == ["finished", "finished", "planned", "planned"]


def test_a_stage_takes_the_flops_of_another_and_is_compared_over_seeds(tmp_path):
    text = (
        DIAMOND.replace("stages:", "compare: {videos: scratch}\nstages:") + "  scratch: {budget: {flops_of: videos}}\n"
    )

    class Scored(Trainings):
        def __call__(self, words, folder):
            code = super().__call__(words, folder)
            seed = float(next(word for word in words if word.startswith("seed="))[5:])
            loss = seed + (0.5 if folder.name.startswith("scratch") else 0.1 * seed)
            summary = json.loads((folder / "summary.json").read_text())
            write_json(folder / "summary.json", {**summary, "last": {"val/loss": loss}})
            return code

    assert "budget=flops" in graph_of(tmp_path, text).stages["scratch"].words()
    runners = {}
    for seed in (0, 1):
        launch = Scored()
        runners[seed] = train(tmp_path / "stages", graph_of(tmp_path, text, f"seed={seed}"), launch, last="scratch")
        assert launch.begun == ["images", "videos", "scratch"]
    trained_words = runners[1].trained["scratch"].words
    assert trained_words[-2:] == ("budget=flops", "budget.value=4000000000")  # of the images and the videos
    (row,) = compare_seeds(runners)
    assert (row["metric"], row["seeds"], row["difference"]) == ("val/loss", [0, 1], pytest.approx(-0.45))
    low, high = row["interval"]
    assert high - low == pytest.approx(2 * 12.706 * 0.05, rel=1e-3)  # t of one degree of freedom; -0.5 and -0.4
    assert "cannot be told apart" in in_words([row])
    assert "lower" in in_words([{**row, "interval": [-2.0, -1.0]}])
    assert split_seeds(["a=1", "seeds=0,3"]) == ([0, 3], ["a=1"])
    with pytest.raises(UserError, match="different whole numbers"):
        split_seeds(["seeds=0,0"])


def test_a_stage_is_the_frozen_image_model_of_others(tmp_path):
    text = (
        "name: moves\nstages:\n  images: {}\n  motion: {parents: {images: image_model}}\n"
        "  losses: {parents: {images: image_model, motion: all}}\n"
    )
    launch, words = Trainings(), {}

    def watched(line, place):
        words[place.name.rpartition("-")[0]] = [word for word in line if word.startswith(("init", "model"))]
        return launch(line, place)

    runner = train(tmp_path / "stages", graph_of(tmp_path, text), watched)
    images = f"model.image_model={runner.places['images']}"
    assert words["images"] == ["init=none"] and words["motion"] == [images, "init=none"]
    assert words["losses"] == [
        images, "init=parents", f"init.runs={{motion:{runner.places['motion']}}}", "init.parts={motion:all}"
    ]  # fmt: skip
    assert "image model" in (runner.folder / "stages.svg").read_text() and set(GIVEN) == set(NAMES_OF_PARTS)
    with pytest.raises(UserError, match="one stage can be the image_model"):
        graph_of(tmp_path, text.replace("motion: all", "motion: image_model"))


def test_a_training_ends_in_a_process_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(running.sys, "executable", "/bin/echo")
    assert running.run_as_command(["seed=1"], tmp_path) == 0


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_shipped_graphs_can_be_read(path):
    graph = read_graph(path)
    assert len(graph.stages) >= 2
    assert all(stage.says for stage in graph.stages.values())
    last = graph.stages[list(graph.stages)[-1]]
    assert compose(*last.words()).data.frames >= 1


@pytest.mark.slow
@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_stage_of_shipped_graphs_composes(path):
    for stage in read_graph(path).stages.values():
        compose(*stage.words())


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_killed_command_goes_on_where_it_was(tmp_path):
    """Two real trainings; the second is killed with the command, and nothing of the first is trained again."""
    shared = "model=stiv, autoencoder=haar_frames, model.backbone.width=32, model.backbone.heads=1, trainer=cpu"
    data = "data.height=16, data.width=16, data.batch_size=2, data.source.train_clips=8, data.source.val_clips=4"
    (tmp_path / "graph.yaml").write_text(
        f"name: small\noverrides: [{shared}, {data}, data.val_clips=4, callbacks.previews=null]\nstages:\n"
        "  images: {overrides: [data.images=true, 'model.token=[1,4,4]', model.backbone.temporal_attention=false], "
        "budget: {steps: 2}}\n"
        "  videos: {parents: {images: all_but_temporal_attention}, budget: {steps: 2}}\n"
    )
    command = [sys.executable, "-m", "vidlab.lab.stages", "graph.yaml"]
    first = subprocess.Popen(command, cwd=tmp_path)
    folder = tmp_path / "runs" / "small" / "stages"
    while first.poll() is None and not list(folder.glob("videos-*/run.json")):
        time.sleep(0.05)
    started = Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split()
    first.kill()
    first.wait()
    assert started
    while any(Path(f"/proc/{pid}").exists() for pid in started):  # the training that it had started ends with it
        time.sleep(0.05)
    image = next(folder.glob("images-*"))
    before = (image / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    subprocess.run(command, cwd=tmp_path, check=True)
    stages = json.loads((folder / "stages.json").read_text())["stages"]
    assert [(one["state"], one["computed"], one["steps"]) for one in stages] == [
        ("finished", False, 2),
        ("finished", True, 2),
    ]
    assert (image / "checkpoints" / "last.ckpt").stat().st_mtime_ns == before
