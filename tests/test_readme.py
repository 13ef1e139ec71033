"""The README and the pages of docs/ keep their word: commands are executed, tables and sample output are true.

``RULES`` says how each command is run and what is shortened. A command of the README without a rule fails a test; those
of docs/ that have a rule are executed by ``pytest -m slow``, and all of them are composed by ``test_docs.py``.
"""

import configparser
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
import tomllib
import urllib.request
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from cli.command import Commands, Done

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
SETTINGS = (ROOT / "docs" / "settings.md").read_text()
DOCS = {page.relative_to(ROOT).as_posix(): page.read_text() for page in sorted((ROOT / "docs").rglob("*.md"))}

# The shortening: a smaller model, fewer and smaller batches, two steps. Words of the README come after FIRST
# and so win over it; LAST wins over them.
FIRST = (
    "precision=32-true", "model.backbone.width=48", "model.backbone.heads=2", "model.backbone.depth=1",
    "data.batch_size=2", "data.val_clips=4", "data.num_workers=0", "sampler.steps=2",
    "logger.system_metrics=false",
)  # fmt: skip
FEW_SHAPES = ("data.source.train_clips=16", "data.source.val_clips=8")
LAST = ("trainer.max_steps=2",)
Words = tuple[str, ...]
SECONDS = 240  # for one command; each takes seconds


def blocks(language: str, text: str = README) -> list[str]:
    """The contents of fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def simple_commands(text: str = README) -> list[str]:
    """The commands of all bash blocks, those joined by && one by one."""
    lines = "\n".join(blocks("bash", text)).replace("\\\n", " ").splitlines()
    parts = [part.strip() for line in lines for part in line.split(" && ")]
    return list(dict.fromkeys(part for part in parts if part and not part.startswith("#")))


class Bench:
    """A working folder in which the README's commands are run."""

    def __init__(self, commands: Commands, folder: Path) -> None:
        self.commands, self.folder = commands, folder

    def python(self, words: list[str], first: Words = (), last: Words = ()) -> Done:
        """``python program.py words`` with words before and after; it must succeed."""
        options = [word for word in words[2:] if word == "-m"]  # Hydra wants them before the settings
        settings = [word for word in words[2:] if word != "-m"]
        done = self.run(words[1], *options, *first, *settings, *last)
        assert done.code == 0, done.err
        return done

    def module(self, words: list[str]) -> Done:
        """``python -m module words``; it must succeed."""
        assert words[:2] == ["python", "-m"]
        done = self.run(words[2], *words[3:], module=True)
        assert done.code == 0, done.err
        return done

    def run(self, program: str, *arguments: str, module: bool = False) -> Done:
        """Run a program; one that hangs is killed, which its exit code then shows."""
        running = self.commands.start(program, *arguments, cwd=self.folder, module=module)
        limit = threading.Timer(SECONDS, running.send, [signal.SIGKILL])
        limit.start()
        try:
            return running.wait()
        finally:
            limit.cancel()

    def train(self, words: list[str], last: Words = (), shapes: Words = FEW_SHAPES) -> Done:
        return self.python(words, (*FIRST, *shapes), (*LAST, *last))

    def count(self, pattern: str) -> int:
        return len(list(self.folder.glob(pattern)))


@pytest.fixture(scope="module")
def bench(commands: Commands, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(commands, tmp_path_factory.mktemp("readme"))


@pytest.fixture(scope="module")
def first_run(bench: Bench) -> Done:
    """``python train.py``, which the other commands of the README build on."""
    return bench.train(["python", "train.py"])


def run_plain(bench: Bench, words: list[str]) -> None:
    before = bench.count("runs/*/*/summary.json")
    bench.train(words)
    assert bench.count("runs/*/*/summary.json") == before + 1


def run_sweep(bench: Bench, words: list[str]) -> None:
    """Of the first and the last value of the first setting that has several, and the last value of the others."""
    jobs = 1
    for place, word in enumerate(words):
        key, equals, values = word.partition("=")
        if "," in values:
            first, *_, last = values.split(",")
            words[place] = f"{key}{equals}{last}" if jobs > 1 else f"{key}{equals}{first},{last}"
            jobs = 2
    before = bench.count("runs/*/*/*/summary.json")
    bench.train(words)
    assert jobs > 1 and bench.count("runs/*/*/*/summary.json") == before + jobs


def run_compare(bench: Bench, words: list[str]) -> None:
    """Of the newest sweep, that of the example before."""
    assert "configuration" in bench.module(words).out and bench.count("runs/*/*/comparison/comparison.html") > 0


def run_budget(bench: Bench, words: list[str]) -> None:
    """A few steps' worth in place of the value."""
    small = {"flops": "4e8", "samples": "8", "wall_time": "1"}
    unit = next(word.removeprefix("budget=") for word in words if word.startswith("budget="))
    words = [f"budget.value={small[unit]}" if word.startswith("budget.value=") else word for word in words]
    before = bench.count("runs/**/summary.json")
    bench.python(words, (*FIRST, *FEW_SHAPES))
    assert bench.count("runs/**/summary.json") > before


def run_training_plan(bench: Bench, words: list[str]) -> None:
    """At the sizes that are asked for: nothing is computed."""
    before = sorted(bench.folder.rglob("*"))
    done = bench.python(words)
    assert "parameters" in done.out and sorted(bench.folder.rglob("*")) == before


def run_resume(bench: Bench, words: list[str]) -> None:
    before = bench.count("runs/*/*/summary.json")
    done = bench.train(words, ("trainer.max_steps=3",))
    assert re.search(r"Trained 1 steps in \d+ s, 3 in all\.", done.out)
    assert bench.count("runs/*/*/summary.json") == before, "a resumed run writes into its own folder"


def run_gpu(bench: Bench, words: list[str]) -> None:
    if torch.cuda.is_available():
        run_plain(bench, words)
        return
    done = bench.run("train.py", *FIRST, *FEW_SHAPES, *words[2:], *LAST)
    assert done.code == 2 and "no CUDA GPU" in done.err


def run_ddp(bench: Bench, words: list[str]) -> None:
    """Two processes on the CPU in place of eight on GPUs."""
    done = bench.train(words, ("trainer.accelerator=cpu", "trainer.devices=2"))
    assert "Trained 2 steps" in done.out


def run_generate(bench: Bench, words: list[str]) -> None:
    given = dict(word.split("=", 1) for word in words[2:])
    before = {path.parent for path in bench.folder.glob("samples/*/sheet.png")}
    bench.python(words, last=("accelerator=cpu", "precision=32-true"))
    (made,) = {path.parent for path in bench.folder.glob("samples/*/sheet.png")} - before
    videos = int(given.get("num_videos", 4))
    for name in ("grid.mp4", "grid.gif", "000.mp4", "000.gif"):
        assert (made / name).is_file()
    assert len(list(made.glob("originals/*.mp4"))) == videos
    assert (made / "originals" / "000.txt").read_text().strip() == given["prompt"]


def run_conditioned(bench: Bench, words: list[str]) -> None:
    """``init.run=last`` is a run without conditioning, as the text before it says."""
    if "init.run=last" in words:
        bench.train(["python", "train.py", "model=full3d"])
    run_plain(bench, words)


def run_given(bench: Bench, words: list[str]) -> None:
    """The newest model takes frames; the pictures and the video are of another size than its clips."""
    from PIL import Image

    from vidlab.data.video import encode

    bench.train(["python", "train.py", "conditioning=masked_video"])
    for name in ("frame", "first", "last"):
        Image.new("RGB", (50, 40), "navy").save(bench.folder / f"{name}.png")
    (bench.folder / "clip.mp4").write_bytes(encode(np.zeros((9, 40, 50, 3), np.uint8), 8))
    run_generate(bench, words)


def run_evaluate(bench: Bench, words: list[str]) -> None:
    """Of fewer videos; without psnr, which takes nothing here."""
    before = bench.count("evaluations/*/report.md")
    last = ("accelerator=cpu", "precision=32-true", "num_videos=2", "noise_levels=1")
    done = bench.python(words, last=last)
    assert "shapes_judge" in done.out and bench.count("evaluations/*/report.md") == before + 1
    assert ("# Comparison" in done.out) == ("runs=" in " ".join(words))


def run_autoencoders(bench: Bench, words: list[str]) -> None:
    """Of fewer clips, without LPIPS, whose weights are fetched."""
    small = (
        "data.source.train_clips=16",
        "data.source.val_clips=8",
        "num_videos=2",
        "metrics=laptop",
        "accelerator=cpu",
    )
    done = bench.python(words, last=small)
    assert "psnr" in done.out and "trilinear" in done.out


def run_system(bench: Bench, words: list[str]) -> None:
    """/models/osp is a release with the published files of a tiny model."""
    from tiny_release import make_release

    release = make_release(bench.folder / "osp")
    small = ("frames=9", "height=16", "width=32", "sampler.steps=2", "accelerator=cpu", "precision=32-true")
    bench.python([word.replace("/models/osp", str(release)) for word in words], last=small)
    assert list(bench.folder.glob("samples/*/000.mp4"))


def run_curate(bench: Bench, words: list[str]) -> None:
    small = ("precision=32-true", *FEW_SHAPES) + (("data.batch_size=2",) if "stage=encode" in words else ())
    done = bench.python(words, last=small)
    assert "12" in done.out or "16" in done.out
    assert ("folder=encoded" in words) == ("stage=encode" in words)


def run_shards(bench: Bench, words: list[str]) -> None:
    """/my/shards holds one tar file as webdataset writes them."""
    from webdataset.writer import TarWriter

    from vidlab.data.video import encode

    shards = bench.folder / "shards"
    shards.mkdir()
    with TarWriter(str(shards / "000000.tar"), encoder=False) as tar:
        for number in range(60):
            video = encode(np.full((8, 16, 16, 3), 4 * number, np.uint8), 8)
            tar.write({"__key__": f"{number:04d}", "mp4": video, "txt": b"a clip"})
    small = ("data.height=16", "data.width=16", "data.num_workers=0")
    bench.train([word.replace("/my/shards", str(shards)) for word in words], small, shapes=())


def run_vbench(bench: Bench, words: list[str]) -> None:
    """results.json has every dimension of the leaderboard, at one half."""
    import json

    from vidlab.metrics.vbench.presets import PRESETS

    names = [dimension for group in PRESETS["vbench_t2v"].groups for dimension in group.weights]
    (bench.folder / "results.json").write_text(json.dumps({name: [0.9, []] for name in names}))
    assert "total" in bench.module(words).out.lower()


def run_export(bench: Bench, words: list[str]) -> None:
    bench.module(words)
    assert {path.suffix for path in (bench.folder / "exported").rglob("*.*")} == {".safetensors", ".json"}


def run_panda(bench: Bench, words: list[str]) -> None:
    """/data/panda is a folder as Panda's tool leaves it."""
    from vidlab.data.video import encode

    panda = bench.folder / "panda"
    (panda / "00000").mkdir(parents=True)
    for number in range(6):
        stem = panda / "00000" / f"{number:07d}_00000"
        stem.with_suffix(".mp4").write_bytes(encode(np.full((60, 24, 32, 3), 40 * number, np.uint8), 30))
        stem.with_suffix(".txt").write_text(f"clip {number}\n")
    small = ("data.frames=8", "data.height=16", "data.width=16", "data.num_workers=0")
    bench.train([word.replace("/data/panda", str(panda)) for word in words], small, shapes=())


def run_data_plan(bench: Bench, words: list[str]) -> None:
    done = bench.module([*words, "data.source.train_clips=64", "data.source.val_clips=8"])
    assert "bucket" in done.out and not list(bench.folder.glob("outputs"))


def run_layouts(bench: Bench, words: list[str]) -> None:
    """At a small shape: the README's takes ten seconds and is a test of its own."""
    done = bench.module([*words[:-3], "4", "4", "4"])
    assert re.search(r"Skiparse k=4 +1\.547 +1\.547", done.out)


def run_folder(bench: Bench, words: list[str]) -> None:
    """/my/videos is a folder of videos that generate.py wrote."""
    bench.python(["python", "generate.py", "prompt=a red square"], last=("accelerator=cpu", "fps=8"))
    videos = max(bench.folder.glob("samples/*/originals"), key=lambda path: path.stat().st_mtime)
    words = [word.replace("/my/videos", str(videos)) for word in words]
    assert f"data.path={videos}" in words
    bench.train(words, shapes=())


def run_print(bench: Bench, words: list[str]) -> None:
    """--help and --cfg print and do nothing."""
    before = bench.count("runs/*/*")
    done = bench.python(words)
    groups = {path.name for path in (ROOT / "conf").iterdir() if path.is_dir()}
    groups -= {"captioner", "chat", "curation", "engine", "experiment", "lengths", "metrics", "mixer", "system"}
    assert all(re.search(rf"\b{name}\b", done.out) for name in groups)
    assert bench.count("runs/*/*") == before
    composed = yaml.safe_load(done.out) if "--cfg" in words else {}
    for word in (word for word in words if "=" in word and composed):
        key, value = word.split("=")
        found = composed
        for part in key.split("."):
            found = found[part]
        chosen = (found.get("name"), found.get("path")) if isinstance(found, dict) else (str(found),)
        assert value in chosen or f"asset:{value}" in chosen


def compose_only(bench: Bench, words: list[str]) -> None:
    """What fetches files is composed here, and run by the test marked network."""
    run_print(bench, [*words, "--cfg", "job"])


def compose_autoencoder(bench: Bench, words: list[str]) -> None:
    """It fetches clips and weights: composed here, trained small in tests/cli/test_train_autoencoder.py."""
    composed = yaml.safe_load(bench.python([*words, "--cfg", "job"]).out)
    assert composed["task"]["_target_"].endswith("VideoAutoencoder") and composed["trainer"]["max_steps"] > 1000


def compose_recipe(bench: Bench, words: list[str]) -> None:
    """It fetches clips and weights: composed here, run small in tests/curation."""
    composed = yaml.safe_load(bench.python([*words, "--cfg", "job"]).out)
    assert composed["curation"]["_target_"] == "vidlab.curation.recipe.recipe" and composed["curation"]["slice"]


def run_assets(bench: Bench, words: list[str]) -> None:
    done = bench.module(words)
    listed = {line.split()[0]: line for line in done.out.splitlines()}
    assert "bikes.mp4" in listed and "Apache-2.0" in listed["minilm/model.safetensors"]
    page = " ".join(DOCS["docs/howto/data_sets.md"].split())
    named = re.search(r"Licenses differ per recording \((.*?)\)", page)
    assert named is not None
    for license in named[1].split(", "):
        assert license in done.out


def run_mlflow_ui(bench: Bench, words: list[str]) -> None:
    """The server with one worker, until it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", *words, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    log = (bench.folder / "mlflow-ui.log").open("w+")
    server = subprocess.Popen(
        command, cwd=bench.folder, env=environment, stdout=log, stderr=log, start_new_session=True
    )
    try:
        assert answer(server, f"http://127.0.0.1:{port}/health") == "OK", Path(log.name).read_text()
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


def answer(server: subprocess.Popen[bytes], url: str, seconds: float = 120) -> str:
    """The body at ``url`` as soon as the server answers; "" when it ends or takes too long."""
    deadline = time.monotonic() + seconds
    while server.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=5) as response:
                return response.read().decode()
        except OSError:
            time.sleep(0.2)
    return ""


def check_requirements(bench: Bench, words: list[str]) -> None:
    """Not installed again: the file brings vidlab and pins the rest; test_packaging.py looks closer."""
    lines = (ROOT / words[-1]).read_text().splitlines()
    wanted = [line for line in lines if line and not line.startswith("#")]
    assert wanted[0] == "-e ." and len(wanted) > 100
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9a-z.]+", line) for line in wanted[1:])


def check_tox_is_one_package(bench: Bench, words: list[str]) -> None:
    assert words == ["pip", "install", "tox"]


def check_tox(bench: Bench, words: list[str]) -> None:
    """tox cannot run inside itself: what it would run is read from tox.ini."""
    ini = configparser.ConfigParser(interpolation=None)
    ini.read(ROOT / "tox.ini")
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    run = {}
    for name in ini["tox"]["env_list"].replace(",", " ").split():
        section = ini[f"testenv:{name}"]
        assert set(section["dependency_groups"].split()) <= set(groups)
        run |= {command.split()[0]: command for command in section["commands"].strip().splitlines()}
    assert set(run) == {"ruff", "mypy", "pytest"}
    assert ini["testenv"]["deps"] == "-r requirements.txt" and ini["testenv"].getboolean("skip_install")


def needs_a_model(bench: Bench, words: list[str]) -> None:
    """A server or a language model: composed by test_docs.py, run in tests/lab/captions with small ones."""


PAGES = ("docs", "benchmarks", "experiments", "notebooks")
Rule = Callable[[Bench, list[str]], None]
RULES: tuple[tuple[str, Rule], ...] = (
    (r"pip install -r requirements\.txt", check_requirements),
    (r"pip install tox", check_tox_is_one_package),
    (r"tox", check_tox),
    (r"mlflow ui .*", run_mlflow_ui),
    (r"python -m vidlab\.assets", run_assets),
    (r"python -m vidlab\.lab\.export last exported", run_export),
    (r"python -m vidlab layouts .*", run_layouts),
    (r"python generate\.py system=.*", run_system),
    (r"python generate\.py .*refine=true.*", needs_a_model),
    (r"python generate\.py .*(image|video)=.*", run_given),
    (r"python generate\.py .*", run_generate),
    (r"python evaluate\.py autoencoders=.*", run_autoencoders),
    (r"python evaluate\.py .*", run_evaluate),
    (r"python curate\.py curation=.*", compose_recipe),
    (r"python curate\.py .*stage=(caption|dsg|pairs|refiner) .*", needs_a_model),
    (r"python curate\.py .*", run_curate),
    (r"python -m vidlab vbench .*", run_vbench),
    (r"python train\.py .*data=shards .*", run_shards),
    (r"python train\.py .*(--help|--cfg job)", run_print),
    (r"python train\.py (data=clips|text_encoder=minilm)", compose_only),
    (r"python train\.py experiment=wfvae_nano", compose_autoencoder),
    (r"python train\.py plan=true .*", run_training_plan),
    (r"python -m vidlab compare last", run_compare),
    (r"python train\.py .*budget=.*", run_budget),
    (r"python train\.py -m .*", run_sweep),
    (r"python train\.py .*conditioning=.*", run_conditioned),
    (r"python train\.py ckpt_path=last .*", run_resume),
    (r"python train\.py trainer=gpu", run_gpu),
    (r"python train\.py trainer=ddp .*", run_ddp),
    (r"python train\.py data=folder .*", run_folder),
    (r"python train\.py .*data=panda10m .*", run_panda),
    (r"python -m vidlab plan .*", run_data_plan),
    (r"python train\.py( experiment=\S+| .*data\.cache=\S+)?", run_plain),
)


def rule_of(command: str) -> Rule:
    found = [rule for pattern, rule in RULES if re.fullmatch(pattern, command)]
    assert found, f"README.md has a command without a rule in tests/test_readme.py: {command}"
    return found[0]


@pytest.mark.parametrize("command", simple_commands())
def test_command(command: str, bench: Bench, first_run: Done) -> None:
    rule_of(command)(bench, shlex.split(command))


def commands_of_docs() -> list[str]:
    """Those of docs/ that have a rule, less the README's."""
    found = [command for text in DOCS.values() for command in simple_commands(text)]
    known = (command for command in dict.fromkeys(found) if any(re.fullmatch(pattern, command) for pattern, _ in RULES))
    return [command for command in known if command not in simple_commands()]


@pytest.mark.slow
@pytest.mark.parametrize("command", commands_of_docs())
def test_command_of_docs(command: str, bench: Bench, first_run: Done) -> None:
    rule_of(command)(bench, shlex.split(command))


@pytest.mark.network
@pytest.mark.parametrize("command", [c for c in commands_of_docs() if rule_of(c) is compose_only])
def test_command_that_fetches(command: str, bench: Bench) -> None:
    shapes = FEW_SHAPES if "data=" not in command else ()
    bench.train(shlex.split(command), shapes=shapes)


def test_every_rule_is_used() -> None:
    used = {rule_of(command) for command in (*simple_commands(), *commands_of_docs())}
    assert {rule for _, rule in RULES} == used


def test_commands_are_found_and_unknown_ones_refused() -> None:
    text = "```bash\na && b \\\n  c\n# no\n```\ntext\n```bash\npython train.py\n```\n"
    assert [command.split() for command in simple_commands(text)] == [["a"], ["b", "c"], ["python", "train.py"]]
    with pytest.raises(AssertionError, match="without a rule"):
        rule_of("python unheard_of.py")


def labels(text: str) -> list[str]:
    """The first word of each line."""
    return [line.split()[0] for line in text.splitlines() if line.strip()]


def test_sample_output_has_the_lines_of_a_real_one(first_run: Done) -> None:
    (sample,) = blocks("text")
    assert labels(sample) == labels(first_run.out[first_run.out.index("Trained ") :])


def tables(text: str = README) -> list[list[list[str]]]:
    """Tables as rows of cells, without heads."""
    found = re.findall(r"(?:^\|.*\|\n)+", text, flags=re.MULTILINE)
    return [[cells(row) for row in table.splitlines()[2:]] for table in found]


def cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.split("|")[1:-1]]


def test_the_table_of_groups_is_that_of_conf() -> None:
    (table,) = tables(SETTINGS)
    listed = {row[0].strip("`"): re.findall(r"`(\w+)`", row[1]) for row in table}
    folders = [path for path in (ROOT / "conf").iterdir() if path.is_dir()]
    folders += [path for folder in folders for path in folder.iterdir() if path.is_dir()]
    assert {name: set(choices) for name, choices in listed.items()} == {
        str(folder.relative_to(ROOT / "conf")): {file.stem for file in folder.glob("[!_]*.yaml")}
        for folder in folders
        if any(folder.glob("[!_]*.yaml")) or any(folder.glob("*/*.yaml"))
    }
    for entry in yaml.safe_load((ROOT / "conf" / "train.yaml").read_text())["defaults"]:
        for name, default in entry.items() if entry != "_self_" else ():
            if name.startswith("override hydra/"):
                continue
            first = default[0] if isinstance(default, list) else default
            assert first is None or listed[name][0] == first, f"the default of {name} comes first"


def test_the_python_example(bench: Bench, first_run: Done) -> None:
    (example,) = blocks("python")
    assert first_run.code == 0 and len(example.strip().splitlines()) == 5
    code = f"{example}\nprint(videos[0].frames.shape, len(videos))"
    done = bench.commands.run_code(code, cwd=bench.folder)
    assert done.code == 0, done.err
    assert done.out.splitlines()[-1] == "(8, 32, 32, 3) 4" and (bench.folder / "circles.mp4").is_file()


def test_files_are_where_the_readme_says(bench: Bench, first_run: Done) -> None:
    (table,) = [table for table in tables() if table[0][0].startswith("`runs/")]
    run = min(path.parent for path in bench.folder.glob("runs/vidlab/*/summary.json"))
    for row in table[:2]:
        folder = Path(row[0].strip("`").replace("runs/<name>/<time>", str(run)))
        for name in re.findall(r"`([\w.]+\.\w+)`", row[1]):
            assert (folder / name).is_file(), f"{folder / name}"
    assert list((run / "previews").glob("*.png")) and (bench.folder / "mlflow.db").is_file()


def test_links_lead_somewhere() -> None:
    files = [*ROOT.glob("*.md"), *(file for folder in PAGES for file in (ROOT / folder).glob("*.md"))]
    assert len(files) >= 6
    for file in files:
        for link in re.findall(r"\]\(([^)#]+)", file.read_text()):
            assert link.startswith("https://") or (file.parent / link).exists(), f"{file}: {link}"
