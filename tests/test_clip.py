import pytest
import torch

from vidlab.clip import ClipBatch, EncodedClips


def batch(content) -> ClipBatch:
    return ClipBatch(content, captions=("a",), keys=("k",), epochs=(0,), number=0, fps=(8.0,))


def test_a_batch_that_moves_stays_what_it_is_and_bytes_become_pixels_when_asked_for():
    content = torch.tensor([0, 51, 102, 255], dtype=torch.uint8).view(1, 1, 1, 2, 2).expand(1, 3, 4, 2, 2)
    moved = batch(content).to("cpu")
    assert torch.equal(moved.content, content) and moved.content.dtype == torch.uint8
    assert moved.size == (4, 2, 2) and moved.device == torch.device("cpu") and moved.encoded is None
    assert moved.pixels.dtype == torch.float32 and moved.pixels is moved.pixels
    torch.testing.assert_close(moved.pixels[0, 2, 3].flatten(), torch.tensor([-1, -0.6, -0.2, 1.0]))
    pixels = torch.full((1, 3, 4, 2, 2), 0.3)
    assert batch(pixels).to("cpu").pixels is pixels
    assert batch(content).to("meta").pixels.device.type == "meta"


def test_encoded_clips_have_no_pixels():
    encoded = EncodedClips(torch.zeros(1, 4, 2, 1, 1).bfloat16(), None, (4, 2, 2))
    moved = batch(encoded).to("cpu")
    assert moved.encoded.mean.dtype == torch.bfloat16 and moved.size == (4, 2, 2)
    with pytest.raises(ValueError, match="encoded clips have no pixels"):
        _ = moved.pixels
