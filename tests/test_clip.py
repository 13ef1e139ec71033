from dataclasses import replace

import pytest
import torch

from vidlab.clip import ClipBatch


def batch(**content) -> ClipBatch:
    return ClipBatch(**{"pixels": None} | content, captions=("a",), keys=("k",), epochs=(0,), number=0, fps=(8.0,))


def test_bytes_become_pixels_where_they_are_brought():
    frames = torch.tensor([0, 51, 102, 255], dtype=torch.uint8).view(1, 1, 1, 2, 2).expand(1, 3, 4, 2, 2)
    packed = batch(frames=frames)
    assert packed.size == (4, 2, 2) and packed.device == torch.device("cpu")
    moved = packed.to("cpu")
    assert moved.frames is None and moved.pixels.dtype == torch.float32 and moved.size == (4, 2, 2)
    torch.testing.assert_close(moved.pixels[0, 2, 3].flatten(), torch.tensor([-1, -0.6, -0.2, 1.0]))
    assert torch.equal(moved.to("cpu").pixels, moved.pixels)


def test_a_batch_has_one_content():
    pixels = torch.zeros(1, 3, 4, 2, 2)
    with pytest.raises(ValueError, match="one of the three"):
        batch()
    with pytest.raises(ValueError, match="one of the three"):
        replace(batch(pixels=pixels), frames=pixels.to(torch.uint8))
