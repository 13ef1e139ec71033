"""A WF-VAE that starts as wavelets codes the energy path's coarsest bands, and nothing else."""

import pytest
import torch

from vidlab.autoencoders.wfvae import WFVAE
from vidlab.autoencoders.wfvae.init import BANDS, band_taps
from vidlab.errors import UserError


def start(channels: int, **settings) -> WFVAE:
    torch.manual_seed(0)
    sizes = {"width": 16, "encoder_energy": 2 * channels, "decoder_energy": 16, "encoder_blocks": 1}
    return WFVAE(channels, **(sizes | settings), decoder_blocks=1, start="wavelets").eval()


def blocks_of_one_value(frames=9) -> torch.Tensor:
    """Clips that are constant in blocks of 8 x 8 pixels and 4 frames after the first, in any color."""
    torch.manual_seed(1)
    values = torch.rand(2, 3, 1 + (frames - 1) // 4, 2, 3) * 2 - 1
    in_time = torch.cat([values[:, :, :1], values[:, :, 1:].repeat_interleave(4, 2)], 2)
    return in_time.repeat_interleave(8, 3).repeat_interleave(8, 4)


def test_constant_blocks_survive():
    """Colors of blocks are the low band's three; normalization is all but linear, so errors are a few per cent."""
    model = start(8)
    clip = blocks_of_one_value()
    with torch.no_grad():
        again = model.decode(model.encode(clip))
    assert (again - clip).abs().mean() < 0.03 * clip.abs().mean()


def test_latents_are_bands_by_hand():
    """A gray clip of 1 everywhere: its low band is 8 * 2 in each color, sqrt 3 times that in gray, of 27 four."""
    model = start(8, scale=1.0)
    with torch.no_grad():
        z = model.encode(torch.ones(1, 3, 5, 16, 16))
    expected = 4 * 16 * 3**0.5 / 27
    torch.testing.assert_close(z[:, 0], torch.full_like(z[:, 0], expected), rtol=0.05, atol=0)
    assert z[:, 1:].abs().max() < 1e-4


def test_taps_are_orthonormal_and_bands_unique():
    taps = band_taps(len(BANDS))
    torch.testing.assert_close(taps @ taps.T, torch.eye(24))
    assert sorted(BANDS) == [(band, color) for band in range(8) for color in range(3)]


def test_everything_still_learns():
    model = start(4)
    decoded = model.decode_z(model.encode_to_moments(blocks_of_one_value(5)).posterior.mean).pixels
    decoded.square().sum().backward()
    assert model.encoder.conv_out.conv.weight.grad.abs().max() > 0
    assert model.decoder.conv_out.weight.grad.abs().max() > 0
    assert model.decoder.connect_l1[-1].weight.grad.abs().max() > 0


def test_networks_too_narrow_are_refused():
    with pytest.raises(UserError, match=r"autoencoder\.start=wavelets: 8 latent channels need .*encoder_energy=16"):
        start(8, encoder_energy=15)
    with pytest.raises(UserError, match=r"encoder_energy at twice autoencoder\.width leaves none there"):
        start(4, width=8, encoder_energy=16)
    with pytest.raises(UserError, match=r"autoencoder\.start=wavelet: choose random or wavelets"):
        WFVAE(2, 4, 4, 4, start="wavelet")


def test_a_still_clip_has_one_latent_frame_repeated():
    """Before the first frame stand copies of it, so later latent frames of a still clip add nothing."""
    still = blocks_of_one_value(1).roll(3, 4).expand(-1, -1, 9, -1, -1)
    with torch.no_grad():
        z = start(8).encode(still)
    torch.testing.assert_close(z, z[:, :, :1].expand_as(z), rtol=0, atol=1e-5)
