"""Check 10: which frame at which level, tokens in all, and the noise added to earlier frames."""

import pytest
import torch

from vidlab.diffusion.pyramid_history import (
    ConstantCorruption,
    LinearCorruption,
    corrupted,
    frame_levels,
    history_of,
    ramp,
    token_total,
)
from vidlab.diffusion.pyramid_resolutions import latent_pyramid
from vidlab.errors import UserError
from vidlab.randomness import KeyedRNG

DRAW = KeyedRNG(0, tuple(f"clip {n}" for n in range(500)), (0,) * 500)


@pytest.mark.parametrize(("stage", "levels"), [(0, (0, 0, 0, 0, 0)), (1, (0, 0, 0, 0, 1)), (2, (0, 0, 0, 1, 2))])
def test_levels_of_five_earlier_frames(stage, levels):
    assert frame_levels(5, stage) == levels


@pytest.mark.parametrize(("frames", "levels"), [(0, ()), (1, (2,)), (2, (1, 2))])
def test_levels_of_a_short_history(frames, levels):
    assert frame_levels(frames, 2) == levels


@pytest.mark.parametrize(("stage", "tokens"), [(0, 7440), (1, 8880), (2, 15360)])
def test_tokens_of_the_last_of_31_frames_at_768p(stage, tokens):
    assert token_total(30, stage, 3840, 3) == tokens


def test_frames_of_one_level_stay_together_and_carry_their_number():
    latents = torch.arange(6.0).view(1, 1, 6, 1, 1).expand(2, 3, 6, 8, 8)
    found = history_of(latent_pyramid(latents, 3), 5, 2)
    assert [part.frame_index.tolist() for part in found] == [[0, 1, 2], [3], [4]]
    assert [tuple(part.latents.shape) for part in found] == [(2, 3, 3, 2, 2), (2, 3, 1, 4, 4), (2, 3, 1, 8, 8)]
    assert torch.cat([part.latents[0, 0, :, 0, 0] for part in found]).tolist() == [0, 1, 2, 3, 4]
    assert history_of(latent_pyramid(latents, 3), 0, 2) == ()


def test_a_ramp_from_old_to_new():
    found = ramp(torch.tensor([[0.05], [0.0]]), torch.tensor([[0.30], [0.0]]), 6)
    torch.testing.assert_close(found[0], torch.tensor([0.05, 0.10, 0.15, 0.20, 0.25, 0.30]))
    assert not found[1].any()


def test_linear_corruption_grows_and_stays_below_its_bound():
    levels = LinearCorruption(0.3).levels(6, DRAW)
    assert levels.shape == (500, 6) and levels.min() >= 0 and levels.max() < 0.3
    assert (levels.diff(dim=1) >= 0).all()
    newest, oldest = levels[:, -1], levels[:, 0]
    assert newest.mean().item() == pytest.approx(0.15, abs=0.015)  # uniform
    assert oldest.mean().item() == pytest.approx(0.075, abs=0.015)  # uniform below it


def test_constant_corruption_is_one_number_a_clip():
    levels = ConstantCorruption().levels(4, DRAW)
    assert torch.equal(levels, levels[:, :1].expand(-1, 4)) and levels.max() < 1 / 3
    assert levels.mean().item() == pytest.approx(1 / 6, abs=0.02)


@pytest.mark.parametrize("kind", [ConstantCorruption, LinearCorruption])
def test_a_clip_keeps_its_numbers_in_another_batch(kind):
    alone = KeyedRNG(0, ("clip 7",), (0,))
    assert torch.equal(kind().levels(3, alone)[0], kind().levels(3, DRAW)[7])
    with pytest.raises(UserError, match=r"corruption\.most=2"):
        kind(2)


def test_noise_is_mixed_in_frame_by_frame():
    latents, noise = torch.full((1, 2, 3, 1, 1), 10.0), torch.full((1, 2, 3, 1, 1), -2.0)
    mixed = corrupted(latents, noise, torch.tensor([[0.0, 0.25, 1.0]]))
    assert mixed[0, 0, :, 0, 0].tolist() == [10.0, 7.0, -2.0]
