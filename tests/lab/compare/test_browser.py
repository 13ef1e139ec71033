"""Pages opened in Chromium without a window, where it is installed: ours, and MLflow's page that compares runs."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image

from vidlab.lab.compare.build import build_comparison
from vidlab.lab.tracking.store import open_client

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")]
QUIET = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update")  # fmt: skip


def opened(address: str, folder: Path, *more: str) -> subprocess.CompletedProcess:
    words = [str(CHROMIUM), *QUIET, f"--user-data-dir={folder}/profile", "--virtual-time-budget=20000", *more, address]
    return subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)


def test_the_page_is_shown_and_its_script_runs(sweep, tmp_path):
    page = build_comparison(sweep.folder, tmp_path / "made") / "comparison.html"
    dom = opened(f"file://{page}", tmp_path, "--dump-dom").stdout
    player = dom[dom.index('id="player"') :].partition(">")[0]
    assert "hidden" not in player, "the player is shown by the script"
    assert "of 0.50 s" in dom, "videos have loaded: four frames at eight a second"
    assert "alert(1)&gt;" in dom and "<img src=x" not in dom


def test_mlflow_compares_the_runs_of_a_sweep(sweep, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["-m", "mlflow", "ui", "--backend-store-uri", sweep.uri, "--port", str(port), "--workers", "1"]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    server = subprocess.Popen([sys.executable, *words], env=environment, stdout=subprocess.DEVNULL,
                              stderr=subprocess.DEVNULL)  # fmt: skip
    try:
        wait_for(f"http://127.0.0.1:{port}/health")
        runs = quote("[" + ",".join(f'"{run}"' for run in sweep.children[:2]) + "]")
        experiment = open_client(sweep.uri).get_experiment_by_name("vidlab").experiment_id
        experiments = quote(json.dumps([experiment]))
        address = f"http://127.0.0.1:{port}/#/compare-runs?runs={runs}&experiments={experiments}"
        dom = opened(address, tmp_path, "--dump-dom", "--window-size=2000,1200").stdout
        assert "Comparing 2 Runs" in dom
        opened(address, tmp_path, "--window-size=2000,1200", f"--screenshot={tmp_path}/compare.png")
        assert np.asarray(Image.open(tmp_path / "compare.png").convert("L")).std() > 5, "it is not blank"
    finally:
        server.terminate()
        server.wait(30)


def wait_for(address: str, seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    raise TimeoutError(address)
