"""Frozen image models from the forms in which Stable Diffusion is published, on small files made here."""

import pytest
import torch
from harivo_parts import TEXT, example, make, per_frame, saved_image_model
from safetensors.torch import save_file

from vidlab.backbones.harivo.image_model import ImageModel, weights_digest
from vidlab.backbones.harivo.unet import make_unet, small_config
from vidlab.errors import UserError

RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3",
          "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection"}  # fmt: skip
ENDS = {"conv_in": "input_blocks.0.0", "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2", "conv_norm_out": "out.0", "conv_out": "out.2"}  # fmt: skip
DEPTH = 1


def first_published_name(name: str) -> str:
    """The name in the single file of Stable Diffusion, of one in diffusers; worked out by hand from both layouts."""
    module, leaf = name.rsplit(".", 1)
    if module in ENDS:
        return f"{ENDS[module]}.{leaf}"
    parts = module.split(".")
    if parts[0] == "mid_block":
        place = {"resnets.0": 0, "attentions.0": 1, "resnets.1": 2}[".".join(parts[1:3])]
        start, inside, attention = f"middle_block.{place}", parts[3:], parts[1] == "attentions"
    else:
        level, kind, number = int(parts[1]), parts[2], int(parts[3])
        inside, attention = parts[4:], kind == "attentions"
        if kind == "downsamplers":
            return f"input_blocks.{(DEPTH + 1) * (level + 1)}.0.op.{leaf}"
        if kind == "upsamplers":  # after the attention, where there is one
            return f"output_blocks.{(DEPTH + 1) * level + DEPTH}.{1 if level == 0 else 2}.conv.{leaf}"
        down = parts[0] == "down_blocks"
        block = (DEPTH + 1) * level + number + (1 if down else 0)
        start = f"{'input' if down else 'output'}_blocks.{block}.{1 if attention else 0}"
    inside = inside if attention else [RESNET[inside[0]]]
    return ".".join([start, *inside, leaf])


@pytest.fixture(scope="module")
def published():
    """A UNet with the heads and norms that all of Stable Diffusion 1 has."""
    torch.manual_seed(3)
    return make_unet({**small_config(4, TEXT, width=32, depth=DEPTH, heads=8), "norm_num_groups": 32})


def single_file(unet, file, dtype=torch.float32):
    state = {f"model.diffusion_model.{first_published_name(name)}": value.to(dtype).contiguous()
             for name, value in unet.state_dict().items()}  # fmt: skip
    other = {"first_stage_model.quant_conv.weight": torch.zeros(2), "cond_stage_model.x": torch.zeros(1)}
    save_file({**state, **other}, file)
    return str(file)


@torch.no_grad()
def test_a_single_file_is_read_bit_by_bit(published, tmp_path):
    model = ImageModel(single_file(published, tmp_path / "sd.safetensors"))
    body, digest = model.build()
    assert {n: tuple(v.shape) for n, v in body.state_dict().items()} == {
        n: tuple(v.shape) for n, v in published.state_dict().items()
    }
    assert all(torch.equal(value, published.state_dict()[name]) for name, value in body.state_dict().items())
    assert digest == weights_digest(published.state_dict())
    latents, text = torch.randn(1, 4, 8, 8), torch.randn(1, 3, TEXT)
    assert torch.equal(body(latents, 7, text).sample, published(latents, 7, text).sample)


def test_half_precision_is_read_as_float32(published, tmp_path):
    body, _ = ImageModel(single_file(published, tmp_path / "sd.safetensors", torch.float16)).build()
    assert body.conv_in.weight.dtype == torch.float32
    assert torch.equal(body.conv_in.weight, published.conv_in.weight.half().float())


@torch.no_grad()
def test_a_folder_is_read_whole_or_by_its_unet(tmp_path):
    folder = saved_image_model(tmp_path)
    whole, alone = ImageModel(str(folder)).build(), ImageModel(str(folder / "unet")).build()
    assert whole[1] == alone[1] != bytes(16)
    model, input = make(str(folder), frame_tokens=0), example()
    torch.testing.assert_close(model(input).prediction, per_frame(model, input), atol=1e-5, rtol=0)
    assert bytes(model.image_digest.tolist()) == whole[1]


def test_nothing_is_read_until_it_is_built(tmp_path):
    folder = saved_image_model(tmp_path)
    model = ImageModel(str(folder))
    assert all(value.is_meta for value in model.hollow().state_dict().values())
    with torch.device("meta"):
        assert make(str(folder)).image_digest.is_meta


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent", None, "there is no such folder"), ("model.ckpt", b"x", "pickled weights are not read"),
        ("sd.safetensors", b"garbage", "damaged or no safetensors file"),
    ],
)  # fmt: skip
def test_what_is_no_image_model_is_refused(name, content, message, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        ImageModel(str(tmp_path / name))


def test_other_files_and_folders_are_refused(published, tmp_path):
    save_file({"lora_unet.x": torch.zeros(1)}, tmp_path / "lora.safetensors")
    with pytest.raises(UserError, match="no UNet of Stable Diffusion 1 is in it"):
        ImageModel(str(tmp_path / "lora.safetensors"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"holds no config.json with diffusion_pytorch_model.safetensors"):
        ImageModel(str(tmp_path / "empty"))
    folder = saved_image_model(tmp_path / "damaged")
    save_file({"conv_in.weight": torch.zeros(1)}, folder / "unet" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(UserError, match="the weights do not fit the configuration"):
        ImageModel(str(folder)).build()
    config = folder / "unet" / "config.json"
    config.write_text(config.read_text().replace("UNet2DConditionModel", "UNet3DConditionModel"))
    with pytest.raises(UserError, match="holds a UNet3DConditionModel"):
        ImageModel(str(folder))
