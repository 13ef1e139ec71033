"""STIV: what each switch changes, what masking computes, and how a video model grows out of an image model."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from vidlab.backbones.stiv import STIV
from vidlab.backbones.stiv_block import BlockOptions, CausalTemporal, Modulation
from vidlab.backbones.stiv_conditions import MICRO, SingletonCondition
from vidlab.backbones.stiv_masking import fill, keep, keep_rotation, kept_places
from vidlab.clip import Controls, DenoiserInput, LatentShape, Stride, TextEmbedding
from vidlab.errors import UserError
from vidlab.lab.compose import make_backbone
from vidlab.layers.layouts import Full3D, Grid
from vidlab.layers.patches import per_token
from vidlab.layers.rope import rotation_along
from vidlab.training.warm_start import Source, inherit

CONF = Path(__file__).parents[2] / "conf"
SHAPE = (3, 4, 4, 6)
TEXT = 10
PLACES = 6  # 4 x 6 latents in patches of 2 x 2


@pytest.fixture
def make() -> Callable[..., STIV]:
    def build(**settings) -> STIV:
        sizes = {"width": 24, "depth": 3, "heads": 2, "patch": (2, 2, 2), "latent": LatentShape(*SHAPE)}
        return STIV(text_width=TEXT, **(sizes | settings))

    return build


def awaken(module: nn.Module, std: float = 0.2) -> nn.Module:
    """Nothing at its start: every branch speaks."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=std)
    return module.eval()


def example(text: TextEmbedding | None = None, shape=SHAPE, batch: int = 2, **fields) -> DenoiserInput:
    t = torch.rand(batch)
    return DenoiserInput(torch.randn(batch, *shape), t, 1000 * t, text, **fields)


def influence(model: STIV, input: DenoiserInput, frame: int, row: int, column: int) -> torch.Tensor:
    """Which latents, by (frame, row, column), one prediction depends on, in the first clip."""
    latents = input.latents.clone().requires_grad_()
    model(replace(input, latents=latents)).prediction[0, :, frame, row, column].sum().backward()
    return latents.grad[0].abs().amax(0) > 0


# --- the block ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("around_one", [False, True])
@pytest.mark.parametrize("sandwich", [False, True])
@pytest.mark.parametrize("temporal", [False, True], ids=["plain", "modulated"])
def test_a_block_is_its_four_residual_branches(make, make_text, sandwich, around_one, temporal):
    model = make(depth=1, sandwich_norm=sandwich, scale_around_one=around_one, temporal_modulation=temporal)
    awaken(model)
    block, text, x = model.blocks[0], make_text((4, 2)), torch.randn(2, 12, 24)
    input = example(text)
    step = model._step(input, Grid(2, 2, 3), Grid(2, 2, 3), model.condition(input)[:, None])
    (s, m, *rest) = block.modulation(step.condition)

    def norm(x):
        return (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, keepdim=True, unbiased=False) + 1e-6)

    def modulated(x, parts, branch):
        shift, scale, gate = parts
        out = branch((scale + 1 if around_one else scale) * norm(x) + shift)
        return x + gate * (norm(out) if sandwich else out)

    def by_frame(h):  # each frame alone: positions along rows and columns only
        parts = [h.view(2, 2, 6, 24)[:, t] for t in range(2)]
        return torch.cat([block.spatial(part, Full3D(), Grid(1, 2, 3), step.spatial[:6]) for part in parts], dim=1)

    def by_place(h):
        parts = h.view(2, 2, 6, 24).unbind(2)
        mixed = [block.temporal(part, Full3D(), Grid(2, 1, 1), step.temporal[::6]) for part in parts]
        return torch.stack(mixed, dim=2).flatten(1, 2)

    y = modulated(x, s, by_frame)
    y = modulated(y, rest[0], by_place) if temporal else y + by_place(norm(y))
    y = y + block.cross_attention(norm(y), step.text, text.mask)
    y = modulated(y, m, block.mlp)
    torch.testing.assert_close(block(x, step), y, rtol=1e-4, atol=1e-5)


def test_space_and_time_are_seen_by_their_own_attention(make):
    input = example()
    frames, rows, columns = SHAPE[1:]
    spatial = awaken(make(depth=1, temporal_attention=False))
    seen = influence(spatial, input, frame=0, row=0, column=0)
    assert seen[:2].all() and not seen[2:].any()  # every place of its own patch of two frames
    both = awaken(make(depth=1))
    seen = influence(both, input, frame=0, row=0, column=0)
    assert seen.all()  # space first, then time: one block reaches the whole clip
    assert seen.shape == (frames, rows, columns)


@pytest.mark.parametrize("causal", [False, True])
def test_causal_attention_sees_no_later_frame(make, causal):
    model = awaken(make(patch=(1, 2, 2), causal_temporal=causal))
    for frame in range(4):
        seen = influence(model, example(), frame, 1, 1).amax(dim=(1, 2)).tolist()
        assert seen == [not causal or other <= frame for other in range(4)]


def test_the_causal_mask_by_hand():
    mask = CausalTemporal().key_mask(Grid(3, 2, 2), 1, 1)
    assert mask[0, 0].int().tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]


def test_qk_norm_bounds_the_logits(make):
    largest = {}
    for qk_norm in (False, True):
        model = awaken(make(depth=1, heads=1, qk_norm=qk_norm))
        attention = model.blocks[0].spatial
        if qk_norm:
            nn.init.ones_(attention.q_norm.gain)
            nn.init.ones_(attention.k_norm.gain)
        logits = []
        attention.kernel = lambda q, k, v, mask=None, logits=logits: (
            logits.append(torch.einsum("blnd,bsnd->bnls", q, k).abs().max() / math.sqrt(q.shape[-1])) or v
        )
        with torch.no_grad():
            attention.qkv.weight.mul_(50)
            model(example())
        largest[qk_norm] = float(max(logits))
    assert largest[True] <= math.sqrt(24) + 1e-4 < largest[False]  # unit mean squares: at most sqrt d


def test_literal_scales_start_at_one_and_differ_from_scales_around_one_only_in_what_is_learned(make):
    literal, around = make(scale_around_one=False), make(scale_around_one=True)
    d = 24
    assert literal.adaln.bias.view(2, 3, d)[:, 1].eq(1).all() and literal.adaln.bias.sum() == 2 * d
    assert not around.adaln.bias.any()
    awaken(literal)
    around.load_state_dict(literal.state_dict())
    with torch.no_grad():
        around.adaln.bias.view(2, 3, d)[:, 1] -= 1
    input = example()
    torch.testing.assert_close(literal(input).prediction, around.eval()(input).prediction, rtol=1e-4, atol=1e-4)


def test_sandwich_norm_takes_the_scale_of_a_branch_away(make):
    for sandwich in (False, True):
        model, input = awaken(make(depth=1, sandwich_norm=sandwich)), example()
        before = model(input).prediction
        with torch.no_grad():
            for linear in (model.blocks[0].spatial.out, model.blocks[0].mlp[-1]):
                linear.weight.mul_(8)
                linear.bias.mul_(8)
        assert torch.allclose(model(input).prediction, before, atol=1e-3) == sandwich


def test_singleton_norm_takes_the_scale_of_a_condition_away(make_text):
    for norm in (False, True):
        condition = awaken(SingletonCondition(24, TEXT, ["crop"], norm), 0.5)
        text, micro = make_text(), {"crop": torch.tensor([[3.0, 5.0], [0.0, 9.0]])}
        input = example(text, micro=micro)
        before = condition(input)
        with torch.no_grad():
            condition.pooled.weight.mul_(10)
            condition.pooled.bias.mul_(10)
        assert torch.allclose(condition(input), before, atol=1e-3) == norm


def test_the_singleton_condition_is_a_sum(make_text):
    text, micro = make_text(), {"frames": torch.tensor([20.0, 40.0]), "crop": torch.zeros(2, 2)}
    condition, input = awaken(SingletonCondition(24, TEXT, ["crop", "frames"], norm=True)), example(text, micro=micro)
    parts = [condition.time(input.embedded_t), condition.pooled(text.pooled)]
    parts += [condition.micro["crop"](micro["crop"]), condition.micro["frames"](micro["frames"][:, None])]
    torch.testing.assert_close(condition(input), sum(F.layer_norm(part, (24,), eps=1e-6) for part in parts))
    level = input.embedded_t[:, None].expand(2, 4)
    per_frame = condition(replace(input, t=level / 1000, embedded_t=level))
    torch.testing.assert_close(per_frame, condition(input)[:, None].expand(2, 4, 24))


@pytest.mark.parametrize(("shared", "offsets"), [(True, True), (True, False), (False, False), (False, True)])
def test_where_modulation_comes_from(make, shared, offsets):
    model = make(shared_adaln=shared, layer_offsets=offsets)
    names = {name.partition(".")[2].partition(".")[2] for name in model.state_dict() if name.startswith("blocks.0.mod")}
    assert names == ({"modulation.own.weight", "modulation.own.bias"} if not shared else set()) | (
        {"modulation.offsets"} if offsets else set()
    )
    assert (model.adaln is not None) == shared


def test_a_shared_projection_saves_what_the_layers_had():
    one, each = (Modulation(24, BlockOptions(shared_adaln=shared, layer_offsets=False)) for shared in (True, False))
    assert sum(p.numel() for p in each.parameters()) == 6 * 24 * 25
    assert list(one.parameters()) == []
    values = torch.randn(2, 1, 144)
    pairs = one(values)
    assert len(pairs) == 2 and torch.equal(torch.cat([x for pair in pairs for x in pair], dim=-1), values)


def test_temporal_modulation_adds_its_three_vectors(make):
    plain, modulated = make(), make(temporal_modulation=True)
    assert modulated.adaln.out_features == 9 * 24 and plain.adaln.out_features == 6 * 24
    assert make(temporal_modulation=True, temporal_attention=False).adaln.out_features == 6 * 24
    awaken(modulated)
    with torch.no_grad():  # a closed gate
        modulated.adaln.weight.view(3, 3, 24, 24)[2, 2] = 0
        modulated.adaln.bias.view(3, 3, 24)[2, 2] = 0
        for block in modulated.blocks:
            block.modulation.offsets.view(3, 3, 24)[2, 2] = 0
    assert not influence(modulated, example(), 0, 0, 0)[2:].any()


# --- the whole ------------------------------------------------------------------------------------------------------


def test_a_new_model_predicts_zero_and_wakes_up_whole(make, make_text):
    for settings in ({}, {"temporal_modulation": True}, {"shared_adaln": False, "scale_around_one": True}):
        model = make(micro_conditions=["frames"], control_channels=(2,), mask_ratio=0.5, **settings).train()
        input = example(
            make_text(),
            micro={"frames": torch.tensor([4.0, 8.0]), "token_drop": torch.rand(2, PLACES)},
            controls=Controls(torch.randn(2, 2, 4, 4, 6), torch.ones(2, 1, 4, 4, 6)),
        )
        assert not model(input).prediction.any()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        for _ in range(4):
            optimizer.zero_grad()
            (model(input).prediction - torch.randn(input.latents.shape)).square().mean().backward()
            optimizer.step()
        silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
        assert silent == [], settings


@pytest.mark.parametrize("name", sorted(MICRO))
def test_micro_conditions_are_heard_and_asked_for(make, name):
    model = awaken(make(micro_conditions=[name]))
    values = torch.full((2, MICRO[name]), 64.0)
    input = example(micro={name: values})
    assert not torch.allclose(
        model(input).prediction, model(replace(input, micro={name: values + 40})).prediction, atol=1e-3
    )
    with pytest.raises(ValueError, match=f"micro-condition '{name}' and the input has none"):
        model(replace(input, micro={}))
    with pytest.raises(ValueError, match=rf"must be \(batch, {MICRO[name]}\)"):
        model(replace(input, micro={name: torch.zeros(2, 5)}))


def test_one_number_per_clip_may_be_flat(make):
    model, input = awaken(make(micro_conditions=["frames"])), example()
    flat, column = ({"frames": values} for values in (torch.tensor([8.0, 9.0]), torch.tensor([[8.0], [9.0]])))
    assert torch.equal(model(replace(input, micro=flat)).prediction, model(replace(input, micro=column)).prediction)


def test_controls_change_nothing_at_the_start(make, make_text):
    parent, child = awaken(make()), make(control_channels=(3, 1)).eval()
    child.load_state_dict(parent.state_dict(), strict=False)
    input = example(make_text())
    controls = Controls(torch.randn(2, 4, 4, 4, 6), torch.ones(2, 1, 4, 4, 6))
    assert torch.equal(child(replace(input, controls=controls)).prediction, parent(input).prediction)


@pytest.mark.parametrize("patch", [(1, 2, 2), (2, 2, 2)])
def test_one_level_per_frame(make, make_text, patch):
    model, input = awaken(make(patch=patch)), example(make_text())
    level = input.embedded_t[:, None].expand(2, 4)
    same = replace(input, t=level / 1000, embedded_t=level)
    torch.testing.assert_close(model(same).prediction, model(input).prediction, rtol=1e-4, atol=1e-4)


def test_positions_squeezed_by_two_on_a_grid_twice_as_large_are_the_same_at_even_places():
    small = rotation_along(Grid(2, 3, 4), (4, 2, 2)).view(2, 3, 4, 8, 2)
    large = rotation_along(Grid(4, 6, 8), (4, 2, 2), scale=(2.0, 2.0, 2.0)).view(4, 6, 8, 8, 2)
    assert torch.equal(large[::2, ::2, ::2], small)


def test_the_model_passes_its_scale_on(make):
    model = make(rope_scale=(2, 4, 8))
    input = example()
    step = model._step(input, Grid(2, 2, 3), Grid(2, 2, 3), model.condition(input)[:, None])
    assert torch.equal(step.temporal, rotation_along(Grid(2, 2, 3), (6, 0, 0), scale=(2.0, 4.0, 8.0)))
    assert torch.equal(step.spatial, rotation_along(Grid(2, 2, 3), (0, 3, 3), scale=(2.0, 4.0, 8.0)))


def test_recomputing_activations_changes_no_gradient(make, make_text):
    plain, saving = awaken(make(mask_ratio=0.5)), make(mask_ratio=0.5, activation_checkpointing=True)
    saving.load_state_dict(plain.state_dict())
    input = example(make_text(), micro={"token_drop": torch.rand(2, PLACES)})
    for model in (plain, saving):
        model.train()(input).prediction.square().sum().backward()
    for (name, a), b in zip(plain.named_parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name)


# --- masking --------------------------------------------------------------------------------------------------------


def test_places_are_kept_by_the_lowest_scores_and_in_order():
    scores = torch.tensor([[0.9, 0.1, 0.5, 0.3], [0.2, 0.4, 0.1, 0.8]])
    assert kept_places(scores, 0.5).tolist() == [[1, 3], [0, 2]]
    assert kept_places(scores, 0.25).tolist() == [[1, 2, 3], [0, 1, 2]]
    assert kept_places(scores, 0.99).tolist() == [[1], [2]]


def test_keeping_and_filling_by_hand():
    grid, kept = Grid(2, 1, 3), torch.tensor([[0, 2]])
    tokens = torch.arange(6.0).view(1, 6, 1)
    fewer, smaller = keep(tokens, kept, grid)
    assert fewer.flatten().tolist() == [0, 2, 3, 5] and smaller == Grid(2, 1, 2)
    assert fill(fewer, kept, grid, torch.tensor([9.0])).flatten().tolist() == [0, 9, 2, 3, 9, 5]


def test_kept_places_keep_their_positions():
    grid, kept = Grid(2, 2, 3), torch.tensor([[0, 4], [1, 5]])
    whole = rotation_along(grid, (2, 2, 2))
    angles = keep_rotation(whole, kept, grid)
    assert angles.shape == (2, 4, 1, 6, 2)
    for clip, tokens in enumerate(([0, 4, 6, 10], [1, 5, 7, 11])):
        assert torch.equal(angles[clip], whole[tokens])


@pytest.fixture
def masked(make) -> STIV:
    return awaken(make(mask_ratio=0.5, unmask_blocks=1)).train()


def test_dropped_places_are_not_looked_at_and_kept_ones_are_answered(masked):
    scores = torch.tensor([[0.0, 1.0, 0.1, 0.9, 0.2, 0.8]]).repeat(2, 1)  # keeps places 0, 2, 4
    input = example(micro={"token_drop": scores})
    latents = input.latents.clone()
    latents[..., :2, 2:4] += 5  # place 1: row 0, column 1
    other = replace(input, latents=latents)
    assert torch.equal(masked(input).prediction, masked(other).prediction)
    masked.eval()
    assert not torch.allclose(masked(input).prediction, masked(other).prediction, atol=1e-3)


def test_without_blocks_after_unmasking_a_dropped_place_has_the_answer_of_the_mask_token(make):
    model = awaken(make(mask_ratio=0.5, unmask_blocks=0)).train()
    scores = torch.tensor([[0.0, 1.0, 0.1, 0.9, 0.2, 0.8]])
    prediction = model(example(batch=1, micro={"token_drop": scores})).prediction[0]
    corner = {(y, x): prediction[:, :2, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2] for y in range(2) for x in range(3)}
    torch.testing.assert_close(corner[0, 1], corner[1, 0])  # places 1, 3 and 5 are dropped
    assert not torch.allclose(corner[0, 0], corner[0, 2], atol=1e-3)


@pytest.mark.parametrize("level_per_frame", [False, True])
def test_kept_tokens_are_those_of_a_smaller_clip_with_their_old_positions(masked, make_text, level_per_frame):
    """What the main blocks compute on half the tokens is dense attention among the kept ones."""
    text = make_text((4, 2))
    scores = torch.rand(2, PLACES)
    input, grid = example(text, micro={"token_drop": scores}), Grid(2, 2, 3)
    if level_per_frame:
        input = replace(input, t=torch.rand(2, 4), embedded_t=1000 * torch.rand(2, 4))
    seen = []
    for block in masked.blocks:
        block.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0].shape[1], output.detach())))
    masked(input)
    assert [length for length, _ in seen] == [6, 6, 12]
    kept = kept_places(scores, 0.5)
    condition = per_token(masked.condition(input), 2, grid)
    whole = masked._step(input, grid, grid, condition.expand(2, 12, 24))
    tokens = masked.embed_patches(input)
    for clip in range(2):  # each clip alone, its tokens gathered by hand
        index = [t * PLACES + place for t in range(2) for place in kept[clip].tolist()]
        step = replace(
            whole, grid=Grid(2, 1, 3), spatial=whole.spatial[index], temporal=whole.temporal[index],
            condition=whole.condition[clip : clip + 1, index], text=whole.text[clip : clip + 1],
            text_mask=text.mask[clip : clip + 1],
        )  # fmt: skip
        alone = masked.blocks[1](masked.blocks[0](tokens[clip : clip + 1, index], step), step)
        torch.testing.assert_close(alone[0], seen[1][1][clip], rtol=1e-4, atol=1e-5)


def test_the_masked_blocks_cost_half(make):
    flops = {}
    for ratio in (0.0, 0.5):
        model = make(depth=8, mask_ratio=ratio, unmask_blocks=0, width=48, latent=LatentShape(3, 4, 8, 8)).train()
        input = example(shape=(3, 4, 8, 8), micro={"token_drop": torch.rand(2, 16)})
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(input)
        flops[ratio] = counter.get_total_flops()
    assert 0.4 < flops[0.5] / flops[0.0] < 0.55


def test_what_micro_must_hold_is_known_beforehand(make):
    model = make(mask_ratio=0.5, micro_conditions=["crop", "frames"])
    assert model.micro_shapes(LatentShape(*SHAPE)) == {"crop": (2,), "frames": (1,), "token_drop": (PLACES,)}
    assert make().micro_shapes(LatentShape(*SHAPE)) == {}


def test_evaluation_drops_nothing_and_training_asks_for_its_numbers(masked):
    input = example()
    with pytest.raises(ValueError, match=r"no 'token_drop'.*\(2, 6\)"):
        masked(input)
    with pytest.raises(ValueError, match=r"'token_drop' is \(2, 5\)"):
        masked(replace(input, micro={"token_drop": torch.rand(2, 5)}))
    masked.eval()
    seen = []
    masked.blocks[0].register_forward_hook(lambda _, inputs, output: seen.append(inputs[0].shape[1]))
    masked(input)
    assert seen == [12]


def test_masking_one_clip_does_not_depend_on_the_others(masked, make_text):
    text = make_text((4, 4))
    input = example(text, micro={"token_drop": torch.rand(2, PLACES)})
    one = TextEmbedding(text.tokens[1:], text.mask[1:], text.pooled[1:])
    alone = DenoiserInput(
        input.latents[1:], input.t[1:], input.embedded_t[1:], one, micro={"token_drop": input.micro["token_drop"][1:]}
    )
    torch.testing.assert_close(masked(input).prediction[1:], masked(alone).prediction, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("level_per_frame", [False, True])
def test_masking_under_autocast_and_with_levels_per_frame(masked, make_text, level_per_frame):
    input = example(make_text(), micro={"token_drop": torch.rand(2, PLACES)})
    if level_per_frame:
        level = torch.rand(2, 4)
        input = replace(input, t=level, embedded_t=1000 * level)
    exact = masked(input).prediction
    with torch.autocast("cpu", torch.bfloat16):
        rough = masked(input).prediction
    assert (rough.float() - exact).norm() < 0.05 * exact.norm()
    rough.float().square().mean().backward()
    assert masked.mask_token.grad.any()


# --- an image model becomes a video model ---------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [1, 2, 4])
def test_a_video_that_stands_still_has_the_image_models_answer_in_every_frame(make, make_text, frames):
    controls = {"control_channels": (2,)}
    image = awaken(make(patch=(1, 2, 2), temporal_attention=False, latent=LatentShape(3, 1, 4, 6), **controls), 0.3)
    video = make(patch=(frames, 2, 2), **controls).eval()
    report = inherit(video, [Source("image", image.state_dict())], ["*temporal*"], adapt=video.inflated)
    assert all(".temporal." in name for name in report.fresh) and report.unused == ()
    inflated = {"embed.weight", "head.weight", "head.bias", "controls.0.embed.weight"}
    assert set(report.adapted) == (inflated if frames > 1 else set())
    text, still = make_text((4, 2)), torch.randn(2, 3, 1, 4, 6)
    control = torch.randn(2, 2, 1, 4, 6)
    one = example(text, controls=Controls(control, control[:, :1]))
    picture = image(replace(one, latents=still)).prediction
    many = Controls(control.expand(2, 2, 4, 4, 6), control[:, :1].expand(2, 1, 4, 4, 6))
    clip = video(replace(one, latents=still.expand(2, 3, 4, 4, 6), controls=many)).prediction
    torch.testing.assert_close(clip, picture.expand(2, 3, 4, 4, 6), rtol=1e-4, atol=1e-4)


def test_inflation_by_hand(make):
    video = make(patch=(2, 1, 1), latent=LatentShape(2, 2, 1, 1))
    grown = video.inflated("embed.weight", torch.tensor([[1.0, 2.0]]))  # two channels, patches of one number
    assert grown.tolist() == [[0.5, 0.5, 1.0, 1.0]]
    assert video.inflated("head.bias", torch.tensor([3.0, 4.0])).tolist() == [3.0, 3.0, 4.0, 4.0]
    assert video.inflated("text_tokens.weight", torch.ones(3, 3)) is None


# --- sizes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "parameters", "rule"),
    [
        ("stiv_xl", 766_369_600, 20), ("stiv_xxl", 1_832_008_000, 20), ("stiv_m", 8_821_990_720, 20),
        ("stiv_xl_t2i", 614_278_944, 16),
    ],
)  # fmt: skip
def test_published_sizes(name, parameters, rule):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", [f"model=paper/{name}"])
    published, sizes = config.model.published, config.model.backbone
    with torch.device("meta"):
        model = make_backbone(config.model, Stride(1, 8, 8))(
            latent=LatentShape(**published.latent), text_width=published.text_width
        )
    count = sum(p.numel() for p in model.parameters())
    assert count == parameters
    assert count == pytest.approx(rule * sizes.width**2 * sizes.depth, rel=0.04)
    assert sizes.width == 64 * sizes.heads
    assert config.objective.parameterization._target_.endswith("Velocity")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 20}, r"model.backbone.heads=2 with width=20: .* multiple of 4"),
        ({"patch": (3, 2, 2)}, r"model.backbone.patch=\[3, 2, 2\] does not divide the latents: their frames is 4"),
        ({"mask_ratio": 1.0}, r"model.backbone.mask_ratio=1.0 must lie in \[0, 1\)"),
        ({"mask_ratio": 0.5, "unmask_blocks": 4}, r"model.backbone.unmask_blocks=4 .*depth=3"),
        ({"micro_conditions": ["fps"]}, r"model.backbone.micro_conditions=\['fps'\]: .*original_resolution, crop"),
        ({"rope_scale": (1, -1, 1)}, r"model.backbone.rope_scale"),
    ],
)
def test_sizes_that_cannot_work(make, settings, message):
    with pytest.raises(UserError, match=message):
        make(**settings)


def test_unknown_features_are_refused(make):
    with pytest.raises(ValueError, match="STIV has no feature"):
        make()(replace(example(), requested=frozenset({"h_space"})))
