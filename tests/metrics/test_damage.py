"""Known damage moves every metric the way its docstring says, or leaves it where the docstring says it is blind."""

import pytest
import torch
from metric_clips import DAMAGES, moving_clips, tiny_frames, tiny_videos

from vidlab.metrics.reconstruction.lpips import VideoLPIPS
from vidlab.metrics.reconstruction.psnr import PSNR
from vidlab.metrics.reconstruction.ssim import SSIM
from vidlab.metrics.sets.fid import FrameFID
from vidlab.metrics.sets.fvd import FVD
from vidlab.metrics.sets.kvd import KVD
from vidlab.metrics.sets.rfvd import ReconstructionFVD
from vidlab.metrics.vbench.consistency import Consistency
from vidlab.metrics.vbench.motion import DynamicDegree, MotionMagnitude, MotionSmoothness, WarpingError
from vidlab.metrics.vbench.temporal_flickering import TemporalFlickering
from vidlab.perceptual.lpips import LPIPS

STEPS = (0.0, 0.25, 0.5, 1.0)
METRICS = {
    "psnr": PSNR,
    "ssim": SSIM,
    "lpips": lambda: VideoLPIPS(LPIPS("alex"), size=[40, 40]),
    "fvd": lambda: FVD(tiny_videos(), frames=12, draws=0),
    "kvd": lambda: KVD(tiny_videos(), frames=12, draws=0),
    "rfvd": lambda: ReconstructionFVD(tiny_videos(), frames=12, draws=0),
    "fid": lambda: FrameFID(tiny_frames(), draws=0),
    "flickering": TemporalFlickering,
    "magnitude": MotionMagnitude,
    "dynamic": DynamicDegree,
    "smoothness": MotionSmoothness,
    "warping": WarpingError,
    "consistency": lambda: Consistency(tiny_frames()),
}
# "-" falls with every step, "+" rises with every step, "up" is raised at every strength, "0" does not move
EXPECTED = {
    "psnr": {"noise": "-", "blur": "-", "shuffle": "-", "freeze": "-"},
    "ssim": {"noise": "-", "blur": "-", "shuffle": "-", "freeze": "-"},
    "lpips": {"noise": "+", "blur": "+", "shuffle": "+", "freeze": "+"},
    "fvd": {"noise": "+", "blur": "+"},
    "kvd": {"noise": "+", "blur": "+"},
    "rfvd": {"noise": "+", "blur": "+"},
    "fid": {"noise": "+", "blur": "+", "shuffle": "0"},
    "flickering": {"noise": "-", "blur": "+", "shuffle": "-", "freeze": "+"},
    "magnitude": {"noise": "up", "shuffle": "+", "freeze": "-"},
    "dynamic": {"freeze": "-"},
    "smoothness": {"noise": "-", "blur": "+", "shuffle": "-", "freeze": "+"},
    "warping": {"noise": "+", "blur": "-", "shuffle": "+", "freeze": "-"},
    "consistency": {"shuffle": "-", "freeze": "+"},
}
CASES = [(metric, damage, way) for metric, row in EXPECTED.items() for damage, way in row.items()]


@pytest.fixture(scope="module")
def clips():
    return moving_clips(8, speed=1.2)


@pytest.mark.parametrize(("name", "damage", "way"), CASES)
def test_damage(clips, name, damage, way):
    values = []
    for strength in STEPS:
        metric = METRICS[name]()
        metric.update(DAMAGES[damage](clips, strength), reference=clips)
        values.append(metric.result().value)
    steps = torch.tensor(values).diff()
    if way == "0":
        assert steps.abs().max() < 1e-4
        return
    if way == "up":
        assert min(values[1:]) > 1.2 * values[0]
        return
    # dynamic degree counts clips, so single steps may change none of them
    sign = 1 if way == "+" else -1
    assert (steps * sign >= 0).all() and steps[-1] * sign + steps[0] * sign > 0, values


def test_frozen_clips_do_not_move(clips):
    for kind, expected in (
        (MotionMagnitude, 0.0),
        (DynamicDegree, 0.0),
        (WarpingError, 0.0),
        (TemporalFlickering, 1.0),
    ):
        metric = kind()
        metric.update(DAMAGES["freeze"](clips, 1.0))
        assert metric.result().value == pytest.approx(expected, abs=1e-3)
