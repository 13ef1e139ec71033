"""AGENTS.md, CHANGELOG.md and the Dockerfile: their paths exist, their commands compose, their pins are ours."""

import re
import shlex
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir

from vidlab.lab.cli.programs import PROGRAMS

ROOT = Path(__file__).parents[1]
AGENTS, CHANGELOG, DOCKERFILE = (ROOT / name for name in ("AGENTS.md", "CHANGELOG.md", "Dockerfile"))
PATH = re.compile(r"`((?:src|conf|docs|tests|experiments)/[\w./-]*|[\w.-]+\.(?:py|md|toml|yml|txt))`|\]\(([\w./-]+)\)")
INSTRUCTIONS = ("FROM", "ENV", "RUN", "WORKDIR", "COPY", "ARG", "CMD")


def commands(page: Path) -> list[str]:
    """Lines of bash blocks and of code within sentences that start a program."""
    text = page.read_text()
    lines = [line for block in re.findall(r"```bash\n(.*?)```", text, flags=re.S) for line in block.splitlines()]
    return [
        line.partition(" #")[0].strip() for line in (*lines, *re.findall(r"`(python [^`]+)`", text)) if line.strip()
    ]


@pytest.mark.parametrize("page", [AGENTS, CHANGELOG], ids=lambda page: page.name)
def test_paths_exist(page):
    named = {a or b for a, b in PATH.findall(page.read_text())}
    assert [name for name in sorted(named) if "<" not in name and not (ROOT / name).exists()] == []
    assert page is CHANGELOG or len(named) > 20


@pytest.mark.parametrize("command", sorted({*commands(AGENTS), *commands(CHANGELOG)}))
def test_commands_exist(command):
    program, *words = shlex.split(command.split(" && ")[0])
    if program == "python" and words[0] == "-m":
        assert (ROOT / "src" / words[1].replace(".", "/")).is_dir() or (
            ROOT / "src" / f"{words[1].replace('.', '/')}.py"
        ).is_file()
    elif program == "python":
        name = words[0].removesuffix(".py")
        assert (ROOT / words[0]).is_file() and name in PROGRAMS
        given = [word.split(",")[0] for word in words[1:] if "=" in word and " " not in word]
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            compose(name, given)
    elif program == "pytest":
        assert all((ROOT / word).exists() for word in words if word.startswith("tests/"))
    else:
        assert program in ("ruff", "mypy")


@pytest.mark.parametrize("choice", re.findall(r"`((?:callbacks|budget|model)=[^` ]+)", CHANGELOG.read_text()))
def test_choices_of_the_changelog_exist(choice):
    group, _, names = choice.partition("=")
    for name in names.strip("[]").split(","):
        assert name.endswith("...") or (ROOT / "conf" / group / f"{name}.yaml").is_file()


def test_the_changelog_has_the_usual_form():
    text = CHANGELOG.read_text()
    assert re.findall(r"^## (.+)$", text, flags=re.M)[0] == "[Unreleased]"
    assert set(re.findall(r"^### (.+)$", text, flags=re.M)) <= {
        "Added", "Changed", "Deprecated", "Removed", "Fixed", "Security",
    }  # fmt: skip


# --- the Dockerfile: no engine is needed to read it -----------------------------------------------------------------


def steps() -> list[tuple[str, str]]:
    """(instruction, arguments) in order, continued lines joined."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if line.strip() and not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ").splitlines()
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in joined]


def test_every_instruction_is_one_and_stages_build_on_each_other():
    assert {name for name, _ in steps()} <= set(INSTRUCTIONS) and steps()[0][0] == "FROM"
    stages = [re.fullmatch(r"(\S+) AS (\w+)", rest).groups() for name, rest in steps() if name == "FROM"]
    assert stages == [("python:3.11-slim", "base"), ("base", "cpu"), ("base", "cuda")]
    for target in re.findall(r"--target (\w+)", DOCKERFILE.read_text()):
        assert target in {name for _, name in stages}


def test_what_is_copied_exists_and_is_not_ignored():
    ignored = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    copied = [word for name, rest in steps() if name == "COPY" for word in rest.split()[:-1]]
    assert len(copied) >= 10
    for name in copied:
        assert (ROOT / name).exists() and name not in ignored, name
    readme = re.search(r'readme = "(.+)"', (ROOT / "pyproject.toml").read_text())
    assert readme and readme[1] in copied, "building the package reads it"


def test_pins_and_shell():
    text = DOCKERFILE.read_text()
    gpu, pinned = (ROOT / "requirements-gpu.txt").read_text(), (ROOT / "requirements.txt").read_text()
    version = re.compile(r"mamba-ssm==([\d.]+(?:post\d+)?)")
    assert set(version.findall(text)) == set(version.findall(gpu))
    assert re.search(r"^torch==", pinned, flags=re.M) and "grep '^torch=='" in text
    for name, rest in steps():
        if name == "RUN":
            assert shlex.split(rest) and rest.count("if ") == rest.count(" fi")
        if name == "CMD":
            program, script, *words = yaml.safe_load(rest)
            assert program == "python" and (ROOT / Path(script).name).is_file()
            assert all((ROOT / "conf" / word.replace("=", "/")).with_suffix(".yaml").is_file() for word in words)
