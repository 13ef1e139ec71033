"""Given frames and made ones: what linear interpolation, repetition and a model leave as error, and FVD of sets."""

import pytest
import torch
from torch import nn

from vidlab.conditioning.base import NoConditioning
from vidlab.conditioning.frame_replacement import FrameReplacement
from vidlab.conditioning.patterns import EveryNth, First
from vidlab.errors import UserError
from vidlab.lab.evaluation.against_truth.made import counted_frames, joins, known_frames, without_a_model
from vidlab.lab.evaluation.against_truth.scores import Scores, check_metrics
from vidlab.lab.evaluation.against_truth.table import table_of
from vidlab.metrics.sets.features import Extractor

EVERY_SECOND = FrameReplacement(pattern=EveryNth(2))


def clips(*frames: float) -> torch.Tensor:
    return torch.tensor(frames).reshape(1, 1, -1, 1, 1).expand(2, 3, len(frames), 2, 2)


def test_frames_that_a_model_is_given_and_those_that_count():
    assert known_frames(FrameReplacement(pattern=First(4)), 6).long().tolist() == [1, 1, 1, 1, 0, 0]
    assert not known_frames(NoConditioning(), 6).any()
    every = known_frames(EVERY_SECOND, 6)
    assert every.long().tolist() == [1, 0, 1, 0, 1, 0]
    assert counted_frames(every).long().tolist() == [0, 1, 0, 1, 0, 0], "the last has no given one after it"
    assert counted_frames(torch.arange(6) < 4).long().tolist() == [0, 0, 0, 0, 1, 1]
    with pytest.raises(UserError, match="all 3 frames are given"):
        counted_frames(torch.ones(3, dtype=torch.bool))


def test_baselines_and_errors_by_hand():
    truth, given = clips(0.0, 1, 4, 9, 16, 25), known_frames(EVERY_SECOND, 6)
    found = without_a_model(truth, given)
    assert found["linear interpolation"][0, 0, :5, 0, 0].tolist() == [0, 2, 4, 10, 16]
    assert found["the frame before"][0, 0, :, 0, 0].tolist() == [0, 0, 4, 4, 16, 16]
    scores = Scores(["squared_error"], counted_frames(given))
    scores.add(truth, found)
    assert scores.per_clip["squared_error"] == {
        "linear interpolation": [1.0, 1.0],
        "the frame before": [(1 + 25) / 2] * 2,
    }
    thirds = without_a_model(truth, torch.arange(6) % 3 == 0)["linear interpolation"][0, 0, :4, 0, 0]
    assert thirds.tolist() == pytest.approx([0, 3, 6, 9])
    assert list(without_a_model(truth, torch.arange(6) < 2)) == ["the frame before"]
    assert without_a_model(truth, torch.zeros(6, dtype=torch.bool)) == {}


def test_joins_of_an_upsampled_video():
    assert joins(2, 8, 17) == [6, 10]  # clips of given frames 0-3, 3-6 and 5-8; the last begins early to be full
    assert joins(2, 8, 7) == []


def test_the_table_tells_how_far_the_model_lies_below():
    scores = Scores(["squared_error"], torch.tensor([False, True]))
    scores.per_clip = {"squared_error": {"the model": [0.1, 0.3], "linear interpolation": [0.2, 0.5]}}
    text = table_of(scores, "the model", ["linear interpolation"], 2)
    assert "the model             0.20000" in text
    assert "linear interpolation  0.35000   the model's minus this -0.15000 [-0.78531, +0.48531]" in text  # t = 12.706


class FirstPixels(Extractor):
    """In place of I3D: two pixels as features."""

    def __init__(self) -> None:
        super().__init__(nn.Identity(), "two pixels", 2, 2)

    def __call__(self, videos: torch.Tensor) -> torch.Tensor:
        return videos[:, None, 0, 0, 0, :2]


def test_fvd_of_sets_and_the_difference_of_two():
    torch.manual_seed(0)
    truth = torch.rand(40, 3, 2, 2, 2)
    scores = Scores(["fvd"], torch.tensor([False, True]), FirstPixels())
    scores.add(truth, {"near": truth + 0.1, "far": truth + 1})
    # equal covariances, so the squared distance of the means
    assert scores.fvd("near")[0] == pytest.approx(2 * 0.1**2, abs=1e-5)
    value, interval = scores.fvd_gain("near", "far")
    assert value == pytest.approx(2 * 0.1**2 - 2, abs=1e-5)
    assert interval.low < value < interval.high < 0
    assert "far   2.0   near's minus this -2.0 [" in table_of(scores, "near", ["far"], 40)


def test_metrics_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match=r"fvd reads clips of at least 9 frames, these have 8.* --frames 17"):
        check_metrics(["psnr", "fvd"], 8)
    with pytest.raises(UserError, match="metrics: vmaf; choose among squared_error, psnr"):
        check_metrics(["vmaf"], 16)
