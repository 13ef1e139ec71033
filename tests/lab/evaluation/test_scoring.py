import numpy as np
import pytest
import torch

from vidlab.data.video.contact_sheets import write_lossless_mp4
from vidlab.errors import DataError, UserError
from vidlab.lab.evaluation.clips import clips_of_folder
from vidlab.lab.evaluation.scoring import score
from vidlab.metrics.vbench.temporal_flickering import TemporalFlickering


class NeverEnough(TemporalFlickering):
    """A metric that always wants more clips."""

    def _result(self):
        raise DataError("never_enough: 2 clips are too few")


@pytest.fixture
def clips(tmp_path):
    draw = np.random.default_rng(0)
    for name in ("a", "b"):
        write_lossless_mp4(tmp_path / f"{name}.mp4", draw.integers(0, 255, (5, 16, 16, 3), np.uint8), 8.0)
    return clips_of_folder(tmp_path, "videos")


def test_a_metric_without_a_result_does_not_cost_the_others_theirs(clips):
    found = score({"flat": TemporalFlickering(), "more": NeverEnough()}, clips, [])
    assert set(found.results) == {"flat"} and found.not_measured == {"more": "never_enough: 2 clips are too few"}
    with pytest.raises(UserError, match="none of the metrics can be measured: more: never_enough"):
        score({"more": NeverEnough()}, clips, [])


def test_values_are_those_of_the_files(clips):
    found = score({"flat": TemporalFlickering()}, clips, [])
    frames = [torch.from_numpy(clip.frames()).double() for clip in clips]
    wanted = [1 - (one[1:] - one[:-1]).abs().mean().item() / 255 for one in frames]
    assert found.results["flat"].value == pytest.approx(sum(wanted) / 2, abs=1e-6)
