"""Stopped at any moment of a first run, of saving, encoding and evaluating: the next command works, nothing is lost.

The sweep of 200 is run by ``tox -e kills``; a few of them are always run.
"""

import contextlib
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest

from .command import Commands, Done, Lab, Running, new_lab
from .tracked import equal, only, tracked, weights

SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "interrupt": signal.SIGINT}
# What a shell may see: ended by the signal itself, before anything could be done about it, or in order after it.
CODES = {"kill": {-9}, "term": {-15, 143}, "interrupt": {-2, 130}}
# Python drops an interrupt that comes while it forgets an object, says so, and goes on.
SWALLOWED = re.compile(r"Exception ignored in: .*\nTraceback[^\n]*\n(?:  .*\n)+\n?KeyboardInterrupt: *\n")
FIRST_SECONDS = 20.0
SWEEP = {"first run": 80, "checkpoints": 60, "cache": 30, "evaluation": 30}

LAST = 24
STEPS = (
    *("callbacks.previews=null", "trainer.val_check_interval=6", "lr_schedule.warmup_steps=2"),
    *(f"trainer.max_steps={LAST}", "callbacks.checkpoint.every_n_steps=4"),
)
ENCODE = (
    *("data.source.train_clips=64", "data.source.val_clips=8", "trainer=cpu", "precision=32-true"),
    *("stage=encode", "folder=latents", "clips_per_shard=4"),
)
EVALUATE = (
    *("accelerator=cpu", "precision=32-true", "num_videos=6", "batch_size=2", "noise_levels=2", "run=last"),
    "hydra.run.dir=evaluations/one",
)


def sweep(name: str) -> list[object]:
    """Parameters (share of the whole, signal) of a sweep over one command."""
    count, names = SWEEP[name], list(SIGNALS)
    return [
        pytest.param((n + 0.5) / count, names[n % 3], id=f"{n + 1} of {count}, {names[n % 3]}", marks=pytest.mark.kills)
        for n in range(count)
    ]


@dataclass(frozen=True)
class Whole:
    """What comes of a command that nobody stops, and how long it takes."""

    lab: Lab
    seconds: float


def stopped_at(share: float, whole: Whole, kind: str, start: Callable[[], Running]) -> None:
    """Start a command and stop it after a share of the time that it takes, or of its first 20 seconds."""
    running = start()
    time.sleep(share * min(whole.seconds, FIRST_SECONDS))
    ended(running, kind)


def ended(running: Running, kind: str) -> Done:
    """Send the signal; check how the command ends."""
    running.send(SIGNALS[kind])  # which does nothing to a command that has ended and was not waited for
    done = running.wait()
    assert done.code in CODES[kind] | {0}, (done.code, done.err)
    assert "Traceback" not in SWALLOWED.sub("", done.err), done.err
    return done


def went_well(done: Done) -> None:
    assert done.code == 0 and "Traceback" not in done.err, done.err


def losses(lab: Lab) -> dict[tuple[str, int], float]:
    return tracked(lab)[-1].losses()


def timed(lab: Lab, command: Callable[[], Done]) -> Whole:
    started = time.monotonic()
    went_well(command())
    return Whole(lab, time.monotonic() - started)


def fresh(commands: Commands, folder: Path) -> Lab:
    """A folder in which nothing was ever run, and a cache of its own."""
    folder.mkdir(parents=True)
    return Lab(commands, folder)


def own_cache(lab: Lab) -> dict[str, str]:
    return {"VIDLAB_CACHE": str(lab.folder.parent / f"{lab.folder.name}-cache")}


# -- a first run: its folder, its data, its store, its checkpoints ----------------------------------------------------


@pytest.fixture(scope="module")
def first_run(commands: Commands, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    lab = fresh(commands, tmp_path_factory.mktemp("first") / "whole")
    return timed(lab, lambda: lab.train(*STEPS, env=own_cache(lab)))


def goes_on(lab: Lab, whole: Whole) -> None:
    """The next command, from the checkpoint where there is one, reaches the losses of the run that nobody stopped."""
    saved = list(lab.folder.glob("runs/*/*/checkpoints/last.ckpt"))
    went_well(lab.train(*STEPS, *(["ckpt_path=last"] if saved else []), env=own_cache(lab)))
    expected, found = losses(whole.lab), losses(lab)
    # stopped behind its last step, a run is validated once more, under the number of the step after it
    again = {(name, step): expected.get((name, step - 1)) for name, step in found if (name, step) not in expected}
    assert found == expected | again and {step for _, step in again} <= {LAST}
    assert tracked(lab)[-1].status == "FINISHED"
    newest = lab.runs[-1] / "checkpoints"
    assert equal(weights(newest / "last.ckpt"), weights(whole.lab.runs[0] / "checkpoints" / "last.ckpt"))
    assert not list(newest.glob(".*"))


@pytest.mark.parametrize(("share", "kind"), sweep("first run"))
def test_a_first_run(commands, first_run, tmp_path, share, kind):
    lab = fresh(commands, tmp_path / "work")
    stopped_at(share, first_run, kind, lambda: lab.start_train(*STEPS, env=own_cache(lab)))
    goes_on(lab, first_run)


def begun(lab: Lab, size: int) -> bool:
    """Whether MLflow's database has grown to so many bytes."""
    with contextlib.suppress(FileNotFoundError):  # journals come and go
        return any(path.stat().st_size > size for path in lab.folder.glob("*mlflow.db*"))
    return False


@pytest.mark.kills
@pytest.mark.parametrize("size", [200_000, 300_000, 500_000, 600_000])
def test_a_first_run_killed_while_its_store_is_made(commands, first_run, tmp_path, size):
    """Between tables that MLflow's migrations make one after the other, and never twice."""
    lab = fresh(commands, tmp_path / "work")
    running = lab.start_train(*STEPS, env=own_cache(lab))
    wait_for(lambda: begun(lab, size))
    ended(running, "kill")
    goes_on(lab, first_run)


# -- checkpoints ------------------------------------------------------------------------------------------------------

SAVING = (*STEPS[:1], *("trainer.val_check_interval=1000", "lr_schedule.warmup_steps=2"),
          *("callbacks.checkpoint.every_n_steps=1", f"trainer.max_steps={4 * SWEEP['checkpoints']}"))  # fmt: skip


@pytest.mark.kills
def test_checkpoints(commands, empty_store, tmp_path):
    """One run, saving every step, stopped again and again while it saves; each start gets further than the last."""
    whole, lab = (new_lab(commands, tmp_path / name, empty_store) for name in ("whole", "stopped"))
    went_well(whole.train(*SAVING))
    random, names, reached = Random(0), list(SIGNALS), 0
    for number in range(SWEEP["checkpoints"]):
        saved = newest(lab)
        running = lab.start_train(*SAVING, *(["ckpt_path=last"] if saved else []))
        wait_for(lambda saved=saved: newest(lab) != saved)
        time.sleep(random.uniform(0, 0.15))
        ended(running, names[number % 3])
        reached, before = weights(lab.runs[0] / "checkpoints" / "last.ckpt")["global_step"], reached
        assert reached > before, f"after {number + 1}"
        # what the store lacks of the steps before the checkpoint is with the run, which sends it when it goes on
        assert all(only(whole).curve[place] == value for place, value in only(lab).losses().items())
    went_well(lab.train(*SAVING, "ckpt_path=last"))
    assert only(lab).losses() == only(whole).losses() and only(lab).status == "FINISHED"
    assert equal(*(weights(one.runs[0] / "checkpoints" / "last.ckpt") for one in (whole, lab)))
    assert not list((lab.runs[0] / "checkpoints").glob(".*"))


def newest(lab: Lab) -> int | None:
    """When the run last wrote its checkpoint."""
    return next((path.stat().st_mtime_ns for path in lab.folder.glob("runs/*/*/checkpoints/last.ckpt")), None)


def wait_for(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.002)


# -- encoded clips ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def encoded(commands: Commands, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    lab = fresh(commands, tmp_path_factory.mktemp("encoded") / "whole")
    return timed(lab, lambda: encode(lab).wait())


def encode(lab: Lab) -> Running:
    return lab.commands.start("curate.py", *ENCODE, cwd=lab.folder, env=own_cache(lab))


def latents(lab: Lab) -> dict[str, bytes]:
    """Every file of the cache but the lock."""
    return {path.name: path.read_bytes() for path in (lab.folder / "latents").iterdir() if path.suffix != ".lock"}


def encodes_on(lab: Lab, whole: Whole) -> None:
    went_well(encode(lab).wait())
    assert latents(lab) == latents(whole.lab)


@pytest.mark.parametrize(("share", "kind"), sweep("cache"))
def test_a_cache(commands, encoded, tmp_path, share, kind):
    lab = fresh(commands, tmp_path / "work")
    stopped_at(share, encoded, kind, lambda: encode(lab))
    encodes_on(lab, encoded)


def test_a_cache_interrupted_between_shards(commands, encoded, tmp_path):
    lab = fresh(commands, tmp_path / "work")
    running = encode(lab)
    wait_for(lambda: (lab.folder / "latents" / "000001.tar").exists())
    ended(running, "interrupt")
    encodes_on(lab, encoded)


# -- evaluations ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def evaluated(commands: Commands, empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Whole]:
    """A folder with a short run, and how long its evaluation takes."""
    lab = new_lab(commands, tmp_path_factory.mktemp("evaluated") / "whole", empty_store)
    went_well(lab.train(*STEPS))
    whole = timed(lab, lambda: evaluate(lab).wait())
    (lab.folder / "evaluations").rename(lab.folder / "expected")
    yield whole


def evaluate(lab: Lab) -> Running:
    return lab.commands.start("evaluate.py", *EVALUATE, cwd=lab.folder)


def scores(folder: Path) -> dict[str, bytes]:
    names = ("scores.csv", "clips.csv")
    return {name: (folder / "one" / name).read_bytes() for name in names}


def evaluates_on(whole: Whole) -> None:
    """The same videos and the same scores, and no half of anything."""
    folder = whole.lab.folder
    went_well(evaluate(whole.lab).wait())
    assert scores(folder / "evaluations") == scores(folder / "expected")
    videos = [
        {path.name: path.read_bytes() for path in (folder / place / "videos").glob("*/*")}
        for place in ("evaluations", "expected")
    ]
    assert videos[0] == videos[1]


@pytest.fixture
def untouched(evaluated) -> Whole:
    """The folder without an evaluation."""
    shutil.rmtree(evaluated.lab.folder / "evaluations", ignore_errors=True)
    return evaluated


@pytest.mark.parametrize(("share", "kind"), sweep("evaluation"))
def test_an_evaluation(untouched, share, kind):
    stopped_at(share, untouched, kind, lambda: evaluate(untouched.lab))
    evaluates_on(untouched)


@pytest.mark.kills
def test_an_evaluation_stopped_among_its_videos(untouched):
    running = evaluate(untouched.lab)
    wait_for(lambda: any(untouched.lab.folder.glob("evaluations/videos/*/*.mp4")))
    ended(running, "term")
    evaluates_on(untouched)
