"""State spaces from attention: the rows, and through a whole block the causal linear attention they then compute."""

from functools import partial

import pytest
import torch
from mmdim_parts import make
from torch import nn
from torch.nn import functional as F

from vidlab.backbones.dit import DiT
from vidlab.backbones.mmdim.from_attention import from_attention
from vidlab.backbones.mmdim.single_block import SingleBlockContext
from vidlab.clip import LatentShape
from vidlab.errors import UserError
from vidlab.layers.layouts import Full3D, LayerPlan
from vidlab.layers.mixers.attention_mixer import AttentionMixer
from vidlab.layers.mixers.recomposition import FrameGrids, scan_tables, text_ends, unscan_tables
from vidlab.layers.mixers.scan_orders import ScanOrders, scan_order
from vidlab.layers.mixers.ssd_mixer import SSDMixer

D, N = 24, 2


def fill(model, found) -> None:
    for name, taken in found.items():
        model.get_parameter(name).data.copy_(taken.weight)


def without_decay(mixer: SSDMixer) -> None:
    """A = 0, dt = 1, a convolution that passes on, no SiLU, no direct path, no second branch."""
    with torch.no_grad():
        mixer.A_log.fill_(-torch.inf)
        for parameter in (mixer.in_proj.weight, mixer.in_proj.bias):
            parameter[mixer.rows["dt"]] = 0
            parameter[mixer.rows["z"]] = 0
        mixer.dt_bias.fill_(0.541324854612918)  # ln(e - 1)
        mixer.conv.weight.zero_()
        mixer.conv.weight[:, 0, -1] = 1
        mixer.conv.bias.zero_()
        mixer.D.zero_()
    mixer.activation = nn.Identity()


def test_the_rows_are_attentions_bit_by_bit():
    attention, space = make(mixer=AttentionMixer), make()
    fill(space, from_attention(space, dict(attention.named_parameters())))
    for block, origin in zip(space.blocks, attention.blocks, strict=True):
        for kind in ("weight", "bias"):
            rows, qkv = getattr(block.mixer.in_proj, kind), getattr(origin.mixer.qkv, kind)
            for row, part in zip(("C", "B", "x"), qkv.chunk(3), strict=True):
                assert torch.equal(rows[block.mixer.rows[row]], part)
        assert torch.equal(block.out.weight, origin.out.weight)


def test_a_whole_block_is_causal_linear_attention():
    """y_t = sum over s <= t of (q_t . k_s) v_s over [0 0 text] [r frame] [r frame] [text 0 0], by loops."""
    attention, space = make(mixer=AttentionMixer, temporal_branch=False), make(temporal_branch=False)
    fill(space, from_attention(space, dict(attention.named_parameters())))
    block, origin, frames = space.blocks[0], attention.blocks[0], FrameGrids(((2, 2), (2, 2)), 1)
    without_decay(block.mixer)
    mask, path = torch.tensor([[True] * 3 + [False] * 2]), (ScanOrders("b"), 1)
    scan, unscan = scan_tables(frames, (2, 2), 3, *path), unscan_tables(frames, *path)
    temb, x = torch.randn(1, 1, D).double(), torch.randn(1, 13, D).double()
    found = block(x, SingleBlockContext(None, text_ends(mask), scan, unscan, None, temb))[0]

    shift, scale, gate = (part[0] for part in origin.modulation(temb).chunk(3, dim=-1))
    u = F.layer_norm(x[0], (D,), eps=1e-6) * (1 + scale) + shift
    register = space.blocks[0].registers[2]
    order = scan_order("b", 2, 2).tolist()
    places = [3, 4, 0, 1, 2, "r", *(5 + p for p in order), "r", *(9 + p for p in order), 0, 1, 2, 3, 4]
    real = [False] * 2 + [True] * 16 + [False] * 2
    sequence = torch.stack([register if place == "r" else u[place] for place in places])
    q, k, v = origin.mixer.qkv(sequence).view(-1, 3, N, D // N).unbind(1)
    y = torch.zeros(13, D).double()
    for t, place in enumerate(places):
        if place == "r" or not real[t]:
            continue
        for head in range(N):
            channels = slice(head * D // N, (head + 1) * D // N)
            y[place, channels] += sum((q[t, head] @ k[s, head]) * v[s, head] for s in range(t + 1) if real[s])
    wanted = x[0] + gate * origin.out(torch.cat([y, origin.mlp(u)], dim=-1))
    known = [0, 1, 2, *range(5, 13)]  # what comes out at a pad has no meaning
    torch.testing.assert_close(found[known], wanted[known], rtol=1e-10, atol=1e-10)


def dit(**settings) -> DiT:
    sizes = {"width": D, "depth": 4, "heads": N, "patch": (1, 2, 2), "layouts": LayerPlan((Full3D(),))}
    model = DiT(latent=LatentShape(3, 1, 8, 8), text_width=10, **(sizes | settings)).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def test_a_diffusion_transformer_gives_streams_and_blocks():
    model, space = dit(), make(dual_depth=1)
    found = from_attention(space, dict(model.named_parameters()))
    fill(space, found)
    stream, own, block = space.dual_blocks[0].video, model.blocks[0], space.blocks[1]
    assert torch.equal(stream.qkv.weight, own.attention.qkv.weight)
    assert torch.equal(stream.q_norm.gain, own.attention.q_norm.gain)
    assert torch.equal(space.condition.time.mlp[2].weight, model.time.mlp[2].weight)
    third = model.blocks[2]
    assert torch.equal(block.mixer.in_proj.weight[block.mixer.rows["B"]], third.attention.qkv.weight[D : 2 * D])
    u, y = torch.randn(5, D).double(), torch.randn(5, D).double()
    wanted = third.attention.out(y) + third.mlp[2](F.gelu(third.mlp[0](u), approximate="tanh"))
    torch.testing.assert_close(block.out(torch.cat([y, block.mlp(u)], -1)), wanted)
    condition = torch.randn(2, 1, D).double()
    for parts, target, table in ((6, stream.modulation, own.table), (3, block.modulation, third.table)):
        wanted = table(model.modulation(condition))[:parts]
        torch.testing.assert_close(target(condition).chunk(parts, dim=-1), wanted)
    torch.testing.assert_close(
        space.head_modulation(condition).chunk(2, -1), model.head_table(model.head_modulation(condition))
    )
    untouched = {name for name, _ in space.named_parameters()} - set(found)
    assert all(
        any(part in name for part in (".text.", ".pooled.", "registers", ".temporal.", ".mixer.")) for name in untouched
    )


def test_what_attention_does_not_fit():
    weights = dict(make(mixer=AttentionMixer).named_parameters())
    for model, message in (
        (make(mixer=AttentionMixer), "needs mixer=ssd"),
        (make(mixer=partial(SSDMixer, groups=1)), r"mixer.groups=null mixer.state=null"),
        (make(width=36, heads=3), r"blocks.0.mixer.qkv.weight is \(72, 24\) and must be \(108, 36\)"),
    ):
        with pytest.raises(UserError, match=message):
            from_attention(model, weights)
    with pytest.raises(UserError, match="has no attention"):
        from_attention(make(), dict(make().named_parameters()))
