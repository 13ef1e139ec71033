import pytest
import torch

from vidlab.autoencoders.haar import Haar
from vidlab.autoencoders.padding import cut_clip, decode_cut, encode_padded, pad_clip
from vidlab.autoencoders.trilinear import Trilinear


def test_the_last_frame_row_and_column_are_repeated():
    x = torch.arange(2 * 2 * 2.0).view(1, 1, 2, 2, 2).expand(1, 3, 2, 2, 2)
    padded = pad_clip(x, (3, 2, 4))
    assert padded.shape == (1, 3, 3, 2, 4)
    assert padded[0, 0, :, 0].tolist() == [[0, 1, 1, 1], [4, 5, 5, 5], [4, 5, 5, 5]]
    assert torch.equal(cut_clip(padded, (2, 2, 2)), x)


@pytest.mark.parametrize("size", [(8, 16, 16), (9, 17, 30), (1, 3, 5)])
def test_what_does_not_fit_comes_back_in_its_own_size(size):
    x = torch.rand(2, 3, *size) * 2 - 1
    haar, small = Haar(2, 4, 4), Trilinear()
    for frames in (None, 3):
        made = decode_cut(haar, encode_padded(haar, x, frames), size, frames)
        torch.testing.assert_close(made, x, rtol=0, atol=1e-5)
    made = decode_cut(small, encode_padded(small, x), size)
    assert made.shape == x.shape and made.abs().max() <= 1
