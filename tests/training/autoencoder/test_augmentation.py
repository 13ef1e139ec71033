"""Symmetric forms of clips."""

import torch

from vidlab.randomness import KeyedRNG
from vidlab.training.autoencoder.augmentation import mirrored


def forms(clip: torch.Tensor, count: int) -> list[torch.Tensor]:
    draw = KeyedRNG(0, tuple(f"clip{i}" for i in range(count)), (0,) * count)
    return list(mirrored(clip.expand(count, *clip.shape), draw).unbind(0))


def test_all_sixteen_forms_come_and_no_other():
    clip = torch.arange(2.0 * 3 * 3 * 2).reshape(3, 2, 3, 2)[:, :, :2, :2].contiguous()
    expected = {
        tuple(turned.flip(axes).flatten().tolist())
        for turned in (clip, clip.transpose(2, 3))
        for axes in ([], [1], [2], [3], [1, 2], [1, 3], [2, 3], [1, 2, 3])
    }
    found = [tuple(form.flatten().tolist()) for form in forms(clip, 400)]
    assert len(expected) == 16 and set(found) == expected
    assert min(found.count(form) for form in expected) > 8  # 25 on average


def test_a_wide_clip_is_not_turned():
    clip = torch.rand(3, 2, 2, 4)
    assert len({tuple(form.flatten().tolist()) for form in forms(clip, 200)}) == 8


def test_a_form_belongs_to_clip_and_epoch():
    pixels = torch.rand(2, 3, 2, 4, 4)
    draw = KeyedRNG(0, ("a", "b"), (0, 1))
    swapped = KeyedRNG(0, ("b", "a"), (1, 0))
    assert torch.equal(mirrored(pixels, draw), mirrored(pixels.flip(0), swapped).flip(0))
