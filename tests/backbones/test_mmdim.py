"""MM-DiM against independent readings of its equations: blocks, causality, history, switches."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from mmdim_parts import SSD, example, history, make, pyramid, text_of
from torch import nn
from torch.nn import functional as F

from vidlab.backbones.mmdim.dual_block import DualBlockContext
from vidlab.backbones.mmdim.positions import (
    fourier_of,
    frame_causal,
    frame_times,
    rotation_of,
    token_positions,
)
from vidlab.backbones.mmdim.settings import level_registers, role_registers
from vidlab.backbones.mmdim.single_block import SingleBlockContext
from vidlab.backbones.mmdim.temporal import TemporalBranch, temporal_grids, temporal_mask
from vidlab.clip import DenoiserInput
from vidlab.errors import UserError
from vidlab.layers.layouts import Grid
from vidlab.layers.mixers.attention_mixer import AttentionMixer
from vidlab.layers.mixers.parallel_mixer import ParallelMixer
from vidlab.layers.mixers.recomposition import (
    FrameGrids,
    Recomposition,
    frame_of_token,
    scan_tables,
    text_ends,
    unscan_tables,
)
from vidlab.layers.mixers.scan_orders import ScanOrders, scan_order
from vidlab.layers.positions import fourier_positions
from vidlab.layers.rope import cos_sin, rotation

PAST = FrameGrids(((1, 1), (1, 1), (2, 2), (4, 4)), predicted=1)  # tokens of ``pyramid``


class PassesOn(nn.Module):
    """A mixer that gives each token as it is."""

    def forward(self, x, real=None):
        return x


# ---- the whole model


@pytest.mark.parametrize("past", [False, True])
def test_a_new_model_predicts_exactly_zero_and_its_blocks_are_the_identity(past):
    model, input = make(awake=False), pyramid() if past else example(frames=3)
    seen = []
    for block in [*model.dual_blocks, *model.blocks]:
        block.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    assert not model(input).prediction.any()
    assert len(seen) == 4
    for before, after in seen:
        assert torch.equal(before, after[0] if isinstance(after, tuple) else after)


def silent(model, input) -> set[str]:
    model.zero_grad()
    (model(input).prediction - torch.randn_like(input.latents)).square().mean().backward()
    return {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}


def test_gradient_reaches_everything_after_three_steps():
    model, input = make(awake=False), pyramid()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    names = {name for name, _ in model.named_parameters()}
    assert silent(model, input) == names - {"head.weight", "head.bias"}
    for _ in range(3):
        optimizer.step()
        left = silent(model, input)
    assert left == set()


def test_every_register_is_trained_by_the_frames_of_its_level():
    model = make()
    silent(model, pyramid())
    assert all(block.registers.grad.any(dim=1).all() for block in model.blocks)
    silent(model, example(frames=2))
    assert [block.registers.grad.any(dim=1).tolist() for block in model.blocks] == [[False, False, True]] * 2


def test_history_is_read_as_earlier_frames_of_the_clip():
    """The last frame of a clip of three, and the same frame behind a history of two, are one computation."""
    for settings in ({}, {"absolute_positions": True}, {"text_ends": "left"}, {"temporal_branch": False}):
        model, clip = make(**settings), example(frames=3)
        past, now = clip.latents[:, :, :2], clip.latents[:, :, 2:]
        with torch.no_grad():
            whole = model(clip).prediction[:, :, 2:]
            known = [history(2, 8)]
            known[0].latents.copy_(past)
            behind = replace(clip, latents=now, history=tuple(known))
            torch.testing.assert_close(model(behind).prediction, whole, rtol=1e-10, atol=1e-10)
            split = [history(1, 8), history(1, 8, first=1)]
            for number, part in enumerate(split):
                part.latents.copy_(past[:, :, number : number + 1])
            torch.testing.assert_close(model(replace(behind, history=tuple(split))).prediction, whole)


def test_the_history_is_heard():
    model, input = make(), pyramid()
    with torch.no_grad():
        before = model(input).prediction
        for number in range(2):
            past = list(input.history)
            past[number] = replace(past[number], latents=past[number].latents + 1)
            assert not torch.allclose(model(replace(input, history=tuple(past))).prediction, before, atol=1e-3)


def test_frames_that_are_far_back_have_other_positions_than_the_first():
    model = make(absolute_positions=True)
    input = example(past=[history(2, 8)])
    later = (replace(input.history[0], frame_index=input.history[0].frame_index + 5),)
    with torch.no_grad():
        assert not torch.allclose(model(input).prediction, model(replace(input, history=later)).prediction, atol=1e-3)


# ---- causality and padding


def perturbed(input: DenoiserInput, frame: int) -> DenoiserInput:
    latents = input.latents.clone()
    latents[:, :, frame] += 1
    return replace(input, latents=latents)


@pytest.mark.parametrize("mixer", [SSD, AttentionMixer, partial(ParallelMixer, mixers=(SSD, AttentionMixer))])
@pytest.mark.parametrize("past", [(), (history(2, 2), history(1, 4, first=2))])
def test_no_frame_is_changed_by_a_later_one(mixer, past):
    """Through the whole model with the text at the left end alone."""
    model, input = make(text_ends="left", mixer=mixer), example(frames=3, past=past)
    with torch.no_grad():
        before = model(input).prediction
        for frame in range(3):
            after = model(perturbed(input, frame)).prediction
            torch.testing.assert_close(after[:, :, :frame], before[:, :, :frame], rtol=0, atol=1e-12)
            moved = (after - before).abs().amax(dim=(0, 1, 3, 4))
            assert (moved[frame:] > 1e-6).all()


def test_without_text_no_frame_is_changed_by_a_later_one_either():
    model, input = make(), example(frames=3, text=False, past=[history(1, 4)])
    with torch.no_grad():
        before, after = model(input).prediction, model(perturbed(input, 1)).prediction
    torch.testing.assert_close(after[:, :, :1], before[:, :, :1], rtol=0, atol=1e-12)


def test_text_at_the_right_end_carries_later_frames_to_the_next_block():
    """As in the paper: one block keeps the order of frames, and from the second on the text has read all of them."""
    input = example(frames=3)
    for depth, causal in ((1, True), (2, False)):
        model = make(depth=depth, dual_depth=0)
        with torch.no_grad():
            before, after = model(input).prediction, model(perturbed(input, 2)).prediction
        assert torch.allclose(after[:, :, :2], before[:, :, :2], atol=1e-12, rtol=0) == causal


def test_the_main_path_leaves_the_left_text_and_earlier_frames():
    """Perturbing frame j leaves Z_l and frames before j as they are, and changes Z_r."""
    block, mask = make().blocks[0], text_of().mask
    order = (ScanOrders("a"), 1)
    made = Recomposition(scan_tables(PAST, (0, 0, 1, 2), 3, *order)[0], unscan_tables(PAST, *order)[0], text_ends(mask))
    u = torch.randn(2, 5 + PAST.tokens, 24, dtype=torch.float64)
    frame = 5 + frame_of_token(PAST)
    for j in range(4):
        v = u.clone()
        v[:, 5:][:, frame - 5 == j] += 1
        a, b = (block.mixer(made.apply(x, block.registers), made.real()) for x in (u, v))
        real = mask.gather(1, made.text.right)
        assert torch.equal(a[:, :5], b[:, :5])
        assert ((a[:, -5:] - b[:, -5:]).abs().amax(-1)[real] > 1e-9).all()
        before = [*range(sum(1 + places for places in PAST.places[:j]))]
        torch.testing.assert_close(a[:, 5:][:, before], b[:, 5:][:, before], rtol=0, atol=1e-12)


@pytest.mark.parametrize("mixer", [SSD, AttentionMixer])
def test_what_stands_at_padding_reaches_nothing(mixer):
    model, input = make(mixer=mixer, depth=3), pyramid()
    tokens = torch.where(input.text.mask[..., None], input.text.tokens, 1e3)
    with torch.no_grad():
        other = model(replace(input, text=replace(input.text, tokens=tokens))).prediction
        torch.testing.assert_close(other, model(input).prediction)


def test_longer_padding_changes_nothing():
    model, input = make(), pyramid()
    text = input.text
    padded = replace(text, tokens=F.pad(text.tokens, (0, 0, 0, 4)), mask=F.pad(text.mask, (0, 4)))
    with torch.no_grad():
        torch.testing.assert_close(model(replace(input, text=padded)).prediction, model(input).prediction)


# ---- dual-stream block


def rms(x, gain):
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * gain


def rotated(x, angles):
    """Plane by plane: (a, b) turned by the angle of the token."""
    a, b = x[..., 0::2], x[..., 1::2]
    cos, sin = angles.cos(), angles.sin()
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)


def test_the_dual_stream_block_by_its_equations():
    """Written out for one clip of two real text tokens, one pad, and two frames of two tokens."""
    model = make(width=12, heads=2, dual_depth=1)
    block, number = model.dual_blocks[0], torch.tensor([0, 0, 1, 1])
    text, video, temb = torch.randn(3, 12).double(), torch.randn(4, 12).double(), torch.randn(12).double()
    angles = torch.cat([torch.zeros(3, 3), torch.rand(4, 3)]).double()
    mask = torch.tensor([[True, True, False]])
    context = DualBlockContext(
        cos_sin(angles[3:, None]), frame_causal(number, mask), temb[None, None],
        temb[None, None],
    )  # fmt: skip
    found_text, found_video = block(text[None], video[None], context)

    parts, q, k, v = {}, [], [], []
    for name, x in (("text", text), ("video", video)):
        stream = getattr(block, name)
        parts[name] = stream.modulation(temb).chunk(6)
        shift, scale = parts[name][:2]
        rows = stream.qkv(F.layer_norm(x, (12,), eps=1e-6) * (1 + scale) + shift).view(-1, 3, 2, 6)
        q.append(rms(rows[:, 0], stream.q_norm.gain))
        k.append(rms(rows[:, 1], stream.k_norm.gain))
        v.append(rows[:, 2])
    q, k, v = (torch.cat(part) for part in (q, k, v))
    q, k = (rotated(x, angles[:, None]) for x in (q, k))
    time, real = [0, 0, 0, 0, 0, 1, 1], [1, 1, 0, 1, 1, 1, 1]
    mixed = torch.zeros(7, 2, 6, dtype=torch.float64)
    for i in range(7):
        seen = [j for j in range(7) if time[i] >= time[j] and real[i] == real[j]]
        for head in range(2):
            weights = torch.stack([q[i, head] @ k[j, head] / 6**0.5 for j in seen]).softmax(0)
            mixed[i, head] = sum(w * v[j, head] for w, j in zip(weights, seen, strict=True))
    for name, x, slots, found in (("text", text, slice(0, 3), found_text), ("video", video, slice(3, 7), found_video)):
        stream = getattr(block, name)
        _, _, gate, shift, scale, gate_mlp = parts[name]
        x = x + gate * stream.out(mixed[slots].flatten(1))
        x = x + gate_mlp * stream.mlp(F.layer_norm(x, (12,), eps=1e-6) * (1 + scale) + shift)
        torch.testing.assert_close(found[0], x)


def test_who_may_see_whom():
    """Text of two and a pad, frames of one token: text sees text and frame 0, a pad itself, a frame its past."""
    found = frame_causal(torch.tensor([0, 1, 2]), torch.tensor([[True, True, False]]))[0, 0].int().tolist()
    assert found == [
        [1, 1, 0, 1, 0, 0], [1, 1, 0, 1, 0, 0], [0, 0, 1, 0, 0, 0],
        [1, 1, 0, 1, 0, 0], [1, 1, 0, 1, 1, 0], [1, 1, 0, 1, 1, 1],
    ]  # fmt: skip


# ---- single-stream block


def test_the_single_stream_block_by_its_equations():
    """X + gate W [Y, M]: here with a mixer that passes on, so that text comes twice and frames once."""
    model = make(width=12, heads=2, mixer=lambda width, heads, kernels: PassesOn(), depth=1, temporal_branch=False)
    block, frames = model.blocks[0], FrameGrids(((2, 2),), 1)
    order = (ScanOrders("a"), 1)
    made = Recomposition(
        scan_tables(frames, (2,), 3, *order)[0], unscan_tables(frames, *order)[0], text_ends(text_of((3,)).mask)
    )
    assert torch.equal(made.invert(made.apply(torch.eye(7).double()[None], torch.zeros(3, 7)))[0].diagonal(),
                       torch.tensor([2.0] * 3 + [1.0] * 4).double())  # fmt: skip
    x, temb = torch.randn(1, 7, 12).double(), torch.randn(1, 1, 12).double()
    context = SingleBlockContext(None, made.text, made.scan[None], made.unscan[None], None, temb)
    shift, scale, gate = block.modulation(temb).chunk(3, dim=-1)
    u = F.layer_norm(x, (12,), eps=1e-6) * (1 + scale) + shift
    y = torch.cat([2 * u[:, :3], u[:, 3:]], dim=1)
    hidden = F.gelu(u @ block.mlp[0].weight.T + block.mlp[0].bias, approximate="tanh")
    wanted = x + gate * (torch.cat([y, hidden], dim=-1) @ block.out.weight.T + block.out.bias)
    torch.testing.assert_close(block(x, context), wanted)


def test_temporal_attention_by_its_equations():
    """Logits, one by one: frames of 1x1, 1x1 and 2x2 tokens, and a predicted one of 2x2 cut into four."""
    torch.manual_seed(3)
    frames, branch = FrameGrids(((1, 1), (1, 1), (2, 2), (2, 2)), predicted=1), TemporalBranch(8, 2).double()
    video = torch.randn(1, 10, 8).double()
    folded = torch.stack([video[0, 0], video[0, 1], video[0, 2:6].mean(0), *video[0, 6:]])  # one place each
    q, k, v = branch.qkv(folded).chunk(3, dim=-1)
    time = [0, 1, 2, 3, 3, 3, 3]
    mixed = torch.zeros(7, 8).double()
    for i in range(7):
        seen = [j for j in range(7) if time[i] >= time[j]]
        for head in (slice(0, 4), slice(4, 8)):
            weights = torch.stack([(q[i, head] * k[j, head]).sum() / 4**0.5 for j in seen]).softmax(0)
            mixed[i, head] = sum(w * v[j, head] for w, j in zip(weights, seen, strict=True))
    out = branch.out(mixed)
    wanted = torch.stack([out[0], out[1], out[2], out[2], out[2], out[2], *out[3:]])
    torch.testing.assert_close(branch(video, temporal_grids(frames), temporal_mask(frames))[0], wanted)


def test_temporal_logits_are_summed_over_places():
    """Two frames of 1x3 tokens: (sum over 3 places and 4 channels) / sqrt(12)."""
    frames, branch = FrameGrids(((1, 3), (1, 3)), predicted=2), TemporalBranch(4, 1).double()
    video = torch.randn(1, 6, 4).double()
    q, k, v = (part.view(2, 3, 4) for part in branch.qkv(video[0]).chunk(3, dim=-1))
    weights = torch.stack([(q[1] * k[j]).sum() / 12**0.5 for j in range(2)]).softmax(0)
    wanted = torch.cat([branch.out(v[0]), branch.out(weights[0] * v[0] + weights[1] * v[1])])
    torch.testing.assert_close(branch(video, temporal_grids(frames), temporal_mask(frames))[0], wanted)


def test_a_predicted_frame_is_cut_by_pixel_unshuffling():
    """Of 4x4 tokens over 2x2: sub-token (p, q) has rows p, p + 2 and columns q, q + 2, and comes back to its places."""
    frames, branch = FrameGrids(((2, 2), (4, 4)), predicted=1), TemporalBranch(2, 1).double()
    video = torch.randn(1, 20, 2).double()
    folded = [video[0, :4]]
    places = torch.arange(16).view(4, 4) + 4
    folded += [video[0, places[p::2, q::2].flatten()] for p in range(2) for q in range(2)]
    q, k, v = branch.qkv(torch.stack(folded)).chunk(3, dim=-1)  # (5, 4, 2)
    logits = torch.einsum("ipd,jpd->ij", q, k) / 8**0.5
    logits[0, 1:] = -torch.inf
    out = branch.out(torch.einsum("ij,jpd->ipd", logits.softmax(-1), v))
    wanted = torch.empty(20, 2).double()
    wanted[:4] = out[0]
    for number, (p, q_) in enumerate((p, q_) for p in range(2) for q_ in range(2)):
        wanted[places[p::2, q_::2].flatten()] = out[1 + number]
    torch.testing.assert_close(branch(video, temporal_grids(frames), temporal_mask(frames))[0], wanted)


def test_grids_that_are_no_multiples_are_refused():
    with pytest.raises(ValueError, match="whole multiples of the smallest"):
        make()(example(size=8, past=[history(1, 6)]))


# ---- positions and registers


def test_positions_of_coarser_frames():
    found = token_positions(FrameGrids(((4, 4), (8, 8)), predicted=1))[:, 1:]
    assert found[:4, 1].tolist() == found[0:16:4, 0].tolist() == [0.5, 2.5, 4.5, 6.5]
    assert found[16:24, 1].tolist() == list(range(8))


def test_positions_of_a_plain_clip_are_those_of_its_grid():
    grid, frames = Grid(3, 2, 5), FrameGrids(((2, 5),) * 3, 3)
    torch.testing.assert_close(
        rotation_of(frames, (2, 2, 2), 100.0, (1.0, 2.0, 1.0)), rotation(grid, 12, 100.0, (1, 2, 1))
    )
    assert torch.equal(fourier_of(frames, 16, (1.0, 2.0, 1.0)), fourier_positions(grid, 16, (1.0, 2.0, 1.0)))
    assert token_positions(frames)[-1].tolist() == [2, 1, 4]


def test_times_follow_the_index_of_the_history():
    input = example(frames=2, past=[history(2, 2, first=3), history(1, 4, first=5)])
    assert frame_times(input, 1).tolist() == [3, 4, 5, 6, 7]
    pairs = replace(input, history=(history(4, 2, first=4),))
    assert frame_times(pairs, 2).tolist() == [2, 3, 4]
    assert frame_times(example(), 1) is None


def test_registers_by_level_and_by_role():
    sizes = ((1, 1), (1, 1), (2, 2), (4, 4))
    assert level_registers(FrameGrids(sizes, 1), (4, 4), 3) == (0, 0, 1, 2)
    assert level_registers(FrameGrids(((2, 2),) * 2, 1), (4, 4), 3) == (1, 1)  # all of stage 1 at half size
    assert level_registers(FrameGrids(((8, 8), (1, 1)), 1), (4, 4), 2) == (1, 0)
    assert role_registers(FrameGrids(sizes, 1), 3) == (0, 0, 1, 2)
    assert role_registers(FrameGrids(sizes, 2), 3) == (0, 1, 2, 2)
    assert role_registers(FrameGrids(((4, 4),) * 5, 1), 3) == (0, 0, 0, 1, 2)


# ---- switches


@pytest.mark.parametrize(
    "settings",
    [
        {"dual_depth": 0, "temporal_branch": False},  # pure Mamba
        {"dual_depth": 0},  # and the temporal branch
        {"mixer": partial(ParallelMixer, mixers=(SSD, AttentionMixer))},
        {"mixer": AttentionMixer},
        {"mixer": partial(SSD, gate="silu_mul")},
        *({"dual_depth": depth} for depth in (2, 4, 8)),
        {"scan_paths": "b"},
        {"scan": "raster"},
        {"register_by": "role"},
        {"text_ends": "left"},
        {"rope_axes": (4, 4, 4)},
    ],
    ids=str,
)
def test_every_variant_of_the_ablation_learns(settings):
    model, input = make(**settings), pyramid()
    assert silent(model, input) <= {"condition.pooled.0.bias"}
    first, second = (list(make(**s).state_dict()) for s in ({}, settings))
    assert len(model.blocks) == 2 and len(model.dual_blocks) == settings.get("dual_depth", 2)
    assert (first == second) or settings.keys() & {"dual_depth", "temporal_branch", "mixer"}


def test_the_choice_of_scan_and_register_is_heard():
    """The same weights give something else."""
    input, base = pyramid(), make(depth=2)
    flat = example(frames=2, past=[history(1, 8)])
    for settings, inputs in (
        ({"scan_paths": "b"}, input), ({"scan": "raster"}, input), ({"register_by": "role"}, flat),
        ({"text_ends": "left"}, input),
    ):  # fmt: skip
        other = make(**settings)
        other.load_state_dict(base.state_dict())
        with torch.no_grad():
            assert not torch.allclose(other(inputs).prediction, base(inputs).prediction, atol=1e-6), settings


def test_layers_take_the_paths_in_turn():
    model = make(depth=3, scan_paths="ah")
    taken = []
    for block in model.blocks:
        block.mix = lambda u, recomposition: taken.append(recomposition.scan.tolist()) or u
    model(example(text=False))
    a, h = (3 + scan_order(letter, 4, 4) for letter in "ah")
    assert taken == [[2, *a.tolist()], [2, *h.tolist()], [2, *a.tolist()]]


def test_settings_that_cannot_work_are_refused_by_name():
    for settings, key in (
        ({"register_by": "age"}, "register_by"), ({"text_ends": "right"}, "text_ends"),
        ({"dual_depth": -1}, "dual_depth"),
        ({"width": 25}, "width"), ({"registers": 0}, "registers"), ({"rope_axes": (4, 4, 6)}, "rope_axes"),
        ({"rope_axes": (3, 3, 6)}, "rope_axes"), ({"heads": 6}, "heads"), ({"patch": (1, 3, 2)}, "patch"),
        ({"scan_paths": ""}, "scan_paths"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=f"model.backbone.{key}"):
            make(**settings)


def test_every_frame_may_have_its_noise_level():
    """Levels that are alike are one level; other levels of a frame are heard at it."""
    model, input = make(), example(frames=3, past=[history(1, 4)])
    with torch.no_grad():
        before = model(input).prediction
        each = input.embedded_t[:, None].expand(-1, 3)
        torch.testing.assert_close(model(replace(input, t=each, embedded_t=each)).prediction, before)
        each = each.clone()
        each[:, 2] += 300
        assert not torch.allclose(model(replace(input, t=each, embedded_t=each)).prediction, before, atol=1e-3)


def test_the_meta_device_takes_history():
    with torch.device("meta"):
        assert make(awake=False)(pyramid()).prediction.is_meta


HOST_READS = {"aten::item", "aten::_local_scalar_dense", "aten::is_nonzero", "aten::nonzero", "aten::equal"}


def test_a_step_reads_nothing_back():
    """No operator whose result the host would wait for on a GPU, the tables of the shape being there."""
    model, input = make(absolute_positions=True), pyramid()
    model.train()(input)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as trace:
        model(input).prediction.square().mean().backward()
    names = {event.name for event in trace.events()}
    assert "aten::index_select" in names and not names & HOST_READS


COMPILED = """
import torch
from mmdim_parts import make, pyramid
torch.manual_seed(1)  # rotations are in float32, so some draws differ by more
model, input = make(depth=1, dual_depth=1), pyramid()
compiled = torch.compile(model, backend="eager", fullgraph=True)
torch.testing.assert_close(compiled(input).prediction, model(input).prediction)
"""


def test_it_compiles_in_one_graph(commands, tmp_path):
    """In a process of its own: the shape checks of these tests cannot be traced."""
    parts = {"PYTHONPATH": str(Path(__file__).parent)}
    assert commands.run_code(COMPILED, cwd=tmp_path, env=parts).code == 0


def test_it_declares_that_it_reads_history():
    assert make().spec.reads_history
