"""What every listed autoencoder promises: a file in conf/autoencoder is enough to be tested here."""

import io
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from tiny_image_vae import write_image_vae

from vidlab.autoencoders.base import Autoencoder
from vidlab.errors import UserError
from vidlab.lab.cli.hydra_main import instantiate

CONF = Path(__file__).parents[2] / "conf"
NAMES = sorted(path.relative_to(CONF / "autoencoder").with_suffix("").as_posix()
               for path in (CONF / "autoencoder").glob("**/*.yaml"))  # fmt: skip
LAPTOP = [name for name in NAMES if not name.startswith("paper/")]
PAPER = [name for name in NAMES if name.startswith("paper/")]


# choices that cannot do without weights, and who writes some
WRITTEN = {"image_vae": write_image_vae}


def built(name: str, *settings: str) -> Autoencoder:
    torch.manual_seed(0)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return instantiate(compose("train", [f"autoencoder={name}", *settings]).autoencoder, "autoencoder").eval()


@pytest.fixture(scope="module", params=LAPTOP)
def autoencoder(request, tmp_path_factory) -> Autoencoder:
    if request.param not in WRITTEN:
        return built(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    WRITTEN[request.param](folder)
    return built(request.param, f"autoencoder.path={folder}")


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
    trained = {name: parameter for name, parameter in autoencoder.named_parameters() if parameter.requires_grad}
    assert [name for name, parameter in trained.items() if parameter.grad is None] == []
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


def test_the_nearest_size_that_fits(autoencoder):
    stride = autoencoder.stride
    for size in ((1, 1, 1), (8, 32, 33), (9, 64, 64)):
        found = autoencoder.fitting_size(*size)
        autoencoder.latent_shape(*found)
        steps = (stride.frames, stride.height, stride.width)
        assert all(0 <= large - small < step for large, small, step in zip(found, size, steps, strict=True))
        assert autoencoder.fitting_size(*found) == found


BAD = {
    "nan": (lambda x: x * float("nan"), "holds NaN or infinite pixels"),
    "inf": (lambda x: x + float("inf"), "holds NaN or infinite pixels"),
    "gray": (lambda x: x[:, :1], "Repeat a gray channel three times"),
    "8 bits": (lambda x: (x * 127).to(torch.uint8), "divide 8 bits by 127.5"),
    "10 bits": (lambda x: (x * 511).to(torch.int16), "10 bits by 511.5"),
    "one frame without a batch": (lambda x: x[0], r"reads clips \(B, 3, T, H, W\)"),
}


@pytest.mark.parametrize("bad", BAD)
def test_clips_that_none_can_take(autoencoder, bad):
    """Through the one check that ``encode`` begins with; shape checking would be first where it is on."""
    spoil, message = BAD[bad]
    with pytest.raises(UserError, match=message):
        autoencoder.check_clip(spoil(clip(autoencoder)))


@pytest.mark.parametrize("method", ["encode", "posterior"])
def test_bad_clips_are_refused_before_they_are_encoded(autoencoder, method):
    x = clip(autoencoder)
    with pytest.raises(UserError, match="holds NaN or infinite pixels"):
        getattr(autoencoder, method)(x / 0)
    if autoencoder.stride.height > 1:
        with pytest.raises(UserError, match=r"data\.height=\d+ does not fit"):
            getattr(autoencoder, method)(x[:, :, :, :-1])
    if autoencoder.stride.frames > 1:
        with pytest.raises(UserError, match=r"data\.frames=\d+ does not fit"):
            getattr(autoencoder, method)(x[:, :, :-1])


def test_latents_of_another_autoencoder_are_refused(autoencoder):
    with pytest.raises(UserError, match=r"decodes latents .* They are another autoencoder's"):
        autoencoder.decode(torch.zeros(1, autoencoder.channels + 1, 1, 1, 1))


@pytest.mark.parametrize("name", PAPER)
def test_published_sizes_without_memory(name):
    with torch.device("meta"):
        model = built(name)
        assert sum(parameter.numel() for parameter in model.parameters()) > 1e8
        latents = model.encode(torch.empty(1, 3, *fitting(model)))
        assert latents.shape == (1, model.channels, 2, 2, 3)
        assert model.decode(latents).shape == (1, 3, *fitting(model))
