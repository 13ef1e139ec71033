"""ControlNet and IP-Adapter beside the frozen UNet, against diffusers' own forward of the same UNet frame by frame."""

from dataclasses import replace

import pytest
import torch
from diffusers import ControlNetModel
from harivo_parts import LATENT, TEXT, example, make, saved_image_model, shaken
from safetensors.torch import save_file

from vidlab.backbones.harivo.controlnet import FrameControlNet, load_controlnet
from vidlab.backbones.harivo.image_prompt import add_image_prompt, picture_features, read_ip_adapter, reads_patches
from vidlab.clip import IMAGE_PROMPT
from vidlab.errors import UserError

FEATURES = 6  # of the image encoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return str(saved_image_model(tmp_path_factory.mktemp("sd")))


@pytest.fixture(scope="module")
def controlnet(folder, tmp_path_factory) -> tuple[ControlNetModel, str]:
    """One that answers, and the folder it is saved in."""
    torch.manual_seed(3)
    net = ControlNetModel.from_unet(make(folder).body, conditioning_embedding_out_channels=(16, 32))
    for part in (net.controlnet_down_blocks, net.controlnet_mid_block, net.controlnet_cond_embedding):
        shaken(part)
    place = tmp_path_factory.mktemp("controlnet")
    net.save_pretrained(place)
    return net.eval(), str(place)


def whole_text(**changes):
    """A ControlNet of diffusers knows no padding of the text."""
    input = example()
    return replace(input, text=replace(input.text, mask=torch.ones(2, 5, dtype=torch.bool)), **changes)


@torch.no_grad()
@pytest.mark.parametrize("frames", [(0, 1, 2), (1,), (2, 0)])
def test_a_controlnet_at_some_frames_is_that_of_diffusers_there_and_nothing_elsewhere(folder, controlnet, frames):
    net, place = controlnet
    model, input = shaken(make(folder, temporal=False)), whole_text()
    pictures = torch.rand(len(frames), 3, 16, 16)
    plain = model(input).prediction
    model.control = FrameControlNet(load_controlnet(place, model.body), pictures, frames, scale=0.7)
    assert model.control.factor == 2
    mapped, expected = model.mapping(input.latents), plain.clone()
    for number, frame in enumerate(frames):
        args = mapped[:, :, frame], input.embedded_t, input.text.tokens
        down, mid = net(*args, pictures[number : number + 1].expand(2, -1, -1, -1), conditioning_scale=0.7,
                        return_dict=False)  # fmt: skip
        expected[:, :, frame] = model.body(
            *args, down_block_additional_residuals=down, mid_block_additional_residual=mid
        ).sample
    found = model(input).prediction
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    changed = (found - plain).abs().amax((0, 1, 3, 4)) > 1e-3
    assert changed.tolist() == [frame in frames for frame in range(3)]


@torch.no_grad()
def test_with_temporal_modules_a_controlled_frame_moves_its_neighbors(folder, controlnet):
    model, input = shaken(make(folder)), whole_text()
    plain = model(input).prediction
    model.control = FrameControlNet(load_controlnet(controlnet[1], model.body), torch.rand(1, 3, 8, 8), (0,))
    assert ((model(input).prediction - plain).abs().amax((0, 1, 3, 4)) > 1e-4).all()


def test_a_controlnet_in_a_single_file_is_the_same(folder, controlnet, tmp_path):
    body = make(folder).body
    with torch.device("meta"):
        net = ControlNetModel.from_unet(body, load_weights_from_unet=False)
    weights = {name: torch.randn(value.shape) for name, value in net.state_dict().items()}
    save_file(
        {f"control_model.{published(name)}": value for name, value in weights.items()}, tmp_path / "c.safetensors"
    )
    found = load_controlnet(str(tmp_path / "c.safetensors"), body).state_dict()
    assert found.keys() == weights.keys() and all(torch.equal(found[name], value) for name, value in weights.items())


def published(name: str) -> str:
    """The name in the file of Zhang et al., worked out by hand from both layouts."""
    from test_harivo_image_models import ENDS, RESNET

    module, leaf = name.rsplit(".", 1)
    parts = module.split(".")
    if module in ENDS:
        return f"{ENDS[module]}.{leaf}"
    if parts[0] == "controlnet_cond_embedding":
        place = {"conv_in": 0, "conv_out": 14}.get(parts[1])
        return f"input_hint_block.{2 + 2 * int(parts[2]) if place is None else place}.{leaf}"
    if parts[0] == "controlnet_down_blocks":
        return f"zero_convs.{parts[1]}.0.{leaf}"
    if parts[0] == "controlnet_mid_block":
        return f"middle_block_out.0.{leaf}"
    if parts[0] == "mid_block":
        start, inside = (
            f"middle_block.{ {'resnets.0': 0, 'attentions.0': 1, 'resnets.1': 2}['.'.join(parts[1:3])] }",
            parts[3:],
        )
        attention = parts[1] == "attentions"
    else:
        level, kind, number = int(parts[1]), parts[2], int(parts[3])
        attention, inside = kind == "attentions", parts[4:]
        if kind == "downsamplers":
            return f"input_blocks.{3 * (level + 1)}.0.op.{leaf}"
        start = f"input_blocks.{3 * level + number + 1}.{1 if attention else 0}"
    return ".".join([start, *(inside if attention else [RESNET[inside[0]]]), leaf])


def test_a_controlnet_that_does_not_fit_is_refused(folder, controlnet, tmp_path):
    net, place = controlnet
    with pytest.raises(UserError, match="a clip has 3 frames"):
        FrameControlNet(net, torch.rand(1, 3, 8, 8), (3,))(
            torch.zeros(1, 4, 3, 8, 8), torch.zeros(3), torch.zeros(3, 1, TEXT), torch.zeros(3, 1, 1)
        )
    with pytest.raises(UserError, match="one picture for all of them or one for each, of which there are 2"):
        FrameControlNet(net, torch.rand(2, 3, 8, 8), (0, 1, 2))
    other = make(folder)
    other.body.register_to_config(cross_attention_dim=9)
    with pytest.raises(UserError, match=r"cross_attention_dim=8, and the image model has 9"):
        load_controlnet(place, other.body)
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="no ControlNet of Stable Diffusion is in it"):
        load_controlnet(str(tmp_path / "x.safetensors"), other.body)


def published_adapter(body, plus: bool = False) -> dict[str, torch.Tensor]:
    """Weights by the names of the published files: odd numbers are the cross-attentions in the order of the UNet."""
    torch.manual_seed(5)
    found = {}
    for number, name in enumerate(body.attn_processors):
        if name.endswith("attn2.processor"):
            width = body.get_submodule(name.removesuffix(".processor")).to_k.out_features
            for kind in ("k", "v"):
                found[f"ip_adapter.{number}.to_{kind}_ip.weight"] = torch.randn(width, TEXT) / 4
    if not plus:
        return found | {
            "image_proj.proj.weight": torch.randn(4 * TEXT, FEATURES), "image_proj.proj.bias": torch.randn(4 * TEXT),
            "image_proj.norm.weight": torch.ones(TEXT), "image_proj.norm.bias": torch.zeros(TEXT),
        }  # fmt: skip
    proj = {
        "latents": (1, 3, 64), "proj_in.weight": (64, FEATURES), "proj_in.bias": (64,), "proj_out.weight": (TEXT, 64),
        "proj_out.bias": (TEXT,), "norm_out.weight": (TEXT,), "norm_out.bias": (TEXT,),
    }  # fmt: skip
    for layer in range(4):
        proj |= {f"layers.{layer}.0.{n}": (64,) for n in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias")}
        proj |= {f"layers.{layer}.0.to_q.weight": (64, 64), f"layers.{layer}.0.to_kv.weight": (128, 64),
                 f"layers.{layer}.0.to_out.weight": (64, 64), f"layers.{layer}.1.0.weight": (64,),
                 f"layers.{layer}.1.0.bias": (64,), f"layers.{layer}.1.1.weight": (256, 64),
                 f"layers.{layer}.1.3.weight": (64, 256)}  # fmt: skip
    return found | {f"image_proj.{name}": torch.randn(shape) / 8 for name, shape in proj.items()}


@torch.no_grad()
@pytest.mark.parametrize("plus", [False, True])
def test_an_ip_adapter_is_that_of_diffusers_with_and_without_the_picture(folder, tmp_path, plus):
    model, theirs = shaken(make(folder, temporal=False)), make(folder).body
    path = tmp_path / "ip.safetensors"
    save_file(published_adapter(model.body, plus), path)
    state = read_ip_adapter(str(path))
    assert reads_patches(state) == plus
    shape = (1, 7, FEATURES) if plus else (1, FEATURES)
    features, nothing = torch.randn(shape), torch.zeros(shape)
    model.image_prompt = add_image_prompt(model.body, str(path), features, nothing, scale=0.6)
    assert model.image_prompt.tokens.shape == (2, 3 if plus else 4, TEXT)
    input = example()
    input = replace(input, micro={IMAGE_PROMPT: torch.tensor([[1.0], [0.0]])})
    theirs._load_ip_adapter_weights([state], low_cpu_mem_usage=False)
    for processor in theirs.attn_processors.values():
        if hasattr(processor, "to_k_ip"):
            processor.scale = [0.6]
    embeds = torch.stack([features, nothing])  # (B, pictures, ...)
    mapped = model.mapping(input.latents)
    expected = torch.stack([
        theirs(mapped[:, :, j], input.embedded_t, input.text.tokens, encoder_attention_mask=input.text.mask,
               added_cond_kwargs={"image_embeds": [embeds]}).sample
        for j in range(3)
    ], dim=2)  # fmt: skip
    found = model(input).prediction
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert not torch.allclose(found, shaken(make(folder, temporal=False))(input).prediction, atol=1e-3)
    assert model.micro_shapes(LATENT) == {IMAGE_PROMPT: (1,)} and make(folder).micro_shapes(LATENT) == {}


def test_an_ip_adapter_that_does_not_fit_is_refused(folder, tmp_path):
    body, path = make(folder).body, tmp_path / "ip.safetensors"
    good = published_adapter(body)

    def refused(weights, message, width=FEATURES):
        save_file(weights, path)
        with pytest.raises(UserError, match=message):
            add_image_prompt(body, str(path), torch.zeros(1, width), torch.zeros(1, width))

    refused({**good, "unet.x": torch.zeros(1)}, "is no IP-Adapter: unet.x")
    refused({n: v for n, v in good.items() if not n.startswith("image_proj")}, "a part is absent")
    refused({**good, "ip_adapter.1.to_k_lora.down.weight": torch.zeros(1)}, "not those of faces")
    refused(good, "another UNet than this image model or another image encoder", width=FEATURES + 1)
    refused({n: v for n, v in good.items() if ".31." not in n}, "another UNet")
    with pytest.raises(UserError, match="pickled weights are not read"):
        read_ip_adapter(str(tmp_path / "ip.bin"))


@torch.no_grad()
def test_features_of_a_picture_are_those_of_the_encoder():
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=3, num_attention_heads=2, image_size=8, patch_size=4,
        projection_dim=FEATURES,
    )  # fmt: skip
    encoder = CLIPVisionModelWithProjection(config).eval()
    picture = torch.rand(1, 3, 8, 8)
    mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in (
        (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)))  # fmt: skip
    pixels = (picture - mean) / std
    found, none = picture_features(encoder, picture, patches=False)
    torch.testing.assert_close(found, encoder(pixels).image_embeds)
    assert none.shape == found.shape == (1, FEATURES) and not none.any()
    found, none = picture_features(encoder, picture, patches=True)
    torch.testing.assert_close(found, encoder(pixels, output_hidden_states=True).hidden_states[-2])
    assert found.shape == none.shape == (1, 5, 8) and none.any()
    assert picture_features(encoder, torch.rand(1, 3, 20, 30), patches=False)[0].shape == (1, FEATURES)
