import json
import subprocess

import torch

from vidlab.lab.runs import provenance


def repository(folder):
    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)

    git("init")
    (folder / "code.py").write_text("x = 1\n")
    git("add", ".")
    git("commit", "-m", "one")


def test_revision_and_dirty_flag(tmp_path):
    repository(tmp_path)
    clean = provenance.collect(source=tmp_path)
    assert clean.revision is not None and len(clean.revision) == 40
    assert clean.dirty is False
    (tmp_path / "untracked.txt").write_text("a result")
    assert provenance.collect(source=tmp_path).dirty is False
    (tmp_path / "code.py").write_text("x = 2\n")
    dirty = provenance.collect(source=tmp_path)
    assert (dirty.revision, dirty.dirty) == (clean.revision, True)


def test_outside_git_nothing_is_claimed(tmp_path):
    found = provenance.collect(source=tmp_path)
    assert found.revision is None and found.dirty is None
    assert "mlflow.source.git.commit" not in found.tags()


def test_installed_inside_the_repository_of_someone_else_nothing_is_claimed(tmp_path):
    repository(tmp_path)
    installed = tmp_path / "venv" / "vidlab"
    installed.mkdir(parents=True)
    (installed / "clip.py").write_text("")
    assert provenance.collect(source=installed).revision is None


def test_without_the_git_program(tmp_path, monkeypatch):
    repository(tmp_path)
    monkeypatch.setenv("PATH", "")
    assert provenance.collect(source=tmp_path).revision is None


def test_versions_hardware_and_overrides_are_written(tmp_path):
    found = provenance.collect(overrides=["model=full3d", "seed=1"], source=tmp_path)
    content = json.loads(found.write(tmp_path).read_text())
    assert content["packages"]["torch"] == torch.__version__
    assert set(content["packages"]) == set(provenance.PACKAGES)
    assert content["overrides"] == ["model=full3d", "seed=1"]
    assert content["hardware"]["cores"] >= 1 and content["hardware"]["memory_gib"] > 0.1
    assert content["hardware"]["cpu"]
