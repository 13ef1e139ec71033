"""Metrics of single clips: values by hand, agreement with other programs, and what each refuses."""

import math

import numpy as np
import pytest
import torch
from metric_clips import moving_clips, noise, tiny_frames

from vidlab.errors import DataError, UserError
from vidlab.metrics.reconstruction.lpips import VideoLPIPS
from vidlab.metrics.reconstruction.psnr import PSNR
from vidlab.metrics.reconstruction.ssim import SSIM
from vidlab.metrics.results import difference
from vidlab.metrics.vbench.consistency import Consistency, frame_consistency
from vidlab.metrics.vbench.flow import flows, gray_frames, warp
from vidlab.metrics.vbench.motion import (
    DynamicDegree,
    MotionMagnitude,
    MotionSmoothness,
    WarpingError,
    moves,
    visible,
)
from vidlab.metrics.vbench.temporal_flickering import TemporalFlickering
from vidlab.perceptual.lpips import LPIPS

WEIGHT_FREE = (TemporalFlickering, MotionMagnitude, MotionSmoothness, DynamicDegree, WarpingError)


def value(metric, clips, **given):
    metric.update(clips, **given)
    return metric.result().value


def sliding(pixels: float, frames: int = 8, size: int = 64) -> torch.Tensor:
    """(1, 3, T, H, W): smooth texture that moves right by so many pixels per frame."""
    x, y = torch.arange(size).view(1, 1, -1), torch.arange(size).view(1, -1, 1)
    x = x - pixels * torch.arange(frames).view(-1, 1, 1)
    texture = 0.4 * torch.sin(x / 3.1) * torch.cos(y / 4.3) + 0.3 * torch.sin(x / 7 + y / 5)
    return texture.expand(3, -1, -1, -1)[None].clone()


def test_psnr_by_hand():
    clip = torch.zeros(2, 3, 2, 4, 4)
    off = clip.clone()
    off[:, :, 0] += 0.02  # MSE 4e-4 of a peak of 4: 40 dB
    off[:, :, 1] += 0.2  # 20 dB
    off[1] = 0  # exact: 100 dB
    metric = PSNR()
    metric.update(off, reference=clip, keys=["a", "b"])
    found = metric.result()
    assert sorted(found.scores) == pytest.approx([30, 100], abs=1e-4) and found.value == pytest.approx(65, abs=1e-4)
    assert found.settings == {"data_range": "2"} and found.higher_is_better


def test_ssim_of_constants_by_hand():
    """Without variance SSIM is (2 m n + C1) / (m^2 + n^2 + C1), C1 = (0.01 x 2)^2."""
    a, b = torch.full((1, 3, 2, 16, 16), 0.5), torch.full((1, 3, 2, 16, 16), 0.3)
    expected = (2 * 0.5 * 0.3 + 4e-4) / (0.25 + 0.09 + 4e-4)
    assert value(SSIM(), a, reference=b) == pytest.approx(expected, abs=1e-5)
    clips = moving_clips(1, frames=2)
    assert value(SSIM(), clips, reference=clips) == pytest.approx(1)
    with pytest.raises(DataError, match="at least 11 x 11"):
        SSIM().update(a[..., :10], reference=b[..., :10])


def test_lpips_is_the_mean_over_frames():
    network = LPIPS("alex")
    clips, other = moving_clips(2, frames=3, size=36), moving_clips(2, frames=3, size=36, seed=2)
    expected = torch.stack([network(clips[:, :, t], other[:, :, t]) for t in range(3)]).mean()
    metric = VideoLPIPS(network)
    assert value(metric, clips, reference=other) == pytest.approx(expected.item(), rel=1e-5)
    assert metric.result().settings["net"] == "alex" and not metric.state_dict().keys() & {"heads", "convs"}
    small = VideoLPIPS(network, size=[36, 36])
    small.update(clips[..., :20, :20], reference=other[..., :20, :20])
    assert small.result().resize == "bilinear_antialias to 36 x 36"


def test_temporal_flickering_by_hand():
    """Frames 0, 51, 0 on the scale 0 to 255: MAE 51, so 204 / 255."""
    clip = torch.full((1, 3, 3, 4, 4), -1.0)
    clip[:, :, 1] = 51 / 127.5 - 1
    assert value(TemporalFlickering(), clip) == pytest.approx(0.8)


def test_flow_finds_a_known_shift():
    for pixels in (0.0, 1.0, 2.5):
        clip = sliding(pixels)
        found = flows(gray_frames(clip[0]))[:, 12:-12, 12:-12]
        assert np.abs(found - [pixels, 0]).mean() < 0.15
        # lengths are stated for a short side of 256, four times this one
        assert value(MotionMagnitude(), clip) == pytest.approx(4 * pixels, abs=0.15 * 4 + 0.2 * pixels)


def test_warp_by_hand():
    image = np.array([[0.0, 10.0, 20.0, 30.0]], np.float32)
    flow = np.zeros((1, 4, 2), np.float32)
    flow[..., 0] = 0.5
    assert warp(image, flow).tolist() == [[5, 15, 25, 30]]  # the edge is repeated


def test_hidden_pixels_by_hand():
    forward = np.array([[[4.0, 0.0], [4.0, 0.0], [0.0, 0.0]]])
    returned = np.array([[[-4.0, 0.0], [-3.0, 0.0], [0.7, 0.0]]])
    # gaps 0, 1, 0.49 against 0.82, 0.75, 0.5049
    assert visible(forward, returned).tolist() == [[True, False, True]]


def test_dynamic_degree_follows_the_rule():
    """At 64 x 64 the threshold is 1.5 pixels for the fastest 5 %; of 16 frames round(4) = 4 pairs must exceed it."""
    lengths = np.zeros((15, 64, 64))
    lengths[:4, :5, :42] = 1.51  # 210 pixels; 5 % are 204
    assert moves(lengths, 16)
    assert not moves(lengths[1:], 16)
    lengths[:4] = 0
    lengths[:4, :5, :20] = 2.9  # fast, but too few: mean of the fastest 204 is 1.42
    assert not moves(lengths, 16)
    lengths[:4, :5, :20] = 3.2
    assert moves(lengths, 16)
    both = torch.cat([sliding(3.0, frames=16), sliding(0.5, frames=16)])
    assert value(DynamicDegree(), both) == 0.5


def test_smooth_motion_is_smoother_than_jerky_motion():
    """The same frames, evenly spaced or with each second one late."""
    steady = sliding(1.5, frames=9)
    jerky = torch.cat([sliding(1.5, frames=9)[:, :, :1]] * 9, 2)
    for t in range(9):
        jerky[:, :, t] = sliding(1.5 * t + (1.2 if t % 2 else 0), frames=2)[:, :, 1]
    assert value(MotionSmoothness(), steady) > 0.98
    assert value(MotionSmoothness(), jerky) < value(MotionSmoothness(), steady) - 0.01


def test_warping_error_forgives_motion_and_not_change():
    # flow ends at the border, where pixels come in; the middle of a sliding texture is explained by motion
    moving, changing = sliding(2.0), sliding(2.0)
    changing[:, :, 1::2] *= 0.5
    plain = float((moving.diff(dim=2) / 2).square().mean())
    assert value(WarpingError(), moving) < 0.2 * plain
    assert value(WarpingError(), changing) > 5 * value(WarpingError(), moving)


def test_consistency_by_hand():
    rows = torch.tensor([[[1.0, 0], [0, 2], [3, 0]]])
    # frame 1: previous 0, first 0; frame 2: previous 0, first 1
    assert frame_consistency(rows).item() == pytest.approx(0.25)
    assert frame_consistency(torch.tensor([[[1.0, 0], [-1, 0]]])).item() == 0  # cosines below 0 count as 0
    metric = Consistency(tiny_frames())
    assert value(metric, moving_clips(2)[:, :, :1].expand(-1, -1, 5, -1, -1)) == pytest.approx(1)


@pytest.mark.parametrize("metric", WEIGHT_FREE)
def test_every_result_says_what_it_was_measured_with(metric):
    clips = moving_clips(4, frames=12)
    found = metric(frames=5, stride=2)
    found.update(clips, keys=list("abcd"), captions=["a"] * 4, reference=clips)  # what is not needed is left
    result = found.result()
    assert (result.clips, result.frames, result.stride, result.resolution) == (4, 5, 2, (32, 32))
    assert len(result.scores) == 4 and result.value == pytest.approx(np.mean(result.scores))
    assert result.interval.low <= result.value <= result.interval.high and result.reference_clips is None
    same = metric()
    same.update(clips[:, :, 0:9:2], keys=list("abcd"))
    assert same.result().scores == result.scores


def test_runs_are_compared_clip_by_clip():
    clips = moving_clips(12)
    keys = [str(n) for n in range(12)]
    first, second, apart = TemporalFlickering(), TemporalFlickering(), TemporalFlickering()
    first.update(clips, keys=keys)
    second.update(noise(clips, 0.02).flip(0), keys=keys[::-1])
    apart.update(noise(clips, 0.02))
    found = difference(first.result(), second.result())
    assert found.paired and found.value > 0 and found.interval.low > 0 and found.p_value < 0.01
    unpaired = difference(first.result(), apart.result())
    assert not unpaired.paired and unpaired.interval.half_width > 2 * found.interval.half_width


def test_clips_without_keys_are_numbered_and_nothing_is_lost():
    metric = PSNR()
    for part in moving_clips(5).split(2):
        metric.update(part, reference=part)
    found = metric.result()
    assert found.clips == 5 and found.interval is not None
    one = PSNR()
    one.update(moving_clips(1), reference=moving_clips(1))
    assert one.result().interval is None and one.result().notes == ("no interval: fewer than 2 clips",)


CLIPS = moving_clips(2, frames=6, size=16)
BAD = {
    "one frame": (CLIPS[:, :, :1], "clips have 1 frame.s., this metric needs at least"),
    "images": (CLIPS[:, :, 0], r"clips must be \(B, 3, T, H, W\), these are \(2, 3, 16, 16\)"),
    "two channels": (CLIPS[:, :2], r"clips must be \(B, 3, T, H, W\)"),
    "integers": (((CLIPS + 1) * 127.5).to(torch.uint8), "clips must be floats in .*uint8; map 0-255 by"),
    "0 to 255": ((CLIPS + 1) * 127.5, r"clip b has pixels from .* to \d\d\d, expected \[-1, 1\]; map 0-255 by"),
    "a little over": (CLIPS * 1.3 / CLIPS.abs().max(), r"expected \[-1, 1\]"),
    "0 to 1": (
        torch.cat([(CLIPS + 1) / 2] * 4),
        "8 clips without one pixel below 0. They seem to be in .0, 1.; map them",
    ),
    "empty": (CLIPS[:0], "the batch is empty"),
}


@pytest.mark.parametrize("metric", WEIGHT_FREE)
@pytest.mark.parametrize("kind", BAD)
def test_bad_clips_are_refused(metric, kind):
    clips, message = BAD[kind]
    if kind == "0 to 255":
        clips = torch.cat([CLIPS[:1], clips[1:]])
    names = [*"abcdefgh"][: len(clips)]
    with pytest.raises(DataError, match=message):
        metric().update(clips, keys=names)


def test_nan_frames_are_named():
    clips = CLIPS.clone()
    clips[1, 0, 3, 2, 2] = math.nan
    with pytest.raises(DataError, match="temporal_flickering: clip b has NaN or infinite pixels in frame 3"):
        TemporalFlickering().update(clips, keys=["a", "b"])
    with pytest.raises(DataError, match="reference: clip 1 of the batch has NaN"):
        PSNR().update(CLIPS, reference=clips)


def test_mixed_sizes_and_missing_parts_are_refused():
    metric = TemporalFlickering()
    metric.update(CLIPS)
    with pytest.raises(DataError, match="clips of 5 frames of 16 x 16 after clips of 6 frames of 16 x 16; bring all"):
        metric.update(CLIPS[:, :, :5])
    assert metric.result().clips == 2
    with pytest.raises(UserError, match="psnr compares each clip with its own reference: give update"):
        PSNR().update(CLIPS)
    with pytest.raises(DataError, match="temporal_flickering: no clip was given"):
        TemporalFlickering().result()
    with pytest.raises(UserError, match="3 keys for 2 clips"):
        TemporalFlickering().update(CLIPS, keys=list("abc"))
    with pytest.raises(UserError, match="frames must be at least 2"):
        TemporalFlickering(frames=1)
    with pytest.raises(DataError, match="optical flow reads frames of at least 16 x 16, these are 12 x 16"):
        MotionMagnitude().update(CLIPS[..., :12, :])
    MotionMagnitude(size=[16, 16]).update(CLIPS[..., :12, :])


def test_a_few_bright_clips_are_scored():
    metric = TemporalFlickering()
    metric.update((CLIPS + 1) / 2)
    assert metric.result().clips == 2


def test_ssim_is_exact_under_autocast():
    videos = torch.rand(1, 3, 2, 16, 16, generator=torch.Generator().manual_seed(0))
    reference = (videos + 0.1).clamp(max=1)
    exact = SSIM().score(videos, reference, [""])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(SSIM().score(videos, reference, [""]), exact)
