"""What every listed autoencoder promises: a file in conf/autoencoder is enough to be tested here."""

import io
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from vidlab.autoencoders.base import Autoencoder
from vidlab.errors import UserError
from vidlab.lab.entry import instantiate

CONF = Path(__file__).parents[2] / "conf"
NAMES = sorted(path.relative_to(CONF / "autoencoder").with_suffix("").as_posix()
               for path in (CONF / "autoencoder").glob("**/*.yaml"))  # fmt: skip
LAPTOP = [name for name in NAMES if not name.startswith("paper/")]
PAPER = [name for name in NAMES if name.startswith("paper/")]


def built(name: str) -> Autoencoder:
    torch.manual_seed(0)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return instantiate(compose("train", [f"autoencoder={name}"]).autoencoder, "autoencoder").eval()


@pytest.fixture(scope="module", params=LAPTOP)
def autoencoder(request) -> Autoencoder:
    return built(request.param)


def fitting(autoencoder: Autoencoder, latent=(2, 2, 3)) -> tuple[int, int, int]:
    """The clip size of a latent size."""
    stride = autoencoder.stride
    lead = int(stride.first_frame_alone)
    return (lead + (latent[0] - lead) * stride.frames, latent[1] * stride.height, latent[2] * stride.width)


def clip(autoencoder: Autoencoder, batch=2, latent=(2, 2, 3)) -> torch.Tensor:
    return torch.rand(batch, 3, *fitting(autoencoder, latent)) * 2 - 1


@pytest.mark.parametrize("latent", [(1, 1, 1), (2, 2, 3), (3, 1, 2)])
@pytest.mark.parametrize("batch", [1, 2])
def test_shapes(autoencoder, latent, batch):
    x = clip(autoencoder, batch, latent)
    with torch.no_grad():
        latents = autoencoder.encode(x)
        assert latents.shape == (batch, autoencoder.channels, *latent) and latents.isfinite().all()
        assert autoencoder.latent_shape(*x.shape[2:]) == tuple(latents.shape[1:])
        assert autoencoder.decode(latents).shape == x.shape


def test_clips_of_a_batch_are_apart(autoencoder):
    x = clip(autoencoder)
    with torch.no_grad():
        torch.testing.assert_close(autoencoder.encode(x)[1:], autoencoder.encode(x[1:]))


def test_the_posterior_lies_about_the_latents(autoencoder):
    x = clip(autoencoder)
    with torch.no_grad():
        posterior, latents = autoencoder.posterior(x), autoencoder.encode(x)
    assert torch.equal(posterior.mode, latents)
    assert torch.equal(posterior.sample(torch.zeros_like(latents)), latents)
    if posterior.log_variance is not None:
        drawn = posterior.sample(torch.ones_like(latents))
        torch.testing.assert_close((drawn - latents).square().log(), posterior.log_variance, rtol=1e-2, atol=1e-2)


def test_gradients_flow_back_to_pixels_and_weights(autoencoder):
    x = clip(autoencoder).requires_grad_()
    autoencoder.decode(autoencoder.encode(x)).square().sum().backward()
    assert x.grad.abs().sum() > 0 and x.grad.isfinite().all()
    missing = [name for name, parameter in autoencoder.named_parameters() if parameter.grad is None]
    assert missing == []
    autoencoder.zero_grad()


def test_bf16_autocast(autoencoder):
    x = clip(autoencoder)
    with torch.no_grad():
        exact = autoencoder.encode(x)
        with torch.autocast("cpu", torch.bfloat16):
            latents = autoencoder.encode(x)
            pixels = autoencoder.decode(latents)
    assert latents.dtype == pixels.dtype == torch.float32
    assert (latents - exact).abs().max() <= 0.05 * exact.abs().max()


def test_save_and_load(autoencoder):
    buffer, x = io.BytesIO(), clip(autoencoder)
    torch.save(autoencoder.state_dict(), buffer)
    buffer.seek(0)
    copy = deepcopy(autoencoder)
    for parameter in copy.parameters():
        torch.nn.init.normal_(parameter)
    copy.load_state_dict(torch.load(buffer, weights_only=True))
    with torch.no_grad():
        assert torch.equal(copy.encode(x), autoencoder.encode(x))


def test_sizes_that_do_not_fit_are_refused_with_one_that_does(autoencoder):
    frames, height, width = fitting(autoencoder)
    stride = autoencoder.stride
    for name, size, step in (
        ("frames", frames, stride.frames),
        ("height", height, stride.height),
        ("width", width, stride.width),
    ):
        if step == 1:
            continue
        wrong = {"frames": frames, "height": height, "width": width, name: size + 1}
        with pytest.raises(UserError, match=rf"data\.{name}={size + 1} does not fit") as caught:
            autoencoder.latent_shape(**wrong)
        right = int(str(caught.value).split(f"Use data.{name}=")[1].rstrip("."))
        autoencoder.latent_shape(**{**wrong, name: right})


@pytest.mark.parametrize("name", PAPER)
def test_published_sizes_without_memory(name):
    with torch.device("meta"):
        model = built(name)
        assert sum(parameter.numel() for parameter in model.parameters()) > 1e8
        latents = model.encode(torch.empty(1, 3, *fitting(model)))
        assert latents.shape == (1, model.channels, 2, 2, 3)
        assert model.decode(latents).shape == (1, 3, *fitting(model))
