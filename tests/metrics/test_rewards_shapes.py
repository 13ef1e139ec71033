"""The differentiable score of color and place: by hand, against the renderer, and its gradients."""

import math

import pytest
import torch

from vidlab.clip import ClipBatch
from vidlab.data.moving_shapes.scene import COLORS
from vidlab.errors import UserError
from vidlab.factors import Factors, ObjectFactors
from vidlab.metrics.rewards.shapes import ColorAndPlace

SIZE = 32
BLACK = (10, 10, 12)


def factors(color="red", position="left", named=("color", "position")) -> Factors:
    still = {"x": (0.2,), "y": (0.5,), "diameter": (0.3,), "angle": (0.0,)}
    one = ObjectFactors("square", color, "medium", "still", "none", position, **still)
    return Factors((one,), "plain", ("black",), "fixed", False, "", 0, tuple(f"objects.0.{name}" for name in named))


def batch(*of: Factors | None) -> ClipBatch:
    count = len(of)
    keys = tuple(f"k{n}" for n in range(count))
    return ClipBatch(torch.zeros(count, 3, 1, 4, 4), ("",) * count, keys, (0,) * count, 0, (8.0,) * count, of)


def clip(color=None, x=5, y=16, half=5, frames=2) -> torch.Tensor:
    """A square of side 2 half on black, its center at pixel (x, y)."""
    frame = torch.tensor(BLACK, dtype=torch.float32).view(3, 1, 1).repeat(1, SIZE, SIZE)
    if color is not None:
        frame[:, y - half : y + half, x - half : x + half] = torch.tensor(color, dtype=torch.float32).view(3, 1, 1)
    return (frame / 127.5 - 1)[None, :, None].repeat(1, 1, frames, 1, 1)


def score(video, told=None, **settings) -> float:
    return ColorAndPlace(**settings)(video, batch(told or factors())).item()


def test_the_captioned_color_at_its_place_scores_one():
    assert score(clip(COLORS["red"])) == pytest.approx(1, abs=1e-3)


def test_the_distance_of_a_color_by_hand():
    red = COLORS["red"]
    off = (red[0], red[1] + 55, red[2])
    assert score(clip(off), place=False) == pytest.approx(0.5, abs=1e-4)  # 1 / (1 + (55 / 55)^2)


def test_a_place_beside_the_named_one_by_hand():
    from vidlab.data.moving_shapes.factors import PLACE_LIMITS

    middle = score(clip(COLORS["red"], x=16))
    away = 0.5 - PLACE_LIMITS[0]
    assert middle == pytest.approx(math.exp(-((away / 0.12) ** 2)), abs=0.02)
    assert score(clip(COLORS["red"], x=16), place=False) == pytest.approx(1, abs=1e-3)
    assert score(clip(COLORS["red"], x=16), factors(named=("color",))) == pytest.approx(1, abs=1e-3)


def test_other_colors_and_nothing_score_less():
    right = score(clip(COLORS["red"]))
    for wrong in (None, *(color for name, color in COLORS.items() if name != "red")):
        assert score(clip(wrong)) < 0.35 * right


def test_half_of_the_frames_score_half():
    video = torch.cat([clip(COLORS["red"], frames=1), clip(None, frames=1)], dim=2)
    assert score(video, place=False) == pytest.approx((1 + score(clip(None), place=False)) / 2, abs=1e-4)


def test_a_caption_without_a_color_has_no_gradient():
    video = clip(COLORS["blue"]).repeat(2, 1, 1, 1, 1).requires_grad_()
    found = ColorAndPlace()(video, batch(factors(named=("shape",)), factors()))
    assert found[0] == 1
    found.sum().backward()
    assert video.grad[0].abs().max() == 0 and video.grad[1].abs().max() > 0


def test_its_gradient_is_that_of_finite_differences():
    generator = torch.Generator().manual_seed(0)
    video = (clip((150, 60, 60)) + 0.2 * torch.randn(1, 3, 2, SIZE, SIZE, generator=generator)).double()
    direction = torch.randn(video.shape, generator=generator)
    scorer, told = ColorAndPlace(), batch(factors())
    at = video.float().requires_grad_()
    scorer(at, told).sum().backward()
    step = 1e-3
    ends = [scorer((video + sign * step * direction).float(), told).item() for sign in (1, -1)]
    assert (at.grad * direction).sum().item() == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=0.05, abs=2e-3)


def test_following_the_gradient_paints_the_captioned_color_at_its_place():
    video = clip((140, 120, 120), x=9).requires_grad_()
    optimizer = torch.optim.Adam([video], lr=0.05)
    before = score(video)
    for _ in range(60):
        optimizer.zero_grad()
        (-ColorAndPlace()(video, batch(factors()))).sum().backward()
        optimizer.step()
    assert score(video) > 0.9 > 0.5 > before


def test_clips_without_factors_are_refused():
    with pytest.raises(UserError, match="moving_shapes"):
        ColorAndPlace()(clip(), batch(None))
