from pathlib import Path

import numpy as np
import perceptual_inputs
import pytest
import torch
import torch.nn.functional as F

from vidlab.errors import UserError
from vidlab.perceptual.i3d import I3D, _Conv, load_i3d, same_padding


@pytest.fixture(scope="module")
def random_i3d():
    torch.manual_seed(0)
    return I3D()


# size, kernel, stride -> zeros before and after, by hand: the output has ceil(size / stride) places
@pytest.mark.parametrize(
    ("size", "kernel", "stride", "before", "after"),
    [(16, 7, 2, 2, 3), (224, 7, 2, 2, 3), (15, 7, 2, 3, 3), (112, 3, 2, 0, 1), (8, 3, 1, 1, 1), (5, 2, 2, 0, 1),
     (4, 2, 2, 0, 0), (3, 1, 2, 0, 0)],
)  # fmt: skip
def test_same_padding_by_hand(size, kernel, stride, before, after):
    assert same_padding(size, kernel, stride) == (before, after)


def test_a_strided_convolution_reads_where_tensorflow_does():
    """Kernel of ones on 0, 1, ..., 5 with stride 2 and SAME: three places, one zero after the end."""
    conv = _Conv(1, 1, (1, 1, 3), stride=(1, 1, 2))
    conv.weight.data.fill_(1)
    conv.bias.data.zero_()
    assert conv(torch.arange(6.0).view(1, 1, 1, 1, 6)).flatten().tolist() == [0 + 1 + 2, 2 + 3 + 4, 4 + 5]


def test_parameters_are_those_of_the_published_network(random_i3d):
    # 12 704 544 numbers are published: kernels, 400 biases, and for each of the 57 normalized convolutions a shift, a
    # mean and a variance per channel; folding leaves one bias of the three.
    channels = sum(m.out_channels for m in random_i3d.modules() if isinstance(m, _Conv))
    assert sum(p.numel() for p in random_i3d.parameters()) + 2 * channels == 12_704_544
    assert not any(p.requires_grad for p in random_i3d.parameters()) and not random_i3d.train().training


def test_clips_that_are_too_small_are_refused(random_i3d):
    for size in ((8, 224, 224), (16, 192, 224)):
        with pytest.raises(UserError, match=r"at least 9 frames and 193 x 193 pixels, these have"):
            random_i3d(torch.zeros(1, 3, *size))


@pytest.fixture(scope="module")
def published(random_i3d):
    """Random numbers under the names and shapes of the published file, and a plain reading of them."""
    draws = torch.Generator().manual_seed(1)
    found = {}

    def unit(name, channels, out, kernel):
        size = (*(kernel,) * 3, channels, out)
        found[f"params/{name}/Conv_0/kernel"] = torch.randn(size, generator=draws) / (channels * kernel**3) ** 0.5
        found[f"params/{name}/BatchNorm_0/bias"] = torch.randn(out, generator=draws) / 2
        found[f"batch_stats/{name}/BatchNorm_0/mean"] = torch.randn(1, 1, 1, 1, out, generator=draws) / 2
        found[f"batch_stats/{name}/BatchNorm_0/var"] = torch.rand(1, 1, 1, 1, out, generator=draws) + 0.5

    unit("Conv3d_1a_7x7", 3, 64, 7), unit("Conv3d_2b_1x1", 64, 64, 1), unit("Conv3d_2c_3x3", 64, 192, 3)
    channels = 192
    for name, block in random_i3d.blocks.items():
        plain, narrow_1, narrow_2 = block.split
        for n, out in enumerate(block.split):
            unit(f"{name}/Branch_{n}/Conv3d_0a_1x1", channels, out, 1)
        unit(f"{name}/Branch_1/Conv3d_0b_3x3", narrow_1, block.wide_1.out_channels, 3)
        unit(f"{name}/Branch_2/Conv3d_0b_3x3", narrow_2, block.wide_2.out_channels, 3)
        unit(f"{name}/Branch_3/Conv3d_0b_1x1", channels, block.pooled.out_channels, 1)
        channels = plain + block.wide_1.out_channels + block.wide_2.out_channels + block.pooled.out_channels
    found["params/Logits/Conv3d_0c_1x1/Conv_0/kernel"] = torch.randn(1, 1, 1, 1024, 400, generator=draws) / 32
    found["params/Logits/Conv3d_0c_1x1/Conv_0/bias"] = torch.randn(400, generator=draws)
    return found


def plain_i3d(weights, x):
    """The network as its paper draws it: SAME padding by ceil, BatchNorm apart, branches apart."""

    def pad(x, kernel, stride):
        pads = []
        for n, k, s in reversed(list(zip(x.shape[2:], kernel, stride, strict=True))):
            total = max(k - (s if n % s == 0 else n % s), 0)
            pads += [total // 2, total - total // 2]
        return pads

    def unit(x, name, stride=1):
        kernel = weights[f"params/{name}/Conv_0/kernel"].permute(4, 3, 0, 1, 2)
        x = F.conv3d(F.pad(x, pad(x, kernel.shape[2:], (stride,) * 3)), kernel, stride=stride)
        stats = [weights[f"batch_stats/{name}/BatchNorm_0/{n}"].flatten() for n in ("mean", "var")]
        return F.batch_norm(x, *stats, bias=weights[f"params/{name}/BatchNorm_0/bias"], eps=1e-3).relu()

    def pool(x, kernel, stride):
        return F.max_pool3d(F.pad(x, pad(x, kernel, stride), value=-torch.inf), kernel, stride)

    x = pool(unit(x, "Conv3d_1a_7x7", 2), (1, 3, 3), (1, 2, 2))
    x = pool(unit(unit(x, "Conv3d_2b_1x1"), "Conv3d_2c_3x3"), (1, 3, 3), (1, 2, 2))
    for name in ("3b", "3c", "pool 3", "4b", "4c", "4d", "4e", "4f", "pool 2", "5b", "5c"):
        if name.startswith("pool"):
            size = (int(name[-1]),) * 3
            x = pool(x, size, (2, 2, 2))
            continue
        b = f"Mixed_{name}/Branch_"
        wide = [unit(unit(x, f"{b}{n}/Conv3d_0a_1x1"), f"{b}{n}/Conv3d_0b_3x3") for n in (1, 2)]
        pooled = unit(pool(x, (3, 3, 3), (1, 1, 1)), f"{b}3/Conv3d_0b_1x1")
        x = torch.cat([unit(x, f"{b}0/Conv3d_0a_1x1"), *wide, pooled], 1)
    x = F.avg_pool3d(x, (2, 7, 7), 1)
    name = "params/Logits/Conv3d_0c_1x1/Conv_0"
    logits = F.conv3d(x, weights[f"{name}/kernel"].permute(4, 3, 0, 1, 2), weights[f"{name}/bias"])
    return logits.squeeze((3, 4)).mean(2)


def test_folded_network_equals_the_plain_one(published, tmp_path):
    from safetensors.torch import save_file

    save_file({name: x.contiguous() for name, x in published.items()}, tmp_path / "i3d.safetensors")
    network = load_i3d(str(tmp_path / "i3d.safetensors"))
    clip = torch.rand(1, 3, 10, 199, 206) * 2 - 1
    with torch.inference_mode():
        expected, found = plain_i3d(published, clip), network(clip)
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.network
def test_logits_equal_the_original_network():
    """reference.npz comes from the original JAX network, see make_reference.py."""
    expected = np.load(Path(__file__).with_name("reference.npz"))
    network = load_i3d()
    clips = torch.from_numpy(perceptual_inputs.video()).permute(0, 4, 1, 2, 3)
    odd = torch.from_numpy(perceptual_inputs.video(frames=11, clips=1)).permute(0, 4, 1, 2, 3)[..., :217, :221]
    with torch.inference_mode():
        assert (network(clips) - torch.from_numpy(expected["i3d_16"])).abs().max() < 1e-4
        assert (network(odd) - torch.from_numpy(expected["i3d_11"])).abs().max() < 1e-4
