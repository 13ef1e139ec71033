from dataclasses import replace

import pytest
import torch
from torch import nn

from vidlab.clip import Controls, DenoiserInput, LatentShape, TextEmbedding
from vidlab.errors import UserError
from vidlab.layers.layouts import Full3D, Grid, Spatial, Temporal

SHAPE = (3, 4, 4, 6)


def example(text: TextEmbedding | None, batch: int = 2, shape=SHAPE) -> DenoiserInput:
    t = torch.rand(batch)
    return DenoiserInput(torch.randn(batch, *shape), t, 1000 * t, text)


def awaken(module: nn.Module) -> nn.Module:
    """Nothing at zero: every branch speaks."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.2)
    return module


def test_a_new_model_predicts_exactly_zero_and_its_blocks_are_the_identity(make_dit, make_text):
    dit = make_dit()
    tokens, kept = [], []

    def keep(_, inputs, output):
        tokens.append(inputs[0])
        kept.append(output)

    for block in dit.blocks:
        block.register_forward_hook(keep)
    assert torch.equal(dit(example(make_text())).prediction, torch.zeros(2, *SHAPE))
    assert len(tokens) == 2 and all(torch.equal(a, b) for a, b in zip(tokens, kept, strict=True))
    assert tokens[0].abs().max() > 0.1


@pytest.mark.parametrize("autocast", [True, False])
@torch.no_grad()
def test_the_residual_stream_has_the_type_that_is_computed_in(make_dit, make_text, autocast):
    dit, seen = awaken(make_dit()), []
    for block in dit.blocks:
        block.register_forward_hook(lambda _, inputs, output: seen.extend((inputs[0].dtype, output.dtype)))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        dit(example(make_text()))
    assert seen == [torch.bfloat16 if autocast else torch.float32] * 4


def silent(dit, input: DenoiserInput) -> set[str]:
    """Parameters that a squared error against random numbers gives no gradient, at the present weights."""
    dit.zero_grad()
    (dit(input).prediction - torch.randn(input.latents.shape)).square().mean().backward()
    return {name for name, p in dit.named_parameters() if p.grad is None or p.grad.abs().max() == 0}


def behind_closed_gates(name: str) -> bool:
    """What the first step after the start cannot reach: gates and the modulation's own weights are still zero."""
    inside = (".attention.", ".mlp.", ".cross_attention.q", ".cross_attention.k")
    return any(part in name for part in inside) or name.startswith(("time.", "text_pooled.", "text_tokens."))


@pytest.mark.parametrize("qk_norm", [True, False])
def test_gradient_reaches_everything_after_two_steps(make_dit, make_text, qk_norm):
    dit, input = make_dit(qk_norm=qk_norm), example(make_text())
    names = {name for name, _ in dit.named_parameters()}
    optimizer = torch.optim.SGD(dit.parameters(), lr=0.5)
    assert silent(dit, input) == names - {"head.weight", "head.bias"}
    optimizer.step()
    # the open ends of every branch: gates, the cross-attention output, the embedding of patches, the head
    assert silent(dit, input) == {name for name in names if behind_closed_gates(name)}
    optimizer.step()
    silent(dit, input)
    optimizer.step()
    assert silent(dit, input) == set()


def test_only_absolute_positions_tell_equal_tokens_apart(make_dit, make_text):
    # rotary positions turn queries and keys: an average of equal values stays the same wherever it is taken
    input = replace(example(make_text()), latents=torch.full((2, *SHAPE), 0.3))
    for absolute in (False, True):
        prediction = awaken(make_dit(absolute_positions=absolute))(input).prediction
        spread = prediction.unfold(3, 2, 2).unfold(4, 2, 2).std(dim=(3, 4)).max()
        assert (spread > 0.1) == absolute, spread


def test_without_text_only_the_parameters_of_text_are_idle(make_dit):
    dit = awaken(make_dit())
    idle = silent(dit, example(None))
    assert idle == {name for name, _ in dit.named_parameters() if "text_" in name or "cross_attention" in name}


@pytest.mark.parametrize("autocast", [False, True])
def test_padding_of_a_caption_changes_nothing(make_dit, make_text, autocast):
    dit, text = awaken(make_dit()), make_text((5, 2))
    input = example(text)
    tokens = text.tokens.clone()
    tokens[1, 2:] = 100.0
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        before = dit(input).prediction
        padded = dit(replace(input, text=replace(text, tokens=tokens))).prediction
        tokens[1, 1] = 0.0
        heard = dit(replace(input, text=replace(text, tokens=tokens))).prediction
    assert torch.equal(before, padded)
    assert torch.equal(before[0], heard[0]) and not torch.allclose(before[1], heard[1])


@pytest.mark.parametrize("field", ["t", "pooled"])
def test_the_noise_level_and_the_pooled_text_are_heard(make_dit, make_text, field):
    dit, input = awaken(make_dit()), example(make_text())
    if field == "t":
        other = replace(input, t=input.t + 0.1, embedded_t=input.embedded_t + 100)
    else:
        other = replace(input, text=replace(input.text, pooled=input.text.pooled + 1))
    assert not torch.allclose(dit(input).prediction, dit(other).prediction, atol=1e-2)


def test_clips_of_a_batch_do_not_see_each_other(make_dit, make_text):
    dit, input = awaken(make_dit()), example(make_text((4, 4)))
    text = input.text
    alone = DenoiserInput(
        input.latents[1:], input.t[1:], input.embedded_t[1:],
        TextEmbedding(text.tokens[1:], text.mask[1:], text.pooled[1:]),
    )  # fmt: skip
    torch.testing.assert_close(dit(input).prediction[1:], dit(alone).prediction, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("patch", [(1, 2, 2), (2, 2, 3)])
def test_one_level_per_frame(make_dit, make_text, patch):
    dit, input = awaken(make_dit(patch=patch)), example(make_text())
    level = input.embedded_t
    same = replace(input, t=input.t[:, None].expand(2, 4), embedded_t=level[:, None].expand(2, 4))
    torch.testing.assert_close(dit(same).prediction, dit(input).prediction, rtol=1e-4, atol=1e-4)


def test_a_frames_level_modulates_its_own_tokens_alone(make_dit):
    # spatial attention keeps frames apart, so only frame 2 can tell its level has changed
    dit, input = awaken(make_dit(layouts=(Spatial(),))), example(None)
    levels = torch.rand(2, 4)
    a = replace(input, t=levels, embedded_t=1000 * levels)
    levels = levels.clone()
    levels[:, 2] += 0.3
    b = replace(input, t=levels, embedded_t=1000 * levels)
    change = (dit(a).prediction - dit(b).prediction).abs().amax(dim=(0, 1, 3, 4))
    assert (change > 0).tolist() == [False, False, True, False]


def test_a_patch_sees_the_mean_level_of_its_frames(make_dit):
    dit, input = awaken(make_dit(patch=(2, 2, 2))), example(None)
    levels = torch.rand(2, 4)
    per_frame = dit.time(1000 * levels)
    expected = (per_frame[:, 0::2] + per_frame[:, 1::2]) / 2
    _, condition = dit._context(replace(input, t=levels, embedded_t=1000 * levels), Grid(2, 2, 3))
    torch.testing.assert_close(condition.view(2, 2, 6, 24), expected[:, :, None].expand(2, 2, 6, 24))


def test_layouts_are_cycled_over_the_layers(make_dit):
    dit = make_dit(layouts=(Spatial(), Temporal()), depth=5)
    kinds = [type(block.layout) for block in dit.blocks]
    assert kinds == [Spatial, Temporal, Spatial, Temporal, Spatial]


def test_a_layout_changes_no_parameter(make_dit):
    full, factored = make_dit(), make_dit(layouts=(Spatial(), Temporal()))
    factored.load_state_dict(full.state_dict())


def test_recomputing_activations_changes_no_gradient(make_dit, make_text):
    plain, saving = awaken(make_dit()), make_dit(activation_checkpointing=True)
    saving.load_state_dict(plain.state_dict())
    input = example(make_text())
    for dit in (plain, saving):
        dit.train()(input).prediction.square().sum().backward()
    for (name, a), b in zip(plain.named_parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name)


def test_tokens_are_counted(make_dit):
    assert make_dit().token_count(LatentShape(3, 4, 4, 6)) == 4 * 2 * 3


@pytest.mark.parametrize("shape", [(3, 4, 5, 6), (3, 4, 4, 7)])
def test_latents_that_do_not_divide_into_patches(make_dit, shape):
    with pytest.raises(ValueError, match=r"do not divide into patches of 1x2x2"):
        make_dit()(example(None, shape=shape))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 25}, r"model.backbone.width=25 is not a multiple of model.backbone.heads=2"),
        ({"heads": 6}, r"model.backbone.heads=6 with width=24: head_dim=4.*at least 6"),
        ({"width": 14}, r"model.backbone.heads=2 with width=14: head_dim=7.*even"),
        ({"patch": (1, 2, 4)}, r"model.backbone.patch=\[1, 2, 4\] does not divide .* width is 6"),
        ({"patch": (3, 1, 1)}, r"their frames is 4"),
        ({"layouts": ()}, r"model.backbone.layouts"),
        ({"depth": 0}, r"model.backbone.depth=0"),
        ({"heads": 0}, r"model.backbone.heads=0"),
        ({"patch": (1, 0, 2)}, r"model.backbone.patch=0"),
    ],
)
def test_sizes_that_cannot_work(make_dit, settings, message):
    with pytest.raises(UserError, match=message):
        make_dit(**settings)


def test_unknown_features_are_refused(make_dit):
    with pytest.raises(ValueError, match=r"DiT has no feature \['h_space'\]; it has \['self_attention'\]"):
        make_dit()(replace(example(None), requested=frozenset({"h_space"})))


def test_the_position_of_a_token_matters_along_every_axis(make_dit):
    # all latents alike but one: moving that one moves the answer, and not by a mere permutation
    dit = awaken(make_dit(layouts=(Full3D(),), width=16))  # heads of 8: four planes for three axes
    answers = []
    for place in ((0, 0, 0), (1, 0, 0), (0, 2, 0), (0, 0, 2)):
        latents = torch.ones(1, *SHAPE)
        t, y, x = place
        latents[:, :, t, y : y + 2, x : x + 2] = -1.0
        input = DenoiserInput(latents, torch.tensor([0.5]), torch.tensor([500.0]))
        answer = dit(input).prediction
        answers.append(answer[:, :, t, y : y + 2, x : x + 2].detach())
    assert all(not torch.allclose(answers[0], other, atol=1e-4) for other in answers[1:])


# controls and warm starts


def test_new_controls_change_nothing(make_dit, make_text):
    plain = awaken(make_dit())
    controlled = make_dit(control_channels=(3, 2))
    missing = controlled.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert missing and all(name.startswith("controls.") for name in missing)
    input = example(make_text())
    controls = Controls(torch.randn(2, 5, *SHAPE[1:]), torch.ones(2, 1, *SHAPE[1:]))
    assert torch.equal(controlled(replace(input, controls=controls)).prediction, plain(input).prediction)
    with pytest.raises(ValueError, match="built for 5 control channels and got 0"):
        controlled(input)


def test_an_image_model_inflated_along_time_embeds_a_still_video_as_its_image(make_dit):
    image, video = awaken(make_dit(patch=(1, 2, 2))), awaken(make_dit(patch=(2, 2, 2)))
    still = torch.randn(1, 3, 1, 4, 6).expand(1, 3, 2, 4, 6)
    with torch.no_grad():
        for name in ("embed.weight", "head.weight", "head.bias"):
            video.get_parameter(name).copy_(video.inflated(name, image.get_parameter(name)))
        video.embed.bias.copy_(image.embed.bias)
    frame = image.embed_patches(DenoiserInput(still[:, :, :1], torch.ones(1), torch.ones(1)))
    tokens = video.embed_patches(DenoiserInput(still, torch.ones(1), torch.ones(1)))
    torch.testing.assert_close(tokens, frame)
    answers = video.head(tokens).unflatten(-1, (3, 2, 4))
    torch.testing.assert_close(answers, image.head(frame).unflatten(-1, (3, 1, 4)).expand_as(answers))
    assert video.inflated("blocks.0.mlp.0.weight", torch.ones(2, 2)) is None
    assert video.inflated("embed.weight", torch.ones(24, 5)) is None
