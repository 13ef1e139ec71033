"""What is shipped: the wheel's contents, and requirements.txt as one exact answer to pyproject.toml."""

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PIN = re.compile(r"([a-z0-9-]+)==(\S+)")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel that the project's own build backend makes of this tree."""
    folder = tmp_path_factory.mktemp("wheel")
    code = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, f"{done.stderr}\n(hatchling is in the dependency group test of pyproject.toml)"
    return zipfile.ZipFile(folder / done.stdout.splitlines()[-1])


def pins() -> dict[str, str]:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    return {found[1]: found[2] for line in lines if (found := PIN.fullmatch(line))}


def test_the_wheel_has_every_configuration(wheel: zipfile.ZipFile) -> None:
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "conf").rglob("*.yaml")}
    assert len(files) > 20
    assert {f"vidlab/{name}" for name in files} <= set(wheel.namelist())


def test_the_wheel_has_every_module_and_manifest(wheel: zipfile.ZipFile) -> None:
    source = ROOT / "src"
    files = {
        path.relative_to(source).as_posix()
        for room in ("vidlab", "hydra_plugins")
        for path in (source / room).rglob("*")
        if path.suffix in (".py", ".yaml", ".typed")
    }
    assert "vidlab/py.typed" in files and "vidlab/data/datasets/sample_clips.yaml" in files
    assert files <= set(wheel.namelist())


def test_the_wheel_has_nothing_else(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert "hydra_plugins/vidlab_experiments.py" in wheel.namelist()
    assert tops == {"vidlab", "hydra_plugins", f"vidlab-{PROJECT['project']['version']}.dist-info"}
    assert not [name for name in wheel.namelist() if "__pycache__" in name or name.endswith((".pyc", ".ckpt"))]
    assert any(name.endswith("licenses/LICENSE") for name in wheel.namelist())


def test_an_installed_wheel_trains(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    """Its configurations are found inside the package, and ``vidlab`` is the command of ``python -m vidlab``."""
    wheel.extractall(tmp_path / "site")
    (name,) = (name for name in wheel.namelist() if name.endswith("/entry_points.txt"))
    assert "vidlab = vidlab.__main__:main" in wheel.read(name).decode()
    small = ["model.backbone.width=48", "model.backbone.heads=2", "model.backbone.depth=1", "trainer.max_steps=2"]
    small += ["data.source.train_clips=8", "data.source.val_clips=4", "data.val_clips=4", "data.batch_size=2"]
    small += ["trainer=cpu", "precision=32-true", "data.num_workers=0", "sampler.steps=2", "logger=none"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "VIDLAB_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-m", "vidlab", "train", *small],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and "Trained 2 steps" in done.stdout, done.stderr


def test_the_wheel_says_what_it_needs(wheel: zipfile.ZipFile) -> None:
    (name,) = (name for name in wheel.namelist() if name.endswith("/METADATA"))
    text = wheel.read(name).decode()
    lines = re.findall(r"^Requires-Dist: (.*)$", text, flags=re.MULTILINE)
    needed = {Requirement(line) for line in lines if "extra ==" not in line}
    assert needed == {Requirement(line) for line in PROJECT["project"]["dependencies"]}
    assert "License-Expression: Apache-2.0" in text and "Requires-Python: >=3.11" in text


def test_requirements_pin_within_the_ranges_of_pyproject() -> None:
    pinned = pins()
    for line in PROJECT["project"]["dependencies"]:
        wanted = Requirement(line)
        version = pinned.get(canonicalize_name(wanted.name))
        assert version is not None, f"requirements.txt does not pin {wanted.name}"
        assert wanted.specifier.contains(version), f"{wanted.name}=={version} is outside {wanted.specifier}"
    assert Version(pinned["torch"]) == Version("2.13.0")


def test_requirements_leave_torchvision_out() -> None:
    assert "torchvision" not in pins()


def test_requirements_are_complete() -> None:
    """What an installed dependency asks for on this platform is pinned too: pip has nothing to choose."""
    pinned, missing = pins(), {}
    waiting = [canonicalize_name(Requirement(line).name) for line in PROJECT["project"]["dependencies"]]
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        for line in metadata.requires(name) or ():
            wanted = Requirement(line)
            other = canonicalize_name(wanted.name)
            # CUDA builds of torch bring their own libraries, which a CPU build does not ask for
            if name == "torch" and other.startswith(("nvidia-", "cuda-", "triton")):
                continue
            if wanted.marker is None or wanted.marker.evaluate({"extra": ""}):
                waiting.append(other)
                if other not in pinned:
                    missing[other] = name
    assert not missing and len(seen) > 80


def test_scripts_of_ci_are_executable() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    subprocess.run(["bash", "-n", str(script)], check=True)
