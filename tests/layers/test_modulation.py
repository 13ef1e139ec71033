import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vidlab.layers.block import BlockContext, DiTBlock
from vidlab.layers.embeddings import TimestepEmbedder, sinusoidal
from vidlab.layers.layouts import Full3D, Grid
from vidlab.layers.modulation import (
    ModulationTable,
    add_gated,
    add_then_modulate,
    modulate,
)
from vidlab.layers.rope import rotation

GRID = Grid(2, 2, 2)


def test_sinusoids_by_hand():
    # width 4: frequencies 1 and 1 / sqrt(10000) = 1/100, cosines first
    expected = [math.cos(3), math.cos(0.03), math.sin(3), math.sin(0.03)]
    assert sinusoidal(torch.tensor([3.0]), 4)[0].tolist() == pytest.approx(expected, abs=1e-6)
    assert sinusoidal(torch.zeros(1), 6).tolist() == [[1, 1, 1, 0, 0, 0]]


def test_sinusoids_keep_the_shape_of_t():
    t = torch.rand(2, 5) * 1000
    assert sinusoidal(t, 8).shape == (2, 5, 8)
    assert torch.equal(sinusoidal(t, 8)[1, 3], sinusoidal(t[1, 3:4], 8)[0])
    with pytest.raises(ValueError, match="width=7"):
        sinusoidal(t, 7)


def test_the_embedder_is_a_perceptron_on_sinusoids():
    embed, t = TimestepEmbedder(6, frequencies=8), torch.tensor([0.0, 250.0])
    first, _, second = embed.mlp
    torch.testing.assert_close(embed(t), second(F.silu(first(sinusoidal(t, 8)))))
    assert embed(torch.rand(2, 3)).shape == (2, 3, 6)


def test_modulation_by_hand():
    # LayerNorm of (1, 3) is (-1, 1)
    x = torch.tensor([1.0, 3.0]).view(1, 1, 2)
    out = modulate(x, shift=torch.tensor([[[10.0, 20.0]]]), scale=torch.tensor([[[1.0, -0.5]]]))
    assert out.flatten().tolist() == pytest.approx([10 - 2, 20 + 0.5], abs=1e-5)


def test_one_modulation_for_all_tokens_or_one_for_each():
    x, shift, scale = torch.randn(3, 2, 4, 6)
    apart = torch.stack([modulate(x[:, i : i + 1], shift[:, :1], scale[:, :1]) for i in range(4)], dim=1)
    torch.testing.assert_close(modulate(x, shift[:, :1], scale[:, :1]), apart[:, :, 0])
    torch.testing.assert_close(modulate(x, shift, scale)[:, 2:3], modulate(x[:, 2:3], shift[:, 2:3], scale[:, 2:3]))


def test_a_table_adds_its_offsets_and_splits():
    table = ModulationTable(3, 2)
    with torch.no_grad():
        table.offset.copy_(torch.arange(6.0))
    parts = table(torch.full((1, 1, 6), 10.0))
    assert [part.flatten().tolist() for part in parts] == [[10, 11], [12, 13], [14, 15]]
    assert ModulationTable(3, 2).offset.abs().max() == 0


def context(modulation: torch.Tensor, text=None) -> BlockContext:
    return BlockContext(
        GRID, rotation(GRID, 6), modulation,
        text=None if text is None else text.tokens, text_mask=None if text is None else text.mask,
    )  # fmt: skip


def test_a_block_is_its_three_residual_branches(make_text):
    block, text = DiTBlock(12, 2, 2.0, Full3D(), qk_norm=True), make_text((3, 2), width=12)
    nn.init.normal_(block.table.offset)
    x, shared = torch.randn(2, 8, 12), torch.randn(2, 1, 72)
    s1, c1, g1, s2, c2, g2 = (shared + block.table.offset).split(12, dim=-1)
    by = rotation(GRID, 6)

    def norm(x):
        return F.layer_norm(x, (12,), eps=1e-6)

    y = x + g1 * block.attention(norm(x) * (1 + c1) + s1, Full3D(), GRID, by)
    with_text = y + block.cross_attention(norm(y), text.tokens, text.mask)
    for given, z in ((None, y), (text, with_text)):
        expected = z + g2 * block.mlp(norm(z) * (1 + c2) + s2)
        torch.testing.assert_close(block(x, context(shared, given)), expected)


def test_closed_gates_make_a_block_the_identity():
    block, x = DiTBlock(12, 2, 2.0, Full3D(), qk_norm=True), torch.randn(2, 8, 12)
    shared = torch.randn(2, 1, 6, 12)
    shared[:, :, [2, 5]] = 0
    assert torch.equal(block(x, context(shared.flatten(2))), x)


def test_what_is_added_takes_on_the_dtype_of_the_residual_stream():
    x, gate, branch = torch.ones(1, 2, 4).bfloat16(), torch.full((1, 1, 4), 0.5), torch.full((1, 2, 4), 2.0)
    assert torch.equal(add_gated(x, gate, branch), torch.full((1, 2, 4), 2.0).bfloat16())
    read, hidden = add_then_modulate(x, branch, gate * 0, gate * 0)
    assert read.dtype == hidden.dtype == torch.bfloat16 and torch.equal(read, torch.full((1, 2, 4), 3.0).bfloat16())
