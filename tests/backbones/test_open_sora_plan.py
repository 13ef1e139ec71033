"""Open-Sora Plan v1.3 against an independent reading of its equations, and its weights as they are published."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import nn
from torch.nn import functional as F

from vidlab.backbones.open_sora_plan import OpenSoraPlan, PatchEmbed
from vidlab.clip import Controls, DenoiserInput, LatentShape, Stride, TextEmbedding
from vidlab.errors import UserError
from vidlab.lab.compose import make_backbone
from vidlab.layers.layouts import Full3D, GroupSkip, LayerPlan, SingleSkip

CONF = Path(__file__).parents[2] / "conf"
TEXT = 10
SKIPARSE = LayerPlan([SingleSkip(4), GroupSkip(4)], 1, 1)
LATENT = LatentShape(8, 4, 4, 8)


@pytest.fixture
def make() -> Callable[..., OpenSoraPlan]:
    def build(**settings) -> OpenSoraPlan:
        sizes = {"latent": LATENT, "layouts": SKIPARSE, "width": 24, "depth": 4, "heads": 2, "patch": (1, 2, 2)}
        return OpenSoraPlan(text_width=TEXT, **(sizes | settings))

    return build


def speaking(model: nn.Module) -> nn.Module:
    """The original's start, but for biases, zero linears and small weights: every term of every equation counts."""
    for name, parameter in model.named_parameters():
        if name.startswith("caption"):
            nn.init.normal_(parameter, std=0.3)  # at 0.02 one GELU is like another
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return model.eval()


def example(text: TextEmbedding | None, shape=(4, 4, 8), controls: bool = False, batch: int = 2) -> DenoiserInput:
    t = torch.rand(batch)
    given = Controls(torch.randn(batch, 12, *shape), torch.ones(batch, 1, *shape)) if controls else None
    return DenoiserInput(torch.randn(batch, 8, *shape), t, 999 * t, text, controls=given)


# --- the reference: loops over tokens and heads, dense attention with a connectivity written by hand ----------------


def connected(layer: int, depth: int, tokens: int, k: int = 4) -> torch.Tensor:
    """Which tokens see which: everything in the first and last layer; (i mod k) in even, (i / k mod k) in odd ones."""
    rows = torch.zeros(tokens, tokens, dtype=torch.bool)
    for i in range(tokens):
        for j in range(tokens):
            if layer in (0, depth - 1):
                rows[i, j] = True
            elif layer % 2 == 0:
                rows[i, j] = i % k == j % k
            else:
                rows[i, j] = (i // k) % k == (j // k) % k
    return rows


def turned(x: torch.Tensor, place: tuple[int, int, int], scale=(1.0, 1.0, 1.0)) -> torch.Tensor:
    """One head of one token, its halves of each third rotated by the token's place."""
    out, third = torch.empty_like(x), len(x) // 3
    for axis in range(3):
        for i in range(third // 2):
            a, b = axis * third + i, axis * third + third // 2 + i
            angle = place[axis] / scale[axis] * 10000 ** (-2 * i / third)
            out[a] = x[a] * math.cos(angle) - x[b] * math.sin(angle)
            out[b] = x[b] * math.cos(angle) + x[a] * math.sin(angle)
    return out


def dense(q, k, v, allowed) -> torch.Tensor:
    """(L, N, d) from (L, N, d) and (S, N, d), one softmax per head."""
    heads = []
    for n in range(q.shape[1]):
        scores = q[:, n] @ k[:, n].T / math.sqrt(q.shape[-1])
        heads.append(scores.masked_fill(~allowed, -math.inf).softmax(-1) @ v[:, n])
    return torch.cat(heads, dim=-1)


def layer_norm(x):
    return (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, keepdim=True, unbiased=False) + 1e-6)


def reference(model: OpenSoraPlan, input: DenoiserInput) -> torch.Tensor:
    """The published forward pass of one clip after the other, in float64."""
    state = {name: value.double() for name, value in model.state_dict().items()}
    return torch.stack([_clip(state, model, input, row) for row in range(len(input.latents))])


def _linear(state, name, x):
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def _tokens(state, name, clip):
    per_frame = F.conv2d(clip.double().transpose(0, 1), state[f"{name}.weight"], state[f"{name}.bias"], stride=2)
    return per_frame.flatten(2).transpose(1, 2).flatten(0, 1)


def _clip(state, model, input, row):
    frames, height, width = input.latents.shape[2:]
    places = [(t, y, x) for t in range(frames) for y in range(height // 2) for x in range(width // 2)]
    x = _tokens(state, "pos_embed.proj", input.latents[row])
    if input.controls is not None:
        masked, mask = input.controls.channels[row].split([8, 4])
        for name, part in (("pos_embed_masked_hidden_states", masked), ("pos_embed_mask", mask)):
            x = x + _tokens(state, f"{name}.0.proj", part) @ state[f"{name}.1.weight"].T
    angle = input.embedded_t[row].double() * torch.exp(-math.log(10000) * torch.arange(128).double() / 128)
    time = "adaln_single.emb.timestep_embedder"
    hidden = _linear(state, f"{time}.linear_1", torch.cat([angle.cos(), angle.sin()]))
    e = _linear(state, f"{time}.linear_2", F.silu(hidden))
    shared = _linear(state, "adaln_single.linear", F.silu(e)).view(6, -1)
    text = None
    if input.text is not None:
        text = _linear(state, "caption_projection.linear_1", input.text.tokens[row].double())
        text = _linear(state, "caption_projection.linear_2", F.gelu(text, approximate="tanh"))
    for i in range(len(model.transformer_blocks)):
        x = _block(state, f"transformer_blocks.{i}", model, x, shared, text, input, row, places, i)
    shift, scale = state["scale_shift_table"] + e
    out = _linear(state, "proj_out", layer_norm(x) * (1 + scale) + shift)
    latents = torch.empty(8, frames, height, width, dtype=torch.float64)
    for token, (t, y, x) in enumerate(places):
        for q in range(2):
            for r in range(2):
                latents[:, t, 2 * y + q, 2 * x + r] = out[token, (q * 2 + r) * 8 : (q * 2 + r + 1) * 8]
    return latents


def _block(state, name, model, x, shared, text, input, row, places, i):
    heads, depth = model.heads, len(model.transformer_blocks)
    shift1, scale1, gate1, shift2, scale2, gate2 = shared + state[f"{name}.scale_shift_table"]

    def split(part, y):
        return _linear(state, f"{name}.{part}", y).unflatten(-1, (heads, -1))

    h = layer_norm(x) * (1 + scale1) + shift1
    q, k = (
        torch.stack(
            [torch.stack([turned(head, place) for head in token]) for token, place in zip(y, places, strict=True)]
        )
        for y in (split("attn1.to_q", h), split("attn1.to_k", h))
    )
    mixed = dense(q, k, split("attn1.to_v", h), connected(i, depth, len(places)))
    x = x + gate1 * _linear(state, f"{name}.attn1.to_out.0", mixed)
    if text is not None:
        allowed = input.text.mask[row].expand(len(places), -1)
        mixed = dense(split("attn2.to_q", x), split("attn2.to_k", text), split("attn2.to_v", text), allowed)
        x = x + _linear(state, f"{name}.attn2.to_out.0", mixed)
    hidden = F.gelu(_linear(state, f"{name}.ff.net.0.proj", layer_norm(x) * (1 + scale2) + shift2), approximate="tanh")
    return x + gate2 * _linear(state, f"{name}.ff.net.2", hidden)


@pytest.mark.parametrize(
    ("shape", "controls"),
    # 32 tokens fill the groups of 16; 3 * 1 * 3 = 9, 5 * 2 * 3 = 30 and 18 leave padding in one layout or in both
    [((4, 4, 8), False), ((4, 4, 8), True), ((5, 4, 6), False), ((3, 2, 6), True), ((3, 4, 6), False)],
)
def test_the_forward_pass_is_the_published_one(make, make_text, shape, controls):
    model = speaking(make(control_channels=(8, 4) if controls else ()))
    input = example(make_text((5, 2)), shape, controls)
    with torch.no_grad():
        torch.testing.assert_close(model(input).prediction.double(), reference(model, input), rtol=1e-5, atol=1e-5)


def test_without_text_cross_attention_is_left_out(make):
    model, input = speaking(make()), example(None)
    with torch.no_grad():
        torch.testing.assert_close(model(input).prediction.double(), reference(model, input), rtol=1e-5, atol=1e-5)


def test_bfloat16_autocast_is_close_and_angles_stay_exact(make, make_text):
    model, input = speaking(make()), example(make_text())
    with torch.no_grad():
        exact = model(input).prediction
        with torch.autocast("cpu", torch.bfloat16):
            rough = model(input).prediction.float()
    assert (rough - exact).norm() < 0.03 * exact.norm()


def test_weights_may_be_kept_in_bfloat16(make, make_text):
    model, input = speaking(make()), example(make_text())
    with torch.no_grad():
        exact = model(input).prediction
        text = replace(input.text, tokens=input.text.tokens.bfloat16())
        rough = model.bfloat16()(replace(input, latents=input.latents.bfloat16(), text=text)).prediction
    assert rough.dtype == torch.bfloat16
    assert (rough.float() - exact).norm() < 0.05 * exact.norm()


def test_patches_as_a_product_are_the_convolution():
    embed, latents = PatchEmbed(8, 6, (1, 2, 2)), torch.randn(2, 8, 3, 4, 6)
    expected = torch.stack([embed.proj(latents[:, :, t]) for t in range(3)], dim=2)
    torch.testing.assert_close(embed(latents), expected.flatten(2).transpose(1, 2))
    embed = PatchEmbed(8, 6, (3, 2, 2))
    torch.testing.assert_close(embed(latents), embed.proj(latents).flatten(2).transpose(1, 2))


# --- names, sizes, start --------------------------------------------------------------------------------------------


def published_shapes(d: int, layers: int, text: int, channels: int = 8, controls: bool = False) -> dict:
    """Keys and shapes of a released checkpoint, written out."""
    linear = lambda name, out, into: {f"{name}.weight": (out, into), f"{name}.bias": (out,)}  # noqa: E731
    conv = lambda name, c: {f"{name}.proj.weight": (d, c, 2, 2), f"{name}.proj.bias": (d,)}  # noqa: E731
    shapes = {"scale_shift_table": (2, d)} | conv("pos_embed", channels)
    shapes |= linear("caption_projection.linear_1", d, text) | linear("caption_projection.linear_2", d, d)
    shapes |= linear("adaln_single.emb.timestep_embedder.linear_1", d, 256)
    shapes |= linear("adaln_single.emb.timestep_embedder.linear_2", d, d)
    shapes |= linear("adaln_single.linear", 6 * d, d) | linear("proj_out", 4 * channels, d)
    for i in range(layers):
        block = f"transformer_blocks.{i}"
        shapes[f"{block}.scale_shift_table"] = (6, d)
        for part in ("to_q", "to_k", "to_v", "to_out.0"):
            shapes |= linear(f"{block}.attn1.{part}", d, d) | linear(f"{block}.attn2.{part}", d, d)
        shapes |= linear(f"{block}.ff.net.0.proj", 4 * d, d) | linear(f"{block}.ff.net.2", d, 4 * d)
    if controls:
        for name, c in (("pos_embed_masked_hidden_states", channels), ("pos_embed_mask", 4)):
            shapes |= conv(f"{name}.0", c) | {f"{name}.1.weight": (d, d)}
    return shapes


@pytest.mark.parametrize("controls", [False, True])
def test_names_and_shapes_are_the_published_ones(make, controls):
    model = make(control_channels=(8, 4) if controls else ())
    found = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert found == published_shapes(24, 4, TEXT, controls=controls)


@pytest.mark.parametrize(
    ("name", "parameters", "keys"),
    [("open_sora_plan", 2_771_981_600, 687), ("open_sora_plan_i2v", 2_782_713_632, 693)],
)
def test_published_sizes(name, parameters, keys):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", [f"model=paper/{name}"]).model
    latent = LatentShape(**config.published.latent)
    with torch.device("meta"):
        model = make_backbone(config, Stride(4, 8, 8))(latent=latent, text_width=config.published.text_width)
    state = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert (sum(p.numel() for p in model.parameters()), len(state)) == (parameters, keys)
    assert state == published_shapes(2304, 32, 4096, controls=keys == 693)
    assert model.token_count(latent) == 24 * 22 * 40
    kinds = [type(block.layout) for block in model.transformer_blocks]
    assert [i for i, kind in enumerate(kinds) if kind is Full3D] == [0, 1, 30, 31]
    assert all(kind is (GroupSkip if i % 2 else SingleSkip) for i, kind in enumerate(kinds) if 1 < i < 30)


def test_a_new_model_starts_as_the_original(make):
    model = make(width=96, control_channels=(8, 4))
    tables = torch.cat([block.scale_shift_table for block in model.transformer_blocks])
    assert tables.std().item() == pytest.approx(96**-0.5, rel=0.1)
    assert model.adaln_single.emb.timestep_embedder.linear_1.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.caption_projection.linear_2.weight.std().item() == pytest.approx(0.02, rel=0.05)
    limit = math.sqrt(6 / (8 * 4 + 96))  # of the flattened convolution
    assert 0.95 * limit < model.pos_embed.proj.weight.max() <= limit
    limit = math.sqrt(6 / (96 + 6 * 96))
    assert 0.95 * limit < model.adaln_single.linear.weight.max() <= limit  # the modulation is not silent
    assert model.proj_out.weight.any()
    assert not model.pos_embed_mask[1].weight.any() and not model.pos_embed_masked_hidden_states[1].weight.any()


def test_controls_change_nothing_at_the_start(make, make_text):
    parent, child = speaking(make()), make(control_channels=(8, 4)).eval()
    assert child.load_state_dict(parent.state_dict(), strict=False).unexpected_keys == []
    for seed in range(3):
        torch.manual_seed(seed)
        input = example(make_text(), controls=True)
        with torch.no_grad():
            assert torch.equal(child(input).prediction, parent(replace(input, controls=None)).prediction)


def test_each_control_is_heard_once_its_linear_is_not_zero(make, make_text):
    model, input = speaking(make(control_channels=(8, 4))), example(make_text(), controls=True)
    for channel in (0, 11):
        channels = input.controls.channels.clone()
        channels[:, channel] += 1
        other = replace(input, controls=replace(input.controls, channels=channels))
        assert not torch.allclose(model(other).prediction, model(input).prediction, atol=1e-4)


def test_gradient_reaches_every_parameter(make, make_text):
    model = speaking(make(control_channels=(8, 4))).train()
    (model(example(make_text(), controls=True)).prediction - 1).square().mean().backward()
    silent = {name for name, p in model.named_parameters() if p.grad is None or p.grad.abs().max() < 1e-7}
    # a bias of all keys adds the same to every score of a query: softmax, and so the loss, do not see it. Rotary
    # positions undo that in self-attention.
    assert silent == {f"transformer_blocks.{i}.attn2.to_k.bias" for i in range(4)}


def test_recomputing_activations_changes_no_gradient(make, make_text):
    plain, saving = speaking(make()), make(activation_checkpointing=True)
    saving.load_state_dict(plain.state_dict())
    input = example(make_text())
    for model in (plain, saving):
        model.train()(input).prediction.square().sum().backward()
    for (name, a), b in zip(plain.named_parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name)


@pytest.mark.parametrize("patch", [(1, 2, 2), (2, 2, 2)])
def test_one_level_per_frame(make, make_text, patch):
    model, input = speaking(make(patch=patch)), example(make_text())
    level = input.embedded_t[:, None].expand(2, 4)
    same = replace(input, t=level / 999, embedded_t=level)
    torch.testing.assert_close(model(same).prediction, model(input).prediction, rtol=1e-5, atol=1e-5)
    other = replace(same, embedded_t=torch.cat([level[:, :2], level[:, 2:] + 300], dim=1))
    assert not torch.allclose(model(other).prediction, model(input).prediction, atol=1e-3)


def test_positions_can_be_interpolated(make, make_text):
    plain, squeezed = speaking(make()), make(rope_scale=(2, 1, 1)).eval()
    squeezed.load_state_dict(plain.state_dict())
    input = example(make_text())
    assert not torch.allclose(plain(input).prediction, squeezed(input).prediction, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 20}, r"model.backbone.heads=2 with width=20: .* multiple of 6.* Use width=24"),
        ({"patch": (1, 2, 3)}, r"model.backbone.patch=\[1, 2, 3\] does not divide the latents: their width is 8"),
        ({"patch": (2, 2)}, r"give three numbers"),
        ({"depth": 0}, r"model.backbone.depth=0"),
        ({"heads": 0}, r"model.backbone.heads=0"),
        ({"rope_scale": (1, 0, 1)}, r"model.backbone.rope_scale"),
    ],
)
def test_sizes_that_cannot_work(make, settings, message):
    with pytest.raises(UserError, match=message):
        make(**settings)


def test_inputs_that_cannot_work(make):
    with pytest.raises(ValueError, match="12 control channels and got 0"):
        make(control_channels=(8, 4))(example(None))
    with pytest.raises(ValueError, match="no_such_feature"):
        make()(replace(example(None), requested=frozenset({"no_such_feature"})))
