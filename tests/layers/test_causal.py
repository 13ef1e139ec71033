import copy

import pytest
import torch
from torch.nn.functional import interpolate

from vidlab.layers.causal import CausalConv3d, CausalSequential, CausalUpsample, Stream, TrainedConv3d, whole

KERNELS = [(k, s) for k in (1, 2, 3, 4, 5) for s in range(1, k + 1)]


def through(layer, x, sizes) -> tuple[torch.Tensor, Stream]:
    """A clip in chunks of these sizes."""
    stream, parts = Stream(), []
    for number, part in enumerate(x.split(sizes, dim=2)):
        stream.last = number == len(sizes) - 1
        parts.append(layer(part, stream))
        stream.first = False
    return torch.cat(parts, dim=2), stream


def cached_frames(kernel: int, stride: int, chunk: int, chunks: int) -> int:
    """Equation 5 of the Open-Sora Plan report (arXiv 2412.00131): k + mT - s * floor(mT / s + 1)."""
    return kernel + chunks * chunk - stride * (chunks * chunk // stride + 1)


@pytest.mark.parametrize(("kernel", "stride", "kept"), [(3, 1, 2), (3, 2, 1), (2, 2, 0)])
def test_the_cache_of_the_paper(kernel, stride, kept):
    assert [cached_frames(kernel, stride, 4, m) for m in range(1, 9)] == [kept] * 8


@pytest.mark.parametrize(("kernel", "stride"), KERNELS)
@pytest.mark.parametrize("chunk", [1, 2, 3, 4, 5, 8])
def test_a_convolution_keeps_what_equation_5_says(kernel, stride, chunk):
    layer, stream = CausalConv3d(1, 1, (kernel, 1, 1), (stride, 1, 1)), Stream()
    layer(torch.randn(1, 1, 1, 1, 1), stream)
    for m in range(1, 8):
        stream.first = False
        layer(torch.randn(1, 1, chunk, 1, 1), stream)
        # the next window begins after as many strides as there were outputs: one for frame 0, one each mT/s
        frames, begins = kernel - 1 + 1 + m * chunk, stride * (1 + (m * chunk) // stride)
        assert cached_frames(kernel, stride, chunk, m) == frames - begins
        assert stream.recall(layer).shape[2] == cached_frames(kernel, stride, chunk, m)


@pytest.mark.parametrize(("kernel", "stride"), KERNELS)
@pytest.mark.parametrize("sizes", [(1, 4, 4), (9,), (3, 1, 5), (1, 1, 1, 1, 1, 1, 1, 1, 1), (2, 7)])
def test_chunks_give_what_the_whole_gives(kernel, stride, sizes):
    layer, x = CausalConv3d(2, 3, (kernel, 3, 3), (stride, 2, 1), padding=1), torch.randn(1, 2, 9, 5, 6)
    direct = layer(x, whole())
    padded = torch.cat([x[:, :, :1]] * (kernel - 1) + [x], dim=2)
    expected = torch.nn.functional.conv3d(padded, layer.conv.weight, layer.conv.bias, (stride, 2, 1), (0, 1, 1))
    torch.testing.assert_close(direct, expected)
    assert direct.shape[2] == 8 // stride + 1
    torch.testing.assert_close(through(layer, x, sizes)[0], direct)


def test_the_future_does_not_matter():
    layer, x = CausalConv3d(1, 1, 3, padding=1), torch.randn(1, 1, 6, 4, 4)
    changed = x.clone()
    changed[:, :, 4:] = 7
    before, after = layer(x, whole()), layer(changed, whole())
    assert torch.equal(before[:, :, :4], after[:, :, :4]) and not torch.equal(before[:, :, 4], after[:, :, 4])


def test_strides_that_skip_frames_are_refused():
    with pytest.raises(ValueError, match="temporal stride 3 must be 1 to 2"):
        CausalConv3d(1, 1, 2, 3)


@pytest.mark.parametrize("frames", [1, 2, 3, 6])
def test_upsampling_is_linear_interpolation_after_the_first_frame(frames):
    x = torch.randn(2, 3, frames, 2, 2)
    found = CausalUpsample()(x, whole())
    later = interpolate(x[:, :, 1:], scale_factor=(2, 1, 1), mode="trilinear") if frames > 1 else x[:, :, :0]
    torch.testing.assert_close(found, torch.cat([x[:, :, :1], later], dim=2))


def test_upsampling_by_hand():
    x = torch.tensor([5.0, 0.0, 4.0]).view(1, 1, 3, 1, 1)
    assert CausalUpsample()(x, whole()).flatten().tolist() == [5, 0, 1, 3, 4]


@pytest.mark.parametrize("sizes", [(1, 4, 4), (1,) * 9, (9,), (4, 5), (8, 1)])
def test_upsampling_in_chunks_waits_for_one_frame(sizes):
    layer, x = CausalUpsample(), torch.randn(1, 2, 9, 1, 1)
    found, _ = through(layer, x, sizes)
    torch.testing.assert_close(found, layer(x, whole()))
    first = layer(x[:, :, :3], Stream())
    assert first.shape[2] == 1 + 3  # the fourth of two later frames needs the frame after them


def test_nothing_is_kept_of_a_whole_clip_and_copies_of_a_chunk():
    layers, x = (
        CausalSequential(CausalConv3d(1, 1, 3, padding=1), CausalConv3d(1, 1, 3, 2, padding=1)),
        torch.randn(1, 1, 9, 4, 4),
    )
    stream = whole()
    layers(x, stream)
    assert stream.held_values() == 0
    stream = Stream()
    layers(x, stream)
    kept = [stream.recall(layer) for layer in layers]
    assert [frames.shape[2] for frames in kept] == [2, 1] and stream.held_values() == 3 * 16
    assert all(frames.untyped_storage().nbytes() == frames.nbytes for frames in kept)


@pytest.mark.parametrize("stride", [1, 2])
def test_zeros_may_stand_before_the_first_frame(stride):
    layer, x = CausalConv3d(2, 3, 3, (stride, 1, 1), padding=1, zeros_before=True), torch.randn(1, 2, 9, 4, 4)
    expected = layer.conv(torch.nn.functional.pad(x, (0, 0, 0, 0, 2, 0)))
    torch.testing.assert_close(layer(x, whole()), expected)
    for sizes in ((1, 4, 4), (1,) * 9):
        torch.testing.assert_close(through(layer, x, sizes)[0], expected)


@pytest.mark.parametrize("parameters", [False, True])
@pytest.mark.parametrize(
    ("channels", "kernel", "shape"), [(7, 3, (1, 8, 8)), (3, 3, (1, 8, 8)), (16, 1, (2, 4, 4)), (3, 1, (1, 4, 4))]
)
def test_gradients_in_bfloat16_are_those_of_float32(channels, kernel, shape, parameters):
    """torch 2.13's are off by more than their size on one frame, and 1x1x1 kernels on large clips end the process."""
    layer = TrainedConv3d(channels, 16, kernel, padding=kernel // 2)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(parameter.bfloat16())  # both hold the same numbers
    exact = copy.deepcopy(layer)
    layer = layer.bfloat16() if parameters else layer
    x = torch.randn(2, channels, *shape).bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=not parameters):
        found = layer(x)
    expected = exact(x.float())
    assert found.dtype == torch.bfloat16 and torch.equal(found, expected.bfloat16())
    weights = torch.randn_like(expected).bfloat16()
    (found * weights).sum().backward()
    (expected * weights.float()).sum().backward()
    assert torch.equal(layer.weight.grad, exact.weight.grad.to(layer.weight.dtype))


def test_other_convolutions_stay_as_they_are():
    layer, x = TrainedConv3d(2, 4, 3, padding=1), torch.randn(1, 2, 3, 6, 6)
    plain = torch.nn.Conv3d(2, 4, 3, padding=1)
    plain.load_state_dict(layer.state_dict())
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        assert torch.equal(layer.to(dtype)(x.to(dtype)), plain.to(dtype)(x.to(dtype)))
