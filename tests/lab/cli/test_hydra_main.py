import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.hydra import Hydra
from hydra.errors import HydraException
from omegaconf import OmegaConf

from vidlab.errors import DataError, UserError
from vidlab.lab.cli import error_messages as messages
from vidlab.lab.cli import hydra_main as entry
from vidlab.lab.cli.error_messages import OWN_NAMES

APP = """
import atexit, os, signal
from vidlab.lab.cli import hydra_main as entry

@entry.main(config_path="conf", config_name="train")
def main(cfg):
    if cfg.data.size == 7:
        raise KeyboardInterrupt
    if cfg.data.size == 8:
        raise RuntimeError("a bug")
    if cfg.data.size == 9:
        atexit.register(os.kill, os.getpid(), signal.SIGINT)
    print("trained with", entry.instantiate(cfg.data, "data").size)

if __name__ == "__main__":
    main()
"""
THINGS = """
from vidlab.errors import UserError

class Data:
    def __init__(self, path, size=3):
        if size == 5:
            raise UserError("size must not be 5")
        self.path, self.size = path, size
"""
CONFIG = """
defaults: [_self_, {model: 2p1d}]
trainer:
  max_steps: 10
data:
  _target_: things.Data
  path: ???
  size: 3
optimizer:
  lr_multipliers: {}
hydra:
  run: {dir: out}
  sweep: {dir: sweep}
"""


@pytest.fixture(scope="module")
def app(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("app")
    (folder / "conf" / "model").mkdir(parents=True)
    (folder / "app.py").write_text(APP)
    (folder / "things.py").write_text(THINGS)
    (folder / "conf" / "train.yaml").write_text(CONFIG)
    for choice in ("2p1d", "full3d"):
        (folder / "conf" / "model" / f"{choice}.yaml").write_text("width: 3")
    return folder


def run(app: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    source = str(Path(entry.__file__).parents[3])
    environment = {**os.environ, "PYTHONPATH": source, **environment}
    command = [sys.executable, "app.py", *arguments]
    return subprocess.run(command, cwd=app, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trainer.max_stepz=1"], "trainer.max_stepz: no such key. Did you mean 'max_steps'?"),
        (["max_steps=1"], "max_steps: no such key. Did you mean trainer.max_steps?"),
        (["modle=full3d"], "modle: no such key. Did you mean 'model'?"),
        (
            ["model=ful3d"],
            "model=ful3d: no such choice. Did you mean 'full3d'? Choices: 2p1d, full3d. Your own need hydra.",
        ),
        (["trainer.max_steps=="], "'trainer.max_steps==' is not of the form key=value"),
        ([], "data.path is required: add data.path=... to the command line."),
        (["data.path=a", "+data.siz=4"], "data.siz=4: Data has no setting 'siz'. Did you mean 'size'?"),
        (["data.path=a", "data.size=5"], "data: size must not be 5"),
        (["data.path=a", "data._target_=things.Date"], "data._target_=things.Date: cannot be imported"),
        (["data.path=${trainer.nothing}"], "data.path: Interpolation key 'trainer.nothing' not found"),
    ],
)
def test_one_message_without_a_traceback(app, arguments, message):
    done = run(app, *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(message)
    assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) == 2
    assert "VIDLAB_DEBUG=1" in done.stderr


@pytest.mark.parametrize(
    "typed",
    [
        "optimizer.lr_multipliers={text.*:0.5}",
        "optimizer.lr_multipliers.text=0.5",
        "optimizer.lr_multipliers.text.*=0.5",
        '+optimizer.lr_multipliers={"text.*":0.5}',
    ],
)
def test_the_message_on_a_name_of_ones_own_shows_what_to_type(app, typed):
    with initialize_config_dir(str(app / "conf"), version_base="1.3"):
        with pytest.raises(HydraException) as refused:
            compose("train", [typed])
        told = messages.explain(refused.value)
        shown = re.fullmatch(r"optimizer\.lr_multipliers takes names of your own, .*: '(.*)'", told or "")
        assert shown and compose("train", [shown[1]]).optimizer.lr_multipliers == {"text_encoder.*": 0.5}


def test_every_mapping_shipped_empty_says_how_a_name_is_added():
    conf = Path(__file__).parents[3] / "conf"
    found = {
        f"{path.parent.name}.{name}"
        for path in conf.rglob("*.yaml")
        for name in re.findall(r"^(\w+): \{\}", path.read_text(), re.MULTILINE)
    }
    assert found == set(OWN_NAMES)


def test_exit_codes(app):
    assert run(app, "data.path=a").stdout.strip() == "trained with 3"
    interrupted = run(app, "data.path=a", "data.size=7")
    assert (interrupted.returncode, interrupted.stderr) == (130, "Interrupted.\n")
    bug = run(app, "data.path=a", "data.size=8")
    assert bug.returncode == 1 and "Traceback" in bug.stderr and "RuntimeError: a bug" in bug.stderr
    debug = run(app, "data.path=a", "data.size=5", VIDLAB_DEBUG="1")
    assert debug.returncode == 2 and "Traceback" in debug.stderr


def test_an_interrupt_after_the_work_prints_no_traceback(app):
    done = run(app, "data.path=a", "data.size=9")
    assert (done.returncode, done.stdout.strip(), done.stderr) == (-2, "trained with 9", "")


def test_other_jobs_of_a_sweep_still_run(app):
    done = run(app, "-m", "data.path=a", "data.size=5,8,4")
    assert done.returncode == 2
    assert "trained with 4" in done.stdout
    assert "Job 0 failed: data: size must not be 5" in done.stderr
    assert "Job 1 failed: RuntimeError: a bug" in done.stderr and "in main" in done.stderr
    assert "The sweep ended with failed jobs; the first: job 0: data: size must not be 5" in done.stderr


class Model:
    def __init__(self, width: int, depth: int = 2, child: object = None) -> None:
        if width < 0:
            raise ValueError("width must be positive")
        if depth == 13:
            raise DataError("no data for 13")
        if depth == 14:
            raise RuntimeError("a bug in the model")
        self.width, self.depth, self.child = width, depth, child


def node(**settings):
    return OmegaConf.create({"_target_": f"{__name__}.Model", **settings})


def test_instantiate_builds_nested_nodes_and_passes_arguments():
    model = entry.instantiate(node(child=node(width=1)), "model", width=4)
    assert (model.width, model.depth, model.child.width) == (4, 2, 1)
    partial = entry.instantiate(node(_partial_=True), "model")
    assert partial(width=5).width == 5
    assert entry.instantiate(None, "model") is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"widht": 3}, "model.widht=3: Model has no setting 'widht'. Did you mean 'width'? "
                       "Its settings: width, depth, child."),
        ({}, "model.width is required by Model: add +model.width=... to the command line."),
        ({"width": "???"}, "model.width is required: add model.width=... to the command line."),
        ({"width": -1}, "model: Model refuses its settings (ValueError: width must be positive)."),
        ({"width": 1, "child": node(width=-1)}, "model.child: Model refuses its settings "
                                                "(ValueError: width must be positive)."),
        ({"width": 1, "child": {"_target_": "vidlab.none.X"}},
         "model.child._target_=vidlab.none.X: cannot be imported "
         "(ModuleNotFoundError: No module named 'vidlab.none')."),
        ({"width": 1, "child": [node(width=1, dpeth=3)]},
         "model.child.0.dpeth=3: Model has no setting 'dpeth'. Did you mean 'depth'? "
         "Its settings: width, depth, child."),
    ],
)  # fmt: skip
@pytest.mark.parametrize("attached", [True, False])
def test_instantiate_names_the_key(settings, message, attached):
    config = node(**settings)
    if attached:
        config = OmegaConf.create({"model": config}).model
    with pytest.raises(UserError) as caught:
        entry.instantiate(config, "model")
    assert str(caught.value) == message


def test_instantiate_keeps_the_class_of_user_errors_and_lets_bugs_through():
    with pytest.raises(DataError, match="model: no data for 13"):
        entry.instantiate(node(width=1, depth=13), "model")
    with pytest.raises(Exception, match="a bug in the model") as caught:
        entry.instantiate(node(width=1, depth=14), "model")
    assert not isinstance(caught.value, UserError)
    assert messages.explain(caught.value) is None


def test_missing_value_behind_an_interpolation_is_named():
    config = OmegaConf.create({"path": "???", "model": {"_target_": f"{__name__}.Model", "width": "${path}"}})
    with pytest.raises(UserError, match=r"^path is required: add path=\.\.\. to the command line\.$"):
        entry.instantiate(config.model, "model")


@pytest.mark.parametrize(
    ("code", "message"),
    [(errno.ENOSPC, "disk is full"), (errno.EROFS, "read-only"), (errno.EACCES, "no permission")],
)
def test_storage_problems_name_the_file(code, message, capsys):
    with pytest.raises(SystemExit) as caught, entry.friendly():
        raise OSError(code, "text", "/data/out.mp4")
    assert caught.value.code == 2
    shown = capsys.readouterr().err
    assert shown.startswith("/data/out.mp4: ") and message in shown


def test_errors_of_loader_workers_lose_their_traceback():
    import torch

    class Broken(torch.utils.data.Dataset):
        def __len__(self):
            return 1

        def __getitem__(self, index):
            raise DataError("too many corrupt clips: 3 of 4")

    with pytest.raises(DataError) as caught:
        list(torch.utils.data.DataLoader(Broken(), num_workers=1))
    assert messages.explain(caught.value) == "too many corrupt clips: 3 of 4"


@pytest.mark.parametrize("word", ["-m", "hydra.mode=MULTIRUN", "+experiment=table", "model=full3d"])
def test_hydra_asks_for_the_mode_only_where_one_may_be_set(word):
    asks = Hydra.get_mode
    with entry._composed_once(["data.path=a", word]):
        assert (Hydra.get_mode is asks) == (word != "model=full3d")
    assert Hydra.get_mode is asks


@pytest.mark.parametrize(
    "text",
    [
        "[third_party/gloo/gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:6048: Connection reset by peer.",
        "[third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 1800000ms for recv to complete",
        "NCCL error: remote process exited or there was a network error",
    ],
)
def test_a_process_that_has_gone_is_told_in_one_message(text):
    assert messages.explain(RuntimeError(text)).startswith("Another process of this training ended")
    assert messages.explain(RuntimeError("a shape is wrong")) is None
