import math

import pytest
import torch

from vidlab.autoencoders.base import Autoencoder
from vidlab.autoencoders.haar import Haar, haar_matrix
from vidlab.autoencoders.identity import Identity
from vidlab.clip import Stride
from vidlab.errors import UserError


def pixels(size=(4, 8, 16), batch=2) -> torch.Tensor:
    return torch.rand(batch, 3, *size) * 2 - 1


def test_small_matrices_by_hand():
    r = 1 / math.sqrt(2)
    two = [[r, r], [r, -r]]
    four = [[0.5, 0.5, 0.5, 0.5], [0.5, 0.5, -0.5, -0.5], [r, -r, 0, 0], [0, 0, r, -r]]
    assert haar_matrix(1).tolist() == [[1.0]]
    torch.testing.assert_close(haar_matrix(2), torch.tensor(two, dtype=torch.float64))
    torch.testing.assert_close(haar_matrix(4), torch.tensor(four, dtype=torch.float64))


@pytest.mark.parametrize("size", [1, 2, 4, 8, 16])
def test_matrices_are_orthonormal(size):
    matrix = haar_matrix(size)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(size, dtype=torch.float64))


@pytest.mark.parametrize("block", [(1, 1, 1), (2, 4, 4), (4, 8, 2), (1, 8, 8)])
@pytest.mark.parametrize("scale", [1.0, 0.37])
def test_the_inverse_is_exact_and_energy_is_kept(block, scale):
    autoencoder, x = Haar(*block, scale=scale), pixels()
    latents = autoencoder.encode(x)
    assert latents.shape == (2, *autoencoder.latent_shape(4, 8, 16))
    assert (autoencoder.decode(latents) - x).abs().max() <= 1e-6
    assert latents.square().sum().item() == pytest.approx(scale**2 * x.square().sum().item(), rel=1e-6)


def test_squared_errors_in_latents_are_those_in_pixels():
    autoencoder = Haar(2, 4, 4)
    a, b = torch.randn(2, 1, 96, 2, 2, 4)
    in_latents, in_pixels = (a - b).square().sum(), (autoencoder.decode(a) - autoencoder.decode(b)).square().sum()
    assert in_latents.item() == pytest.approx(in_pixels.item(), rel=1e-6)


def test_the_first_channel_of_a_color_is_its_block_mean():
    x = pixels((2, 8, 4))
    latents = Haar(2, 4, 4).encode(x)
    mean = x[0, 1, :, 4:8, :].mean()  # green, second row of blocks
    assert latents[0, 32, 0, 1, 0].item() == pytest.approx(mean.item() * math.sqrt(32), abs=1e-5)


def test_channels_are_color_time_height_width():
    # block 2x2x2, one difference along one axis: blue, +1 on the even columns and -1 on the odd
    x = torch.zeros(1, 3, 2, 2, 2)
    x[:, 2, ..., 0], x[:, 2, ..., 1] = 1.0, -1.0
    latents = Haar(2, 2, 2).encode(x).flatten()
    assert latents.nonzero().flatten().tolist() == [2 * 8 + 1]  # (color 2, time 0, height 0, width 1)
    assert latents[17].item() == pytest.approx(math.sqrt(8))
    latents = Haar(2, 2, 2).encode(x.transpose(2, 4)).flatten()
    assert latents.nonzero().flatten().tolist() == [2 * 8 + 4]  # the same along time


def test_it_is_one_small_matrix_per_axis():
    x = pixels((4, 4, 16))
    blocks = x.double().view(2, 3, 2, 2, 2, 2, 2, 8)  # b c, then (t p), (h q), (w r)
    p, q, r = haar_matrix(2), haar_matrix(2), haar_matrix(8)
    expected = torch.einsum("bctphqwr,ip,jq,kr->bcijkthw", blocks, p, q, r).flatten(1, 4)
    torch.testing.assert_close(Haar(2, 2, 8).encode(x), expected.float(), rtol=0, atol=1e-6)


def test_reduced_precision_does_not_reach_the_transform():
    x, autoencoder = pixels(), Haar()
    with torch.autocast("cpu", torch.bfloat16):
        latents = autoencoder.encode(x)
        back = autoencoder.decode(latents)
    assert latents.dtype == torch.float32
    assert (back - x).abs().max() <= 1e-6


def test_nothing_is_stored_or_learned():
    assert dict(Haar().state_dict()) == {} and list(Haar().parameters()) == []


@pytest.mark.parametrize(("key", "value"), [("frames", 3), ("height", 6), ("width", 0), ("width", -4)])
def test_blocks_are_powers_of_two(key, value):
    with pytest.raises(UserError, match=rf"autoencoder.{key}={value}: .*powers of two"):
        Haar(**{key: value})


def test_the_scale_is_positive():
    with pytest.raises(UserError, match=r"autoencoder.scale=0"):
        Haar(scale=0)


def test_sizes_that_do_not_divide():
    with pytest.raises(UserError, match=r"data.height=18 .* multiple of 4. Use data.height=16"):
        Haar().latent_shape(8, 18, 16)
    with pytest.raises(UserError, match=r"data.frames=1 .*Use data.frames=2"):
        Haar().encode(pixels((1, 4, 4)))


def test_identity():
    x, autoencoder = pixels(), Identity()
    assert autoencoder.encode(x) is x and autoencoder.decode(x) is x
    assert autoencoder.latent_shape(4, 8, 16) == (3, 4, 8, 16) and autoencoder.stride == Stride(1, 1, 1)
    assert isinstance(autoencoder, Autoencoder)


def test_a_latent_frame_of_haar_frames_is_one_frame():
    """As ``conf/autoencoder/haar_frames.yaml``: 4 x 4 pixels, an orthonormal basis, one scalar."""
    model = Haar(1, 4, 4, scale=0.3)
    assert (model.stride, model.channels) == (Stride(1, 4, 4), 48)
    x = torch.rand(2, 3, 5, 8, 8) * 2 - 1
    latents = model.encode(x)
    assert latents.shape == (2, 48, 5, 2, 2)
    for frame in range(5):  # an image is a clip of one frame, and a clip grows frame by frame
        assert torch.equal(model.encode(x[:, :, frame : frame + 1]), latents[:, :, frame : frame + 1])
    torch.testing.assert_close(latents.square().sum((1, 3, 4)), 0.09 * x.square().sum((1, 3, 4)))  # orthonormal
    # by hand: 1 everywhere is 4 times the block mean; columns 0 0 1 1 have the mean 1/2 and one coarse wavelet, -1/2
    flat = model.encode(torch.ones(1, 3, 1, 4, 4))[0, :16, 0, 0, 0] / 0.3
    step = model.encode(torch.tensor([0.0, 0, 1, 1]).expand(1, 3, 1, 4, 4).clone())[0, :16, 0, 0, 0] / 0.3
    torch.testing.assert_close(flat, torch.tensor([4.0] + [0.0] * 15), rtol=0, atol=1e-6)
    torch.testing.assert_close(step, torch.tensor([2.0, -2.0] + [0.0] * 14), rtol=0, atol=1e-6)
    torch.testing.assert_close(model.decode(latents), x)
