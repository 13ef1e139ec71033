"""What every listed model promises: a file in conf/model is enough to be tested here."""

import inspect
import io
from collections.abc import Iterator
from dataclasses import replace
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from torch import nn

from vidlab.backbones.base import VideoDenoiser
from vidlab.clip import DenoiserInput, TextEmbedding
from vidlab.lab.compose import build_module
from vidlab.training.video_diffusion import VideoDiffusion

CONF = Path(__file__).parents[2] / "conf"
MODELS = sorted(path.stem for path in (CONF / "model").glob("[!_]*.yaml"))
SIZE = ["data.frames=8", "data.height=16", "data.width=16"]


def composed(name: str, *overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", [f"model={name}", *SIZE, *overrides])


@cache
def built(name: str) -> VideoDiffusion:
    """The module of a configuration, with no parameter at zero: a silent model would promise nothing."""
    torch.manual_seed(0)
    module = build_module(composed(name))
    module.configure_model()
    for parameter in module.denoiser.parameters():
        if parameter.abs().max() == 0:
            nn.init.normal_(parameter, std=0.05)
    return module


@pytest.fixture(params=MODELS)
def module(request) -> Iterator[VideoDiffusion]:
    found = built(request.param)
    found.zero_grad()
    yield found.eval()


@pytest.fixture
def backbone(module) -> VideoDenoiser:
    return module.denoiser


def example(module: VideoDiffusion, batch=2, stretch=(1, 1, 1), text=True) -> DenoiserInput:
    latent, t = module.latent, torch.linspace(0.3, 0.8, batch)
    sizes = [n * by for n, by in zip((latent.frames, latent.height, latent.width), stretch, strict=True)]
    lengths = torch.arange(batch) % 3 + 1
    width = module.text_encoder.width
    embedding = TextEmbedding(
        torch.randn(batch, 3, width), torch.arange(3) < lengths[:, None], torch.randn(batch, width)
    )
    latents = torch.randn(batch, latent.channels, *sizes)
    return DenoiserInput(latents, t, 1000 * t, embedding if text else None)


def test_there_are_models():
    assert "full3d" in MODELS


def test_forward_gives_a_prediction_in_the_shape_of_the_latents(module, backbone):
    input = example(module)
    output = backbone(input)
    assert output.prediction.shape == input.latents.shape and output.prediction.isfinite().all()
    assert output.prediction.std() > 1e-3
    assert dict(output.features) == {}
    assert isinstance(backbone, VideoDenoiser) and backbone.token_count(module.latent) > 0


def test_backward_reaches_every_parameter(module, backbone):
    input = example(module)
    input.latents.requires_grad_()
    backbone.train()(input).prediction.square().mean().backward()
    trained = [(n, p) for n, p in backbone.named_parameters() if p.requires_grad]
    idle = [n for n, p in trained if p.grad is None or not p.grad.isfinite().all() or not p.grad.any()]
    assert idle == []
    assert input.latents.grad.any()


def test_bfloat16_autocast_is_close(module, backbone):
    input = example(module)
    with torch.no_grad():
        exact = backbone(input).prediction
        with torch.autocast("cpu", torch.bfloat16):
            rough = backbone(input).prediction.float()
    assert (rough - exact).norm() < 0.05 * exact.norm()
    backbone.train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = backbone(input).prediction.float().square().mean()
    loss.backward()
    assert all(
        p.grad is not None and p.grad.dtype == p.dtype and p.grad.isfinite().all()
        for p in backbone.parameters() if p.requires_grad
    )  # fmt: skip


def test_saving_and_loading_restores_the_function(module, backbone):
    file = io.BytesIO()
    torch.save(backbone.state_dict(), file)
    file.seek(0)
    other = module.plan.build().eval()
    input = example(module)
    assert not torch.equal(other(input).prediction, backbone(input).prediction)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(input).prediction, backbone(input).prediction)


@pytest.mark.parametrize("stretch", [(2, 1, 1), (1, 2, 1), (1, 1, 2), (2, 2, 3)])
def test_other_lengths_and_sizes(module, backbone, stretch):
    input = example(module, stretch=stretch)
    with torch.no_grad():
        output = backbone(input)
    assert output.prediction.shape == input.latents.shape and output.prediction.isfinite().all()


def test_a_batch_of_one_is_a_row_of_a_batch(module, backbone):
    input = example(module, batch=3)
    rows = {name: getattr(input, name)[1:2] for name in ("latents", "t", "embedded_t")}
    text = input.text
    one = replace(input, **rows, text=TextEmbedding(text.tokens[1:2], text.mask[1:2], text.pooled[1:2]))
    with torch.no_grad():
        torch.testing.assert_close(backbone(one).prediction, backbone(input).prediction[1:2], rtol=1e-4, atol=1e-5)


def test_no_text(module, backbone):
    output = backbone.train()(example(module, text=False)).prediction
    assert output.isfinite().all()
    output.square().mean().backward()


def test_padding_of_captions_changes_nothing(module, backbone):
    input = example(module)
    tokens = torch.where(input.text.mask[..., None], input.text.tokens, 1e3)
    with torch.no_grad():
        other = backbone(replace(input, text=replace(input.text, tokens=tokens))).prediction
        torch.testing.assert_close(other, backbone(input).prediction)


def test_features_are_returned_when_asked_for_and_others_refused(module, backbone):
    with torch.no_grad():
        output = backbone(replace(example(module), requested=backbone.spec.features))
    assert set(output.features) == backbone.spec.features
    with pytest.raises(ValueError, match="no_such_feature"):
        backbone(replace(example(module), requested=frozenset({"no_such_feature"})))


def test_the_spec_says_what_is(module, backbone):
    spec, takes = backbone.spec, inspect.signature(type(backbone)).parameters
    # what is known before it is built
    assert module.plan.spec == spec and module.patch == spec.patch
    assert spec.takes_attention == ("attention" in takes) and spec.reads_controls == ("control_channels" in takes)
    matrices = {n for n, p in backbone.named_parameters() if p.ndim >= 2 and n.endswith("weight")}
    inside = {n for n in matrices if any(fnmatch(n, pattern) for pattern in spec.hidden_matrices)}
    assert 2 <= len(inside) < len(matrices)
    input = example(module)
    text = replace(input.text, pooled=input.text.pooled.requires_grad_())
    backbone(replace(input, text=text)).prediction.square().sum().backward()
    read = text.pooled.grad is not None and bool(text.pooled.grad.any())
    assert read == spec.reads_pooled_text


def test_controls_are_declared_once_they_are_given():
    module = build_module(composed("full3d", "conditioning=masked_video", "autoencoder=haar_frames"))
    module.configure_model()
    channels = module.conditioning.control_channels(module.latent, module.autoencoder.stride)
    assert module.plan.spec.control_channels == () and module.denoiser.spec.control_channels == channels


def test_the_meta_device_plans_it(module):
    cost = module.cost()
    assert cost.parameters == sum(p.numel() for p in module.denoiser.parameters())
    assert cost.tokens == module.denoiser.token_count(module.latent) and cost.forward_flops > 0
