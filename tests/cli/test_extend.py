"""The examples of docs/extend.md, word for word, in a package outside the repository."""

import re
import shlex

import pytest

from .command import REPOSITORY, TINY, Lab, new_lab
from .tracked import only

BLOCK = re.compile(r'^```\w+ title="([^"]+)"\n(.*?)^```$', re.MULTILINE | re.DOTALL)
BLOCKS = BLOCK.findall((REPOSITORY / "docs" / "extend.md").read_text())
COMMANDS = [command.strip() for title, command in BLOCKS if title == "run"]
(GENERATE,) = (command.strip() for title, command in BLOCKS if title == "generate")
# settings of other models and sources do not exist for those of the examples
SMALL = [argument for argument in TINY if not argument.startswith(("model.", "data.source"))]


@pytest.fixture
def mine(commands, empty_store, tmp_path) -> Lab:
    """A working folder that holds the package of the page."""
    lab = new_lab(commands, tmp_path / "work", empty_store)
    for title, text in BLOCKS:
        if title not in ("run", "generate"):
            path = lab.folder / title
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    for package in ("mylab", "mylab/conf"):
        (lab.folder / package / "__init__.py").touch()
    return lab


def run(lab: Lab, command: str, *more: str):
    python, program, *arguments = shlex.split(command)
    assert python == "python"
    path = {"PYTHONPATH": f"{lab.folder}:{REPOSITORY / 'src'}"}
    return lab.commands.run(program, *arguments, *SMALL, *more, cwd=lab.folder, env=path)


@pytest.mark.parametrize("command", COMMANDS, ids=["backbone", "loss", "source"])
def test_the_example_trains(mine, command):
    done = run(mine, command, "trainer.max_steps=2")
    assert done.code == 0, done.err
    run_ = only(mine)
    assert run_.status == "FINISHED" and ("train/loss", 1) in run_.curve
    assert (("train/smooth", 1) in run_.curve) == ("losses=smooth" in command)
    config = (mine.runs[0] / "config.yaml").read_text()
    assert "mylab." in config
    own = {"ConvDenoiser": "mylab.conv", "Smoothness": "mylab.smooth", "Stripes": "mylab.stripes"}
    (name,) = (f"{module}.{own_class}" for own_class, module in own.items() if f"{module}.{own_class}" in config)
    assert re.search(rf"python generate\.py .* allow='\[{name}\]'$", done.out, re.MULTILINE)  # as it is to be typed
    if "model=conv" in command:
        env = {"PYTHONPATH": f"{mine.folder}:{REPOSITORY / 'src'}"}
        done = mine.generate("prompt=a ball", env=env)
        assert done.code == 2 and f"add allow='[{name}]' to the command line" in done.message, done.err
        done = mine.generate(*shlex.split(GENERATE)[2:], env=env)
        assert done.code == 0, done.err


def test_mistakes_in_additions_are_named_too(mine):
    done = run(mine, COMMANDS[0], "+model.backbone.depth=2")
    assert done.code == 2
    assert "model.backbone.depth=2: ConvDenoiser has no setting 'depth'" in done.message
    done = run(mine, COMMANDS[0], "model.backbone.width=0")
    assert done.code == 2 and done.message == "model.backbone.width=0 must be at least 1."
    done = run(mine, COMMANDS[0].replace("mylab.conf", "nolab.conf"))
    assert done.code == 2 and "path=nolab.conf is not available" in done.err and "Traceback" not in done.err
