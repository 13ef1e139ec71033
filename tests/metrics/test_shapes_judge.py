"""The judge as a metric: accumulation, processes, intervals, errors."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from vidlab.data.moving_shapes import MovingShapes
from vidlab.errors import DataError, UserError
from vidlab.factors import Factors
from vidlab.metrics.results import difference
from vidlab.metrics.shapes.grade import DIMENSIONS
from vidlab.metrics.shapes.judge import ShapesJudge, gray_levels, scene_of


def clips(count: int, difficulty: str = "rich", **size: int) -> tuple[Tensor, list[Factors], list[str]]:
    shapes = MovingShapes(difficulty=difficulty, **size)
    rendered = [shapes.render(index, "val") for index in range(count)]
    pixels = torch.stack([torch.from_numpy(clip.frames).permute(3, 0, 1, 2) for clip in rendered])
    return pixels / 127.5 - 1, [clip.factors for clip in rendered], [f"val-{index}" for index in range(count)]


def test_true_clips_have_full_marks_with_interval_and_settings() -> None:
    videos, factors, keys = clips(12)
    judge = ShapesJudge()
    judge.update(videos, keys=keys, factors=factors)
    total = judge.result()
    assert total.value > 0.99 and total.clips == 12 and len(total.scores) == 12
    assert (total.frames, total.resolution) == (8, (32, 32))
    assert total.interval is not None and total.interval.low <= total.value <= total.interval.high
    assert float(judge.compute()) == pytest.approx(total.value)
    parts = judge.dimensions()
    assert list(parts) == [name for name in DIMENSIONS if name in parts]
    assert {"color", "object_class", "motion_direction", "subject_consistency"} <= set(parts)
    named = sum("objects.0.speed" in one.named or "objects.1.speed" in one.named for one in factors)
    assert parts["speed"].clips == named
    assert all(part.name == f"shapes_judge/{name}" for name, part in parts.items())


def test_pixels_are_mapped_to_gray_levels() -> None:
    video = torch.tensor([-1.0, 0.0, 1.0, 1.0005]).view(1, 4, 1, 1).expand(3, 4, 2, 2)
    assert gray_levels(video)[:, 0, 0, 0].tolist() == [0.0, 127.5, 255.0, 255.0]
    videos, _, _ = clips(1, "plain")
    assert scene_of(videos[0]).canvas.frames == 8


def test_order_batches_and_repeats_change_nothing() -> None:
    videos, factors, keys = clips(6)
    whole, parts = ShapesJudge(), ShapesJudge()
    whole.update(videos, keys=keys, factors=factors)
    for index in (3, 1, 5, 0, 1, 4, 2):
        parts.update(videos[index : index + 1], keys=keys[index : index + 1], factors=factors[index : index + 1])
    assert whole.result() == parts.result()
    assert whole.dimensions() == parts.dimensions()


def test_clips_of_other_processes_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes with three clips each give what one with six gives."""
    videos, factors, keys = clips(6)
    whole, first, second = ShapesJudge(), ShapesJudge(), ShapesJudge()
    whole.update(videos, keys=keys, factors=factors)
    first.update(videos[:3], keys=keys[:3], factors=factors[:3])
    second.update(videos[3:], keys=keys[3:], factors=factors[3:])
    first.scores.extend(second.scores)  # what gathering by concatenation does
    first.keys.extend(second.keys)
    assert first.result() == whole.result()


def test_states_survive_a_checkpoint() -> None:
    videos, factors, keys = clips(3)
    judge, again = ShapesJudge(), ShapesJudge()
    judge.update(videos, keys=keys, factors=factors)
    again.load_state_dict(judge.state_dict())
    assert again.result() == judge.result()


def test_two_runs_are_compared_clip_by_clip() -> None:
    videos, factors, keys = clips(12)
    good, bad = ShapesJudge(), ShapesJudge()
    good.update(videos, keys=keys, factors=factors)
    frozen = videos[:, :, :1].expand_as(videos)
    bad.update(frozen, keys=keys, factors=factors)
    found = difference(good.result(), bad.result())
    assert found.paired and found.value > 0.02 and found.interval is not None and found.interval.low > 0
    motion = difference(good.dimensions()["motion_direction"], bad.dimensions()["motion_direction"])
    assert motion.value > 0.3


def test_what_cannot_be_graded_is_refused() -> None:
    videos, factors, _ = clips(2)
    judge = ShapesJudge()
    with pytest.raises(UserError, match=r"data=moving_shapes.*one for each of the 2 clips, there are 0"):
        judge.update(videos)
    with pytest.raises(UserError, match="there are 1"):
        judge.update(videos, factors=[factors[0], None])
    with pytest.raises(DataError, match="at least 4"):
        judge.update(videos[:, :, :3], factors=factors)
    with pytest.raises(DataError, match=r"expected \[-1, 1\]"):
        judge.update((videos + 1) * 127.5, factors=factors)
    broken = videos.clone()
    broken[1, 0, 2, 3, 4] = torch.nan
    with pytest.raises(DataError, match="clip 1 of the batch has NaN"):
        judge.update(broken, factors=factors)
    with pytest.raises(DataError, match="no clip was given"):
        judge.result()


def test_a_dimension_no_caption_names_has_no_result() -> None:
    videos, factors, _ = clips(2)
    judge = ShapesJudge()
    judge.update(videos, factors=[replace(one, named=()) for one in factors])
    always = {"object_count", "subject_consistency", "background_consistency", "temporal_flickering"}
    assert set(judge.dimensions()) - {"multiple_objects"} == always


def test_longer_and_larger_clips_are_judged_too() -> None:
    videos, factors, _ = clips(3, frames=16, height=64, width=64)
    judge = ShapesJudge()
    judge.update(videos, factors=factors)
    result = judge.result()
    assert result.value > 0.99 and result.clips == 3
    assert (result.frames, result.resolution) == (16, (64, 64))
