"""Flex attention in groups that are padded, against attention with a mask."""

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask

from vidlab.layers import attention
from vidlab.layers.attention import attend_within
from vidlab.layers.compilation import flex as module
from vidlab.layers.compilation.flex import block_mask, flex_padded
from vidlab.layers.kernels import attention_kernel, auto, in_padded_groups, sdpa
from vidlab.layers.layouts import Grid, GroupSkip, SingleSkip, Spatial, Window

GRID = Grid(3, 13, 17)  # 663 tokens
PADDED = (SingleSkip(4), GroupSkip(4), Window(150))
ON_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def heads(width: int = 16, **settings) -> list[torch.Tensor]:
    source = torch.Generator().manual_seed(0)
    return [torch.randn(2, GRID.tokens, 3, width, generator=source).to(**settings) for _ in range(3)]


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("layout", PADDED, ids=str)
def test_padding_is_not_seen(layout):
    parts = heads()
    groups = [layout.partition(part, GRID) for part in parts]
    expected = sdpa(*groups, layout.key_mask(GRID, 2, 3))
    torch.testing.assert_close(flex_padded(*groups, layout, GRID, 2), expected)


@pytest.mark.parametrize("layout", PADDED, ids=str)
def test_padding_is_at_the_end_of_groups(layout):
    assert layout.pads_at_end and layout.padded(GRID) > GRID.tokens
    mask = layout.key_mask(GRID, 2, 3)
    assert torch.equal(mask, mask.sum(-1, keepdim=True) > torch.arange(mask.shape[-1]))


@pytest.mark.parametrize("length", [256, 300])
def test_blocks_are_those_that_torch_finds(length):
    counts = torch.tensor([[length, 128, 129], [255, 1, 0]])
    found = block_mask(counts, length)
    expected = create_block_mask(lambda b, h, i, j: j < counts[b, h], 2, 3, length, length, device="cpu")
    assert found.shape == expected.shape and torch.equal(found.to_dense(), expected.to_dense())
    for name in ("kv_num_blocks", "full_kv_num_blocks", "q_num_blocks", "full_q_num_blocks"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name


def test_blocks_are_found_once_for_a_shape():
    module._kept_blocks.cache_clear()
    first, second = (module._kept_blocks(SingleSkip(4), GRID, 1, 3, torch.device("cpu")) for _ in range(2))
    assert first is second and first.shape == (1, 12, 166, 166)


def test_auto_leaves_padded_groups_to_it_and_nothing_else(monkeypatch):
    asked, parts = [], heads()
    monkeypatch.setattr(module, "runs_compiled", lambda q: True)
    monkeypatch.setattr(attention, "flex_padded", lambda q, k, v, *rest: asked.append(rest) or q)
    for layout in (*PADDED, SingleSkip(3), Spatial()):
        for kernel in (auto, sdpa):
            attend_within(layout, GRID, kernel, *parts)
    assert asked == [(layout, GRID, 2) for layout in PADDED]


@pytest.mark.parametrize("kernel", [auto, attention_kernel("flex")])
def test_on_a_cpu_and_for_small_heads_it_does_not(kernel):
    assert not in_padded_groups(kernel, torch.empty(1, 4, 1, 64, dtype=torch.bfloat16))
    assert not in_padded_groups(kernel, torch.empty(1, 4, 1, 8, dtype=torch.bfloat16, device="meta"))


def test_flex_is_counted_without_memory():
    q, k, v = (part.to("meta").requires_grad_() for part in heads())
    found = attention_kernel("flex")(q, k, v)
    assert found.shape == q.shape and torch.autograd.grad(found.sum(), q)[0].shape == q.shape


@pytest.mark.slow
@pytest.mark.parametrize("layout", PADDED[:2], ids=str)
def test_a_compiled_block_finds_its_blocks_inside_one_graph(layout):
    """In inference, which Inductor has on a CPU too."""
    groups = [layout.partition(part, GRID) for part in heads()]
    compiled = torch.compile(lambda q, k, v: flex_padded(q, k, v, layout, GRID, 2), fullgraph=True)
    with torch.no_grad():
        found = compiled(*groups)
    torch.testing.assert_close(found, sdpa(*groups, layout.key_mask(GRID, 2, 3)))


@pytest.mark.slow
def test_a_mask_of_captions_is_part_of_the_compiled_kernel():
    q, k, v = heads()
    mask = torch.rand(2, 1, 1, GRID.tokens, generator=torch.Generator().manual_seed(1)) < 0.5
    compiled = torch.compile(module.flex, fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(q, k, v, mask), sdpa(q, k, v, mask))


def gradients(attend, parts: list[torch.Tensor]) -> list[torch.Tensor]:
    parts = [part.detach().requires_grad_() for part in parts]
    found = attend(*parts)
    weights = torch.linspace(-1, 1, found.numel(), device=found.device, dtype=found.dtype).view_as(found)
    return [found, *torch.autograd.grad((found * weights).sum(), parts)]


@pytest.mark.gpu
@ON_GPU
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("layout", PADDED, ids=str)
@pytest.mark.parametrize("name", ["auto", "flex"])
def test_a_gpu_computes_the_same(name, layout, compiled):
    parts, kernel = heads(64, device="cuda", dtype=torch.bfloat16), attention_kernel(name)
    assert in_padded_groups(kernel, parts[0])

    def attend(q, k, v):
        return attend_within(layout, GRID, kernel, q, k, v)

    found = gradients(torch.compile(attend, fullgraph=True) if compiled else attend, parts)
    expected = gradients(lambda q, k, v: attend_within(layout, GRID, sdpa, q, k, v), [one.float() for one in parts])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.float(), other, rtol=0.03, atol=0.03 * other.abs().max().item())


@pytest.mark.gpu
@ON_GPU
def test_a_gpu_masks_captions():
    q, k, v = heads(64, device="cuda", dtype=torch.bfloat16)
    mask = torch.rand(2, 1, 1, GRID.tokens, device="cuda") < 0.5
    found = gradients(lambda *parts: attention_kernel("flex")(*parts, mask), [q, k, v])
    expected = gradients(lambda *parts: sdpa(*parts, mask), [q.float(), k.float(), v.float()])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.float(), other, rtol=0.03, atol=0.03 * other.abs().max().item())
