"""Joins of long videos: even where pieces fit, rough where they do not."""

import pytest
import torch

from vidlab.errors import DataError, UserError
from vidlab.metrics.segment_joins import SegmentJoins


def scored(frames: list[float], **settings: int) -> float:
    video = torch.tensor(frames).reshape(1, 1, -1, 1, 1).expand(1, 3, len(frames), 4, 4).contiguous() / 100
    metric = SegmentJoins(**settings)
    metric.update(video, keys=["a"])
    return metric.result().value


def test_even_change_has_no_join():
    assert scored([0.0, 1, 2, 3, 4, 5, 6, 7], clip_frames=4, overlap=1) == pytest.approx(1, abs=0.02)


def test_roughness_by_hand():
    # clips of 4 frames that share none: one join, before frame 4. Second differences 1, 1, 0, 2, 1, 1 around frames
    # 1 to 6; those around frames 3 and 4 are the join's: mean 1, the others' mean 1
    assert scored([0.0, 0, 1, 1, 1, 3, 4, 4], clip_frames=4, overlap=0) == pytest.approx(1.0)
    # a jump of 8 at the join: 1, 1, 8, 8, 1, 1
    assert scored([0.0, 0, 1, 1, 9, 9, 10, 10], clip_frames=4, overlap=0) == pytest.approx(8.0, rel=2e-3)
    # clips that share one frame begin at frames 4 and 7: around 3, 4, 6 are 8, 8, 1, elsewhere 1, 1, 1
    assert scored([0.0, 0, 1, 1, 9, 9, 10, 10], clip_frames=4, overlap=1) == pytest.approx(17 / 3, rel=2e-3)


def test_videos_without_a_join_are_refused():
    with pytest.raises(DataError, match="have no join of clips of 8 frames that share 1"):
        scored([0.0, 1, 0, 1], clip_frames=8)
    with pytest.raises(UserError, match=r"metrics\.segment_joins\.overlap=8"):
        SegmentJoins(overlap=8)
