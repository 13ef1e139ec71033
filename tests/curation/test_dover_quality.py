"""The step that scores clips by DOVER, with a small network in the form of the published file."""

from functools import partial

import numpy as np
import pytest
import torch

from vidlab.curation.engine.records import Clip, SourceVideo
from vidlab.curation.engine.video_file import VideoFile
from vidlab.curation.stages.dover import DoverQuality, views
from vidlab.data.video import encode
from vidlab.errors import UserError
from vidlab.perceptual import dover

SMALL = partial(dover.VideoSwin, 2, (1, 1), (1, 1), (2, 7, 7), (8, 16, 16))


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A file with both branches and the indices that the authors' code saves, and its model."""
    monkeypatch.setenv("VIDLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(dover, "VideoSwin", SMALL)
    torch.manual_seed(0)
    model = dover.DoverTechnical()
    state = {
        **model.state_dict(),
        "technical_backbone.layers.0.blocks.0.attn.relative_position_index": torch.arange(4),
        "aesthetic_backbone.downsample_layers.0.0.weight": torch.zeros(2, 3),
    }
    torch.save(state, tmp_path / "DOVER.pth")
    return tmp_path / "DOVER.pth", model


def clip_of(folder, frames: np.ndarray) -> tuple[VideoFile, Clip]:
    (folder / "v.mp4").write_bytes(encode(frames, 8, lossless=True))
    return VideoFile(SourceVideo("v.mp4", str(folder / "v.mp4"))), Clip("v.mp4", 0, len(frames), 8, *frames.shape[1:3])


def test_the_score_of_a_clip_is_the_mean_of_its_views(tmp_path, published):
    path, model = published
    frames = np.random.default_rng(0).integers(0, 256, (40, 48, 64, 3), dtype=np.uint8)
    file, clip = clip_of(tmp_path, frames)
    stage = DoverQuality(str(path), views=2)
    stage.check("curation.technical.measure")
    (found,) = stage.measure(file, [clip])
    # parts of 20 frames are shorter than 64: views begin with them, in steps of two, and go around
    wanted = [[(first + 2 * step) % 40 for step in range(32)] for first in (0, 20)]
    scores = [model(dover.fragments(torch.from_numpy(frames[one]))) for one in wanted]
    assert found.scores["dover"] == pytest.approx(np.mean(scores), abs=1e-6)
    assert stage.weights() != DoverQuality(None).weights()


def test_views_lie_in_the_middle_of_their_parts():
    found = list(views(300, 3, 2))
    assert [one[0] for one in found] == [18, 118, 218] and found[0][-1] == 18 + 62  # (100 - 64) / 2
    assert [one[0] for one in views(100, 1, 1)] == [34]


def test_another_network_and_no_file_are_refused(tmp_path, published):
    path, _ = published
    key = "curation.technical.measure"
    with pytest.raises(UserError, match=r"measure\.weights_path is not set.*step out with curation\.technical=null"):
        DoverQuality().check(key)
    with pytest.raises(UserError, match=r"measure\.weights_path=.*none\.pth: it is not there"):
        DoverQuality(str(tmp_path / "none.pth")).check(key)
    state = torch.load(path)
    del state["technical_head.fc_last.bias"]
    torch.save(state, tmp_path / "mobile.pth")
    with pytest.raises(UserError, match=r"technical_head\.fc_last\.bias is missing; these are the weights of another"):
        dover.load_dover(str(tmp_path / "mobile.pth"))
    with pytest.raises(UserError, match="views=0, every=2"):
        DoverQuality(views=0)
