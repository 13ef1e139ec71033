"""Parts of clips through autoencoders: the result of the whole, in memory that does not grow with length."""

import pytest
import torch

from vidlab.autoencoders.base import Autoencoder
from vidlab.autoencoders.haar import Haar
from vidlab.autoencoders.identity import Identity
from vidlab.autoencoders.streaming import decode_in_chunks, encode_in_chunks, posterior_in_chunks
from vidlab.autoencoders.trilinear import Trilinear
from vidlab.autoencoders.wfvae import WFVAE
from vidlab.errors import UserError


def wfvae() -> WFVAE:
    torch.manual_seed(0)
    return WFVAE(4, 8, 4, 4, 1, 1, scale=2.0, shift=0.5).eval()


MAKE = {"wfvae": wfvae, "haar": lambda: Haar(4, 4, 4, 0.3), "haar_frames": lambda: Haar(1, 4, 4, 0.3),
        "identity": Identity}  # fmt: skip


def clip(model: Autoencoder, frames: int) -> torch.Tensor:
    frames = model.fitting_size(frames, 1, 1)[0]
    return torch.rand(2, 3, frames, 16, 24, generator=torch.Generator().manual_seed(frames)) * 2 - 1


@pytest.mark.parametrize("frames", [1, 2, 5, 8, 100])
@pytest.mark.parametrize("name", MAKE)
def test_parts_give_what_the_whole_gives(name, frames):
    model = MAKE[name]()
    x = clip(model, 21)
    with torch.no_grad():
        whole = model.posterior(x)
        pixels = model.decode(whole.mean)
    parts = posterior_in_chunks(model, x, frames)
    assert parts.mean.shape == whole.mean.shape and (parts.mean - whole.mean).abs().max() <= 1e-5
    assert (parts.log_variance is None) == (whole.log_variance is None)
    if whole.log_variance is not None:
        torch.testing.assert_close(parts.log_variance, whole.log_variance, rtol=0, atol=1e-4)
    assert torch.equal(encode_in_chunks(model, x, frames), parts.mean)
    back = decode_in_chunks(model, whole.mean, frames)
    assert back.shape == pixels.shape and (back - pixels).abs().max() <= 1e-5


@pytest.mark.parametrize("name", MAKE)
def test_all_at_once_is_the_plain_call(name):
    model = MAKE[name]()
    x = clip(model, 9)
    with torch.no_grad():
        latents = model.encode(x)
        assert torch.equal(encode_in_chunks(model, x, None), latents)
        assert torch.equal(decode_in_chunks(model, latents, None), model.decode(latents))


class Watched(Identity):
    """Notes how many frames it is given at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        self.most = max(self.most, pixels.shape[2])
        return super().encode(pixels)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        self.most = max(self.most, latents.shape[2])
        return super().decode(latents)


@pytest.mark.parametrize("length", [8, 40])
def test_no_more_frames_pass_than_asked_for(length):
    model = Watched()
    latents = encode_in_chunks(model, torch.zeros(1, 3, length, 4, 4), 3)
    decode_in_chunks(model, latents, 3)
    assert model.most == 3


def test_what_streams_of_groups_keep_is_less_than_a_group():
    model = Haar(4, 4, 4)
    encoding, held, given = model.encoding_stream(), [], []
    for part in torch.rand(1, 3, 12, 4, 4).split(3, dim=2):
        given.append(encoding.feed(part).mean.shape[2])
        held.append(encoding.held_values() // (3 * 4 * 4))
    assert given == [0, 1, 1, 1] and held == [3, 2, 1, 0]
    encoding.finish()
    encoding.feed(torch.rand(1, 3, 2, 4, 4))
    with pytest.raises(UserError, match="A video has 4n frames; 2 at its end"):
        encoding.finish()
    with pytest.raises(UserError, match="1 videos of 8 x 4 after 1 of 4 x 4"):
        encoding.feed(torch.rand(1, 3, 2, 8, 4))


def test_a_finished_video_takes_no_more():
    stream = Haar(2, 4, 4).decoding_stream()
    assert stream.feed(torch.zeros(1, 96, 0, 2, 2)).shape == (1, 3, 0, 8, 8) and stream.finish() is None
    with pytest.raises(UserError, match="needs a new decoding stream"):
        stream.feed(torch.zeros(1, 96, 1, 2, 2))


def test_what_cannot_be_fed_in_parts_says_so():
    x = torch.zeros(1, 3, 9, 16, 16)
    with pytest.raises(UserError, match=r"Trilinear codes whole clips .* Use frames_at_once=null"):
        encode_in_chunks(Trilinear(), x, 4)
    with pytest.raises(UserError, match=r"frames_at_once=0 must be 1 or more, or null"):
        encode_in_chunks(Identity(), x, 0)
    with pytest.raises(UserError, match=r"data\.frames=10 does not fit WFVAE"):
        encode_in_chunks(wfvae(), torch.zeros(1, 3, 10, 16, 16), 4)


def test_the_moments_of_a_video_under_autocast():
    model, x = wfvae(), torch.rand(1, 3, 9, 16, 16) * 2 - 1
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        whole, parts = model.posterior(x).mean, posterior_in_chunks(model, x, 4).mean
    assert parts.dtype == torch.float32 and (parts - whole).abs().max() <= 0.05 * whole.abs().max()
