"""Every notebook in a kernel of its own, on a sweep that is trained here."""

import shutil
import subprocess
import sys

import pytest

from .command import REPOSITORY

pytestmark = pytest.mark.slow


def test_notebooks_run_from_a_clean_kernel(lab, tmp_path, monkeypatch):
    evaluated = ("callbacks=[default,evaluation]", "callbacks.evaluation.num_videos=2")
    done = lab.train("-m", "model=full3d,2p1d", "seed=0,1", "trainer.max_steps=2", *evaluated)
    assert done.code == 0, done.err
    (sweep,) = (lab.folder / "runs" / "vidlab").glob("*")
    for name, value in {"SWEEP": sweep, "RUN": sweep / "0", "STEPS": 2}.items():
        monkeypatch.setenv(f"VIDLAB_{name}", str(value))
    notebooks = [shutil.copy(path, tmp_path) for path in sorted((REPOSITORY / "notebooks").glob("*.ipynb"))]
    command = [sys.executable, "-m", "nbconvert", "--execute", "--to", "html", "--output-dir", str(tmp_path / "html")]
    done = subprocess.run([*command, *map(str, notebooks)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(list((tmp_path / "html").glob("*.html"))) == len(notebooks)
