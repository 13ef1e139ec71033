"""LoRA on the frozen UNet: what it changes, by hand, and that diffusers reads ours and we read those of others."""

import json
from dataclasses import replace

import pytest
import torch
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from harivo_parts import example, make, per_frame, saved_image_model, shaken
from safetensors import safe_open
from safetensors.torch import save_file

from vidlab.backbones.harivo.lora import LoRA, add_lora
from vidlab.backbones.harivo.lora_files import FILE
from vidlab.backbones.harivo.unet import make_unet, small_config
from vidlab.clip import DenoiserInput
from vidlab.errors import UserError

PLACE = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
MAPS = 16 * 2 * 4  # of sixteen spatial transformers, in each self- and cross-attention: q, k, v and the output


@pytest.fixture
def folder(tmp_path) -> str:
    return str(saved_image_model(tmp_path / "image"))


def trained(folder: str, **settings):
    """A model whose LoRA answers and whose temporal modules and mapping do not."""
    model = make(folder, frame_tokens=0, lora_rank=2, **settings)
    for parameter in model.body.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def exact(input: DenoiserInput) -> DenoiserInput:
    """The same in float64, where another order of sums makes no difference."""
    text = replace(input.text, tokens=input.text.tokens.double(), pooled=input.text.pooled.double())
    numbers = {name: getattr(input, name).double() for name in ("latents", "t", "embedded_t")}
    return replace(input, text=text, **numbers)


def plain_unet(folder: str):
    model = make(folder)
    unet = make_unet({key: value for key, value in model.body.config.items() if not key.startswith("_")})
    unet.load_state_dict(model.body.state_dict())
    return unet.eval()


def test_a_new_lora_changes_nothing_and_trains_alone_in_the_body(folder):
    model, input = make(folder, frame_tokens=0, lora_rank=2), example()
    assert torch.equal(model(input).prediction, make(folder, frame_tokens=0)(input).prediction)
    trainable = [name for name, p in model.body.named_parameters() if p.requires_grad]
    assert len(trainable) == 2 * MAPS and all(".lora_" in name for name in trainable)
    assert not any("lora" in name for name in model.temporal.state_dict())
    frozen = {name: p.clone() for name, p in model.body.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model.train()(input).prediction.square().mean().backward()
        optimizer.step()
    body = dict(model.body.named_parameters())
    assert all(torch.equal(body[name], value) for name, value in frozen.items())
    assert all(p.any() for name, p in body.items() if ".lora_B." in name)


@torch.no_grad()
def test_the_change_is_b_a_times_the_scale(folder):
    model, plain = trained(folder, lora_alpha=6.0).double(), make(folder, frame_tokens=0).double()
    unet, input = plain_unet(folder).double(), exact(example())
    maps = dict(unet.named_modules())
    for name, module in model.body.named_modules():
        if hasattr(module, "lora_A"):
            change = module.lora_B["default"].weight @ module.lora_A["default"].weight
            maps[name].weight += 3.0 * change  # alpha 6 over rank 2
    expected = torch.stack([
        unet(input.latents[:, :, j], input.embedded_t, input.text.tokens, encoder_attention_mask=input.text.mask).sample
        for j in range(3)
    ], dim=2)  # fmt: skip
    found = model(input).prediction
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-10)
    assert (found - plain(input).prediction).abs().max() > 0.01


@torch.no_grad()
@pytest.mark.parametrize("alpha", [6.0, pytest.param(None, marks=pytest.mark.slow)])
def test_diffusers_loads_it_with_the_same_effect(folder, tmp_path, alpha):
    model, input = trained(folder, lora_alpha=alpha), example()
    model.lora.write(model.body, tmp_path)
    with safe_open(tmp_path / FILE, "pt") as stored:
        assert f"unet.{PLACE}.lora_A.weight" in stored.keys() and len(stored.keys()) == 2 * MAPS  # noqa: SIM118
        assert json.loads(stored.metadata()["lora_adapter_metadata"])["unet.r"] == 2
    unet = plain_unet(folder)
    state, alphas, metadata = StableDiffusionLoraLoaderMixin.lora_state_dict(
        str(tmp_path), weight_name=FILE, return_lora_metadata=True, local_files_only=True
    )
    StableDiffusionLoraLoaderMixin.load_lora_into_unet(state, alphas, unet, metadata=metadata)
    model.body = unet
    theirs = per_frame(model, input)
    torch.testing.assert_close(theirs, trained_again(folder, tmp_path, input), atol=1e-5, rtol=1e-4)
    unet.disable_adapters()
    assert (per_frame(model, input) - theirs).abs().max() > 0.01


def trained_again(folder: str, written, input) -> torch.Tensor:
    """What a model without a LoRA of its own predicts with the file added."""
    model = make(folder, frame_tokens=0)
    assert add_lora(model.body, str(written)) == MAPS
    return model(input).prediction


@torch.no_grad()
def test_a_file_of_diffusers_or_kohya_is_added_with_its_scale(folder, tmp_path):
    from peft import LoraConfig

    unet, input = plain_unet(folder), example()
    unet.add_adapter(LoraConfig(r=2, lora_alpha=4, target_modules=["to_q", "proj_in"]))
    shaken(unet, 0.2)
    unet.save_lora_adapter(tmp_path / "peft")
    kohya = {}
    for name, module in unet.named_modules():
        if hasattr(module, "lora_A"):
            start = f"lora_unet_{name.replace('.', '_')}"
            kohya[f"{start}.lora_down.weight"] = module.lora_A["default"].weight.clone()
            kohya[f"{start}.lora_up.weight"] = module.lora_B["default"].weight.clone()
            kohya[f"{start}.alpha"] = torch.tensor(4.0)
    save_file(kohya, tmp_path / "kohya.safetensors")
    model = make(folder, frame_tokens=0)
    before = model(input).prediction
    model.body, own = unet, model.body
    expected = per_frame(model, input)
    model.body = own
    for file in (tmp_path / "peft", tmp_path / "kohya.safetensors"):
        add_lora(model.body, str(file))
        torch.testing.assert_close(model(input).prediction, expected, atol=1e-5, rtol=1e-4)
    add_lora(model.body, str(tmp_path / "peft"), scale=0.0)
    torch.testing.assert_close(model(input).prediction, before, atol=1e-6, rtol=0)
    assert not torch.allclose(expected, before, atol=1e-3)


@torch.no_grad()
def test_another_lora_stands_beside_the_trained_one(folder, tmp_path):
    other, model, input = trained(folder), trained(folder), example()
    other.lora.write(other.body, tmp_path)
    alone = model(input).prediction
    kept = model.state_dict().keys() - model.frozen_keys()
    add_lora(model.body, str(tmp_path))
    assert (model(input).prediction - alone).abs().max() > 0.01
    assert model.state_dict().keys() - model.frozen_keys() == kept
    add_lora(model.body, str(tmp_path), scale=0.0)
    torch.testing.assert_close(model(input).prediction, alone, atol=1e-6, rtol=0)


def test_files_that_do_not_fit_are_refused(folder, tmp_path):
    model = make(folder)

    def refused(weights, message):
        save_file(weights, tmp_path / "x.safetensors")
        with pytest.raises(UserError, match=message):
            add_lora(model.body, str(tmp_path / "x.safetensors"))

    down, up = torch.randn(2, 8), torch.randn(8, 2)
    refused({f"unet.{PLACE}.lora_A.weight": torch.randn(2, 9), f"unet.{PLACE}.lora_B.weight": up}, r"\(8, 8\)")
    refused({"unet.nowhere.lora_A.weight": down, "unet.nowhere.lora_B.weight": up}, "no such map")
    refused({f"unet.{PLACE}.lora_A.weight": down}, "no pair of lora_A and lora_B")
    refused({f"unet.{PLACE}.lora_A.weight": down, f"unet.{PLACE}.lora_B.weight": 0 * up}, "changes nothing")
    refused({"text_encoder.a.lora_A.weight": down, "text_encoder.a.lora_B.weight": up}, "nothing for the UNet")
    refused({f"unet.{PLACE}.lokr_w1": down}, "another kind than LoRA")
    with pytest.raises(UserError, match="there is no such folder"):
        add_lora(model.body, str(tmp_path / "absent"))
    with pytest.raises(UserError, match="lora_rank=-1"):
        LoRA(-1)


def test_the_size_at_stable_diffusion():
    # rank r = 4, counted by hand: self-attention 8 D r, to text 4 D r for q and out, 2 (D + W) r for k and v
    with torch.device("meta"):
        body = make_unet(small_config(4, 768, 320, 2, 8))
        LoRA(4).put_into(body)
    widths = 5 * [320] + 5 * [640] + 6 * [1280]
    assert sum(p.numel() for name, p in body.named_parameters() if ".lora_" in name) == sum(
        4 * (8 * width + 4 * width + 2 * (width + 768)) for width in widths
    )
