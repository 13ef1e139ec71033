"""The causal VAE of Pyramid Flow on small weights of its published form."""

import json
from pathlib import Path

import pytest
import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from safetensors.torch import load_file, save_file

from vidlab.autoencoders.pyramid_flow import PyramidFlowVAE
from vidlab.autoencoders.pyramid_flow.blocks import FrameAttention, ResnetBlock, SpatialUpsample, TemporalUpsample
from vidlab.autoencoders.pyramid_flow.published_config import settings_of
from vidlab.autoencoders.streaming import decode_in_chunks, encode_in_chunks, posterior_in_chunks
from vidlab.clip import Stride
from vidlab.errors import UserError
from vidlab.layers.causal import whole

TINY = {"latent_channels": 4, "widths": (4, 8, 8, 8), "encoder_blocks": 1, "decoder_blocks": 1, "groups": 2}
# as released (config.json of causal_video_vae), with the sizes of TINY
CONFIG = {
    "_class_name": "CausalVideoVAE",
    "_diffusers_version": "0.29.2",
    "add_post_quant_conv": True,
    "decoder_act_fn": "silu",
    "decoder_block_dropout": [0.0] * 4,
    "decoder_block_out_channels": [4, 8, 8, 8],
    "decoder_in_channels": 4,
    "decoder_layers_per_block": [1] * 4,
    "decoder_norm_num_groups": 2,
    "decoder_out_channels": 3,
    "decoder_spatial_up_sample": [True, True, True, False],
    "decoder_temporal_up_sample": [True, True, True, False],
    "decoder_type": "causal_vae_conv",
    "decoder_up_block_types": ["UpDecoderBlockCausal3D"] * 4,
    "downsample_scale": 8,
    "encoder_act_fn": "silu",
    "encoder_block_dropout": [0.0] * 4,
    "encoder_block_out_channels": [4, 8, 8, 8],
    "encoder_double_z": True,
    "encoder_down_block_types": ["DownEncoderBlockCausal3D"] * 4,
    "encoder_in_channels": 3,
    "encoder_layers_per_block": [1] * 4,
    "encoder_norm_num_groups": 2,
    "encoder_out_channels": 4,
    "encoder_spatial_down_sample": [True, True, True, False],
    "encoder_temporal_down_sample": [True, True, True, False],
    "encoder_type": "causal_vae_conv",
    "interpolate": False,
    "sample_size": 256,
    "scaling_factor": 0.13025,
}


def tiny(seed: int = 0, **settings) -> PyramidFlowVAE:
    torch.manual_seed(seed)
    return PyramidFlowVAE(**{**TINY, **settings}).eval()


def write(
    folder: Path, model: PyramidFlowVAE, config=CONFIG, name: str = "diffusion_pytorch_model.safetensors"
) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (save_file if name.endswith("safetensors") else torch.save)(dict(model.state_dict()), folder / name)
    return folder


def clip(frames: int, batch: int = 1) -> torch.Tensor:
    return torch.rand(batch, 3, frames, 16, 24, generator=torch.Generator().manual_seed(frames)) * 2 - 1


def test_published_names_and_shapes():
    with torch.device("meta"):
        state = {name: tuple(value.shape) for name, value in PyramidFlowVAE().state_dict().items()}
    expected = {
        "encoder.conv_in.conv.weight": (128, 3, 3, 3, 3),
        "encoder.down_blocks.0.resnets.1.norm2.weight": (128,),
        "encoder.down_blocks.0.downsamplers.0.conv.conv.weight": (128, 128, 3, 3, 3),
        "encoder.down_blocks.1.resnets.0.conv_shortcut.conv.weight": (256, 128, 1, 1, 1),
        "encoder.down_blocks.2.temporal_downsamplers.0.conv.conv.bias": (512,),
        "encoder.mid_block.attentions.0.group_norm.bias": (512,),
        "encoder.mid_block.attentions.0.to_q.weight": (512, 512),
        "encoder.mid_block.attentions.0.to_out.0.weight": (512, 512),
        "encoder.mid_block.resnets.1.conv2.conv.weight": (512, 512, 3, 3, 3),
        "encoder.conv_norm_out.weight": (512,),
        "encoder.conv_out.conv.weight": (32, 512, 3, 3, 3),
        "quant_conv.conv.weight": (32, 32, 1, 1, 1),
        "post_quant_conv.conv.weight": (16, 16, 1, 1, 1),
        "decoder.conv_in.conv.weight": (512, 16, 3, 3, 3),
        "decoder.up_blocks.0.resnets.2.conv1.conv.weight": (512, 512, 3, 3, 3),
        "decoder.up_blocks.1.upsamplers.0.conv.conv.weight": (2048, 512, 3, 3, 3),
        "decoder.up_blocks.2.resnets.0.conv_shortcut.conv.weight": (256, 512, 1, 1, 1),
        "decoder.up_blocks.2.temporal_upsamplers.0.conv.conv.weight": (512, 256, 3, 3, 3),
        "decoder.up_blocks.3.resnets.0.conv_shortcut.conv.weight": (128, 256, 1, 1, 1),
        "decoder.conv_out.conv.weight": (3, 128, 3, 3, 3),
    }
    assert {name: state.get(name) for name in expected} == expected
    assert not any(name.startswith(("encoder.down_blocks.3.downs", "decoder.up_blocks.3.ups")) for name in state)
    assert not any(name.startswith("latent") for name in state)


@pytest.mark.parametrize(("frames", "latent"), [(1, 1), (9, 2), (57, 8), (121, 16), (241, 31)])
def test_latent_shapes(frames, latent):
    model = tiny()
    assert model.stride == Stride(8, 8, 8, first_frame_alone=True)
    assert model.latent_shape(frames, 64, 40) == (4, latent, 8, 5)


@pytest.mark.parametrize("frames", [1, 9, 17])
def test_an_image_is_a_video_of_one_frame(frames):
    model, x = tiny(), clip(frames, batch=2)
    with torch.no_grad():
        latents = model.encode(x)
        assert latents.shape == (2, *model.latent_shape(frames, 16, 24))
        assert model.decode(latents).shape == x.shape
        torch.testing.assert_close(latents[:, :, :1], model.encode(x[:, :, :1]), rtol=1e-4, atol=1e-5)


def test_it_is_causal_both_ways():
    model, x = tiny(), clip(25)
    changed = x.clone()
    changed[:, :, 9:] = 0
    with torch.no_grad():
        before, after = model.encode(x), model.encode(changed)
        assert (before[:, :, 2] - after[:, :, 2]).abs().max() > 1e-4
        torch.testing.assert_close(before[:, :, :2], after[:, :, :2])
        pixels, cut = model.decode(before), model.decode(before[:, :, :2])
    torch.testing.assert_close(pixels[:, :, :9], cut, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("at_once", [1, 3, 8, 16])
def test_chunks_give_what_the_whole_gives(at_once):
    model, x = tiny(), clip(33)
    with torch.no_grad():
        whole_latents, log_variance = model.encode(x), model.posterior(x).log_variance
        pixels = model.decode(whole_latents)
    parts = posterior_in_chunks(model, x, at_once)
    assert (parts.mean - whole_latents).abs().max() <= 1e-5
    torch.testing.assert_close(parts.log_variance, log_variance, rtol=0, atol=1e-4)
    assert (decode_in_chunks(model, whole_latents, at_once) - pixels).abs().max() <= 1e-5
    assert torch.equal(encode_in_chunks(model, x, at_once), parts.mean)


def test_streams_hold_a_constant_number_of_values():
    model, x = tiny(), clip(49)
    encoding, decoding, held = model.encoding_stream(), model.decoding_stream(), []
    for part in (x[:, :, :1], *x[:, :, 1:].split(8, dim=2)):
        decoding.feed(encoding.feed(part).mean)
        held.append((encoding.held_values(), decoding.held_values()))
    assert len(set(held[1:])) == 1 and min(held[1]) > 0 and decoding.finish() is None
    encoding.feed(x[:, :, :3])
    with pytest.raises(UserError, match=r"1 \+ 8n frames; 3 at its end"):
        encoding.finish()


def test_the_first_latent_frame_has_a_scale_of_its_own():
    """(z + 0.04) / 1.8726, and (z + 0.2343) / 3.0986 of the others; decoding takes them off again."""
    normalized, plain = tiny(), tiny(first_shift=0, first_scale=1, shift=0, scale=1)
    x = clip(17)
    with torch.no_grad():
        z, latents = plain.posterior(x), normalized.posterior(x)
        torch.testing.assert_close(latents.mean[:, :, 0], (z.mean[:, :, 0] + 0.04) / 1.8726)
        torch.testing.assert_close(latents.mean[:, :, 1:], (z.mean[:, :, 1:] + 0.2343) / 3.0986)
        for frames, scale in ((slice(0, 1), 1.8726), (slice(1, None), 3.0986)):
            spread = ((latents.log_variance - z.log_variance)[:, :, frames] / 2).exp()
            torch.testing.assert_close(spread, torch.full_like(spread, 1 / scale))
        torch.testing.assert_close(normalized.decode(latents.mean), plain.decode(z.mean))


def test_residual_blocks_and_attention_of_an_image_are_those_of_diffusers():
    """Of one frame the last tap in time alone sees something: zeros stand before it."""
    torch.manual_seed(0)
    block, reference = (
        ResnetBlock(4, 8, 2),
        ResnetBlock2D(in_channels=4, out_channels=8, temb_channels=None, groups=2, eps=1e-6, non_linearity="swish"),
    )
    state = {name.replace(".conv.", "."): v[:, :, -1] if v.ndim == 5 else v for name, v in block.state_dict().items()}
    reference.load_state_dict(state)
    x = torch.randn(2, 4, 1, 6, 6)
    with torch.no_grad():
        torch.testing.assert_close(block(x, whole())[:, :, 0], reference(x[:, :, 0], None))
    attention, other = FrameAttention(8, 2), Attention(
        8, heads=1, dim_head=8, eps=1e-6, norm_num_groups=2, residual_connection=True, bias=True,
        upcast_softmax=True, _from_deprecated_attn_block=True,
    )  # fmt: skip
    other.load_state_dict(attention.state_dict())
    x = torch.randn(2, 8, 3, 4, 5)
    with torch.no_grad():
        found, frames = attention(x), [other(frame) for frame in x.unbind(2)]
    torch.testing.assert_close(found, torch.stack(frames, dim=2))


def test_channels_become_rows_columns_and_frames():
    space, time = SpatialUpsample(1), TemporalUpsample(1)
    for layer, count in ((space, 4), (time, 2)):
        torch.nn.init.zeros_(layer.conv.conv.weight)
        layer.conv.conv.bias.data = torch.arange(float(count))
    x, first = torch.zeros(1, 1, 2, 1, 1), whole()
    with torch.no_grad():
        assert space(x, first)[0, 0].tolist() == [[[0, 1], [2, 3]]] * 2
        assert time(x, first).flatten().tolist() == [1, 0, 1]  # the first of the first two frames is dropped
        first.first = False
        assert time(x, first).flatten().tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"])
def test_a_published_folder_brings_its_sizes(tmp_path, name):
    model, x = tiny(3), clip(9)
    folder = write(tmp_path / "causal_video_vae", model, name=name)
    found = PyramidFlowVAE.from_published(folder).eval()
    with torch.no_grad():
        assert torch.equal(found.encode(x), model.encode(x)) and found.trained
    found.check_trained()
    assert PyramidFlowVAE.locate(str(folder)) == str(folder) and PyramidFlowVAE.locate(str(tmp_path)) is None
    found.exported_format().write(tmp_path / "again")
    assert load_file(tmp_path / "again" / "diffusion_pytorch_model.safetensors").keys() == model.state_dict().keys()
    assert PyramidFlowVAE.published_settings(tmp_path / "again") == settings_of(CONFIG, "config.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"interpolate": True}, r"interpolate=True \(only False\)"),
        ({"decoder_layers_per_block": [1, 1, 1, 2]}, r"decoder_layers_per_block=\[1, 1, 1, 2\] \(only one number"),
        ({"decoder_in_channels": 8}, "encoder_out_channels=4 beside decoder_in_channels=8"),
        ({"encoder_temporal_down_sample": [False] * 4}, "encoder_temporal_down_sample=.*only"),
    ],
)
def test_variants_are_refused(tmp_path, changes, message):
    folder = write(tmp_path / "vae", tiny(), CONFIG | changes)
    with pytest.raises(UserError, match=message):
        PyramidFlowVAE.from_published(folder)


def test_what_does_not_fit_is_named(tmp_path):
    folder = write(tmp_path / "vae", tiny())
    with pytest.raises(UserError, match=r"autoencoder\.widths=\[4, 8, 8, 16\] must be \[4, 8, 8, 8\]"):
        tiny(widths=(4, 8, 8, 16), path=str(folder))
    with pytest.raises(UserError, match=r"autoencoder\.widths=\[4, 8, 9, 8\] must be 4 multiples of .*groups=2"):
        tiny(widths=(4, 8, 9, 8))
    with pytest.raises(UserError, match=r"Give the folder causal_video_vae"):
        tiny().check_trained()
    with pytest.raises(UserError, match=r"data\.frames=5 does not fit PyramidFlowVAE"):
        tiny().encode(clip(5))
    with pytest.raises(UserError, match=r"first_scale=0, autoencoder\.scale=1 must be above 0"):
        tiny(first_scale=0, scale=1)


def test_gradients_reach_pixels_latents_and_every_weight():
    model, x = tiny(), clip(9).requires_grad_()
    model.decode(model.encode(x)).square().sum().backward()
    assert x.grad.isfinite().all() and x.grad.abs().sum() > 0
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
