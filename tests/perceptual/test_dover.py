"""DOVER's technical branch, against values worked out token by token."""

import itertools
import math

import pytest
import torch

from vidlab.perceptual.dover import (
    Block,
    DoverTechnical,
    Downsample,
    VideoSwin,
    WindowAttention,
    fragments,
    from_windows,
    relative_positions,
    to_windows,
    window_pairs,
)


def test_the_published_file_has_these_tensors():
    with torch.device("meta"):
        model = DoverTechnical()
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert sum(math.prod(shape) for shape in shapes.values()) == 28_078_620 + 49_281
    block = "technical_backbone.layers.2.blocks.5"
    assert shapes["technical_backbone.patch_embed.proj.weight"] == (96, 3, 2, 4, 4)
    assert shapes[f"{block}.attn.fragment_position_bias_table"] == (15 * 13 * 13, 12)
    assert shapes[f"{block}.attn.qkv.weight"] == (3 * 384, 384) and shapes[f"{block}.mlp.fc1.bias"] == (4 * 384,)
    assert "technical_backbone.layers.3.blocks.1.attn.fragment_position_bias_table" not in shapes
    assert shapes["technical_backbone.layers.2.downsample.reduction.weight"] == (768, 4 * 384)
    assert shapes["technical_head.fc_last.weight"] == (1, 64, 1, 1, 1)


def test_biases_are_gated_by_the_distance_of_fragments():
    attention = WindowAttention(4, 2, (1, 1, 3), gated=True)
    with torch.no_grad():
        attention.relative_position_bias_table[:, 0] = torch.tensor([1.0, 2, 3, 4, 5])  # of columns -2 to 2 apart
        attention.fragment_position_bias_table[:, 0] = torch.tensor([10.0, 20, 30, 40, 50])
    # query in column 0, keys in columns 0 to 2: apart by 0, -1, -2
    bias = attention.bias(torch.tensor([[[0, 1, 2], [1, 0, 1], [2, 1, 0]]]))
    assert bias[0, 0, 0].tolist() == [30.0, 2.0, 2 * 1 - 10.0]


def test_relative_positions():
    places = relative_positions((2, 2, 2))
    assert places[0, 0] == 13 == places[7, 7]  # the middle of 27
    assert places[7, 0] == 26 and places[0, 7] == 0 and places[1, 0] == 14 and places[2, 0] == 16 and places[4, 0] == 22


def test_windows_come_back():
    x = torch.arange(2 * 4 * 6 * 4).reshape(2, 4, 6, 4, 1)
    windows = to_windows(x, (2, 3, 2))
    assert windows.shape == (2, 8, 12, 1) and windows[0, 0, :, 0].tolist()[:4] == [0, 1, 4, 5]
    assert from_windows(windows, (2, 3, 2), (4, 6, 4)).equal(x)


def token_by_token(block: Block, x: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """The attention of a shifted block of windows of 2 x 2 x 2 on (4, 4, 4) tokens, in loops; one head."""
    attention, size, window, shift = block.attn, 4, 2, 1
    normed = block.norm1(x)[0]
    q, k, v = attention.qkv(normed).chunk(3, -1)
    out = torch.zeros_like(normed)
    places = list(itertools.product(range(size), repeat=3))

    def of(place):  # its window, and whether it came around, along each axis
        moved = [(p - shift) % size for p in place]
        return [m // window for m in moved], [m == size - 1 for m in moved], [m % window for m in moved]

    def fragment(place):
        return [place[1] * grid[0] // size, place[2] * grid[1] // size]

    for one in places:
        near = [other for other in places if of(other)[:2] == of(one)[:2]]
        scores = []
        for other in near:
            apart = [a - b + 1 for a, b in zip(of(one)[2], of(other)[2], strict=True)]
            row = (apart[0] * 3 + apart[1]) * 3 + apart[2]
            gate = sum(abs(a - b) for a, b in zip(fragment(one), fragment(other), strict=True))
            own, relative = attention.fragment_position_bias_table[row], attention.relative_position_bias_table[row]
            scores.append(q[one] @ k[other] / math.sqrt(x.shape[-1]) + gate * relative[0] + (1 - gate) * own[0])
        weights = torch.stack(scores).softmax(0)
        out[one] = attention.proj(sum(w * v[other] for w, other in zip(weights, near, strict=True)))
    x = x + out
    return x + block.mlp(block.norm2(x))


@torch.no_grad()
def test_a_shifted_block_token_by_token():
    torch.manual_seed(0)
    block = Block(4, 1, (2, 2, 2), gated=True, shifted=True)
    for table in (block.attn.relative_position_bias_table, block.attn.fragment_position_bias_table):
        table.normal_()
    x = torch.randn(1, 4, 4, 4, 4)
    torch.testing.assert_close(block(x), token_by_token(block, x, (2, 2)), atol=1e-5, rtol=1e-5)


def test_what_the_shift_brings_together_stays_apart():
    apart, distance = window_pairs((4, 4, 4), (2, 2, 2), (0, 0, 1))
    assert not apart[0].any() and apart[1].sum() == 8 * 4  # the last window along the width has both ends
    assert distance[0, 0].tolist() == [0, 1] * 4  # columns 1 and 2, of fragments 0 and 1


def test_neighbors_become_one_token_rows_first():
    smaller = Downsample(1)
    smaller.norm = torch.nn.Identity()
    with torch.no_grad():
        smaller.reduction.weight.copy_(torch.tensor([[1.0, 10, 100, 1000], [0, 1, 0, 0]]))
    x = torch.tensor([[1.0, 2], [3, 4]]).reshape(1, 1, 2, 2, 1)
    assert smaller(x).flatten().tolist() == [1 + 30 + 200 + 4000, 3]


def test_fragments_are_the_middle_of_each_cell():
    rows, columns = torch.meshgrid(torch.arange(7 * 34), torch.arange(7 * 33), indexing="ij")
    frames = torch.stack([rows % 256, columns % 256, rows * 0], -1)[None].to(torch.uint8)
    found = fragments(frames)
    assert found.shape == (1, 224, 224, 3)
    assert found[0, :, 0, 0].tolist() == [34 * cell + 1 + at for cell in range(7) for at in range(32)]  # (34 - 32) / 2
    assert found[0, 0, :, 1].tolist() == [33 * cell + at for cell in range(7) for at in range(32)]
    small = fragments(torch.full((2, 56, 112, 3), 9, dtype=torch.uint8))
    assert small.shape == (2, 224, 224, 3) and small.unique().tolist() == pytest.approx([9])


def test_a_score_is_the_mean_over_places():
    torch.manual_seed(0)
    backbone = VideoSwin(2, (1,), (1,), (1, 1, 1), (1, 2, 2))
    model = DoverTechnical(backbone)
    pixels = torch.rand(1, 2, 4, 3) * 255
    normed = (pixels - torch.tensor([123.675, 116.28, 103.53])) / torch.tensor([58.395, 57.12, 57.375])
    features = backbone(normed.permute(3, 0, 1, 2)[None])  # (1, 1, 1, 2, D)
    head = model.technical_head
    hidden = torch.nn.functional.gelu(features @ head.fc_hid.weight[:, :, 0, 0, 0].T + head.fc_hid.bias)
    scores = hidden @ head.fc_last.weight[0, :, 0, 0, 0] + head.fc_last.bias
    assert model(pixels) == pytest.approx(float(scores.mean()), abs=1e-6)
