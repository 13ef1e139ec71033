"""HARIVO against published counts, diffusers' own UNet, and the identity that it starts from."""

import copy
from dataclasses import replace

import pytest
import torch
from harivo_parts import LATENT, TEXT, example, make, per_frame, saved_image_model, shaken

from vidlab.backbones.harivo.conditions import FrameTokens, MappingLayer
from vidlab.backbones.harivo.image_model import ImageModel
from vidlab.backbones.harivo.model import HARIVO
from vidlab.backbones.harivo.temporal import TemporalModule, frame_positions
from vidlab.clip import LatentShape
from vidlab.errors import UserError
from vidlab.features import FrameAttention


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(("channels", "parameters"), [(320, 2_259_520), (640, 9_024_640), (1280, 36_071_680)])
def test_a_temporal_module_has_the_size_of_animatediffs(channels, parameters):
    with torch.device("meta"):
        assert count(TemporalModule(channels, 8)) == parameters


def test_the_size_of_stable_diffusion_has_the_published_trainable_budget():
    latent = LatentShape(channels=4, frames=24, height=32, width=32)
    with torch.device("meta"):
        model = HARIVO(latent, 768)
        assert count(HARIVO(latent, 768, temporal_parts=("down", "up")).temporal) == 417_137_600
    assert count(model.body) == 859_520_964  # Stable Diffusion 1.5
    assert count(model.temporal) == 453_209_280 and len(model.temporal) == 21
    assert count(model.frame_tokens) == 2_367_912 and count(model.mapping) == 8_328
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trainable == 455_585_520  # 0.45 billion, as printed


def test_a_new_mapping_layer_is_the_identity():
    x = torch.randn(2, 4, 3, 5, 6)
    assert torch.equal(MappingLayer(4)(x), x)


@pytest.mark.parametrize("norm", ["frame", "clip"])
def test_a_new_temporal_module_is_the_identity_and_a_trained_one_mixes_frames(norm):
    x = torch.randn(6, 8, 2, 2)
    module = TemporalModule(8, 2, norm)
    assert torch.equal(module(x, 3), x)
    shaken(module)
    moved = x.clone()
    moved[1] += torch.randn(8, 2, 2)
    changed = (module(moved, 3) - module(x, 3)).abs().amax((1, 2, 3)) > 1e-4
    assert changed.tolist() == [True, True, True, False, False, False]  # the frames of that clip alone


def test_norms_differ_in_what_they_average_over():
    x = torch.randn(3, 8, 2, 2) * torch.tensor([1.0, 5.0, 0.1]).view(3, 1, 1, 1)
    frame, clip = (shaken(TemporalModule(8, 2, norm)) for norm in ("frame", "clip"))
    clip.load_state_dict(frame.state_dict())
    assert not torch.allclose(frame(x, 3), clip(x, 3), atol=1e-3)
    still = torch.randn(1, 8, 2, 2).expand(3, -1, -1, -1)  # of equal frames the statistics are the same
    torch.testing.assert_close(frame(still, 3), clip(still, 3))


def test_positions_by_hand():
    found = frame_positions(2, 4, torch.zeros(1))
    one = torch.tensor(1.0)
    expected = torch.stack([one.sin(), one.cos(), (one / 100).sin(), (one / 100).cos()])
    torch.testing.assert_close(found, torch.stack([torch.tensor([0.0, 1.0, 0.0, 1.0]), expected]))


def test_frame_tokens_are_frame_by_frame_and_above_silus_least():
    module = shaken(FrameTokens(TEXT, 5, 4, 3), 1.0)
    text = torch.randn(2, 3, TEXT)
    four = module(text, 4)
    assert four.shape == (2, 4, 3, TEXT) and four.min() >= -0.2785
    assert torch.equal(module(text, 2), four[:, :2])
    seven = module(text, 7)  # every second of them is one of the four
    torch.testing.assert_close(seven[:, ::2], four)
    torch.testing.assert_close(seven[:, 1], (four[:, 0] + four[:, 1]) / 2)
    with torch.no_grad():
        module.mix.weight[3:6] += 1.0
    moved = (module(text, 4) - four).abs().amax((0, 2, 3)) > 0
    assert moved.tolist() == [False, True, False, False]


@torch.no_grad()
def test_with_temporal_layers_off_it_is_diffusers_unet_frame_by_frame():
    model, input = shaken(make(temporal=False)), example()
    expected = per_frame(model, input, model.mapping(input.latents))
    torch.testing.assert_close(model(input).prediction, expected, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("size", [(8, 8), (6, 10), (5, 3)])
def test_a_new_model_without_frame_tokens_predicts_what_the_image_model_does(size):
    model, input = make(frame_tokens=0), example()
    input = replace(input, latents=torch.randn(2, 4, 3, *size))
    torch.testing.assert_close(model(input).prediction, per_frame(model, input), atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_image_branch_knows_the_mapping_network_alone():
    model = shaken(make())
    input = example(requested=frozenset({"image_branch"}))
    output = model(input)
    expected = per_frame(model, input, model.mapping(input.latents))
    torch.testing.assert_close(output.features["image_branch"], expected, atol=1e-5, rtol=0)
    assert not torch.allclose(output.prediction, expected, atol=1e-3)


def test_the_image_branch_pulls_at_the_mapping_network_and_nothing_else():
    model = shaken(make())
    model(example(requested=frozenset({"image_branch"}))).features["image_branch"].square().mean().backward()
    reached = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert reached == {"mapping"}


@torch.no_grad()
def test_h_space_is_what_the_middle_block_of_diffusers_gives():
    model, input = make(frame_tokens=0), example(requested=frozenset({"h_space"}))
    seen = []
    handle = model.body.mid_block.register_forward_hook(lambda *found: seen.append(found[2]))
    per_frame(model, input)
    handle.remove()
    found = model(input).features["h_space"]
    assert found.shape == (2, 32, 3, 1, 1)
    torch.testing.assert_close(found, torch.stack(seen, dim=2), atol=1e-5, rtol=0)


@torch.no_grad()
def test_self_attention_gives_the_nine_layers_of_the_decoder():
    model, input = make(frame_tokens=0), example(requested=frozenset({"self_attention"}))
    found = model(input).features["self_attention"]
    assert len(found) == 9 and all(isinstance(layer, FrameAttention) for layer in found)
    assert [layer.q.shape[2] for layer in found] == [4] * 3 + [16] * 3 + [64] * 3
    last = model.body.up_blocks[3].attentions[2].transformer_blocks[0].attn1
    seen = []
    handle = last.register_forward_hook(lambda module, given, out: seen.append(given[0]))
    per_frame(model, input)
    handle.remove()
    queries = torch.stack([last.to_q(hidden).unflatten(-1, (2, -1)) for hidden in seen], dim=1)  # (B, T, L, N, d)
    torch.testing.assert_close(found[-1].q, queries, atol=1e-5, rtol=0)
    assert found[0].q.shape == (2, 3, 4, 2, 16) == found[0].k.shape


def test_recomputation_gives_the_same_gradients_of_prediction_and_features():
    plain = shaken(make()).train()
    input = example(requested=frozenset({"self_attention", "h_space"}))
    gradients = []
    for recompute in (False, True):
        model = copy.deepcopy(plain)
        model.activation_checkpointing = recompute
        output = model(input)
        layers = output.features["self_attention"]
        loss = output.prediction.square().mean() + output.features["h_space"].square().mean()
        (loss + sum((layer.q * layer.k).mean() for layer in layers)).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_the_body_stays_as_it_was_to_the_bit(tmp_path):
    model = make(str(saved_image_model(tmp_path)))
    before = {name: value.clone() for name, value in model.body.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model.train()(example()).prediction.square().mean().backward()
        optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in model.body.state_dict().items())
    assert not model.body.training
    assert any(p.abs().max() > 0 for p in model.temporal["mid"].out.parameters())


def test_only_what_is_trained_is_kept_and_the_digest_tells_bodies_apart(tmp_path):
    one, other = (str(saved_image_model(tmp_path / name, seed)) for name, seed in (("a", 1), ("b", 2)))
    model = shaken(make(one))
    frozen = model.frozen_keys()
    kept = {name: value for name, value in model.state_dict().items() if name not in frozen}
    assert {name.split(".")[0] for name in kept} == {"temporal", "mapping", "frame_tokens", "image_digest"}
    assert sum(v.numel() for v in kept.values()) == sum(p.numel() for p in model.parameters() if p.requires_grad) + 16
    again, input = make(one), example()
    again.load_state_dict({**again.state_dict(), **kept})
    assert torch.equal(again(input).prediction, model(input).prediction)
    with pytest.raises(
        UserError, match=r"is not the image model that these weights were trained on.*other_image_model"
    ):
        make(other).load_state_dict({**make(other).state_dict(), **kept})
    swapped = make(other, other_image_model=True)
    own = swapped.image_digest.clone()
    swapped.load_state_dict({**swapped.state_dict(), **kept})
    assert torch.equal(swapped.image_digest, own)
    assert torch.equal(swapped.temporal["mid"].out.weight, model.temporal["mid"].out.weight)


def test_an_image_model_of_other_latents_or_text_is_refused(tmp_path):
    folder = str(saved_image_model(tmp_path))
    with pytest.raises(UserError, match="UNet of 4 channels of latents"):
        make(folder, latent=replace(LATENT, channels=5))
    with pytest.raises(UserError, match="reads text of width 8, and the text encoder gives 9"):
        HARIVO(LATENT, 9, ImageModel(folder))
    strange = str(saved_image_model(tmp_path / "strange", center_input_sample=True))
    with pytest.raises(UserError, match="center_input_sample=True"):
        make(strange)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"temporal_parts": ["up", "left"]}, "temporal_parts"), ({"temporal_norm": "batch"}, "choose frame or clip"),
        ({"mapping_layers": -1}, "mapping_layers=-1"), ({"patch": (1, 2, 2)}, r"model.token=\[1,1,1\]"),
        ({"width": 9}, "heads divide width"),
    ],
)  # fmt: skip
def test_settings_that_cannot_work_are_refused(setting, message):
    with pytest.raises(UserError, match=message):
        make(**setting)


def test_parts_choose_where_temporal_modules_stand():
    assert [len(make(temporal_parts=parts).temporal) for parts in (["down"], ["mid"], ["up"])] == [8, 1, 12]
