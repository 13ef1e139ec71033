"""HED against the package that its weights come from, and PiDiNet's operations by hand."""

from argparse import Namespace
from pathlib import Path

import numpy as np
import perceptual_inputs
import pytest
import torch

from vidlab.conditioning.structure.learned import PiDiNetSketch
from vidlab.conditioning.structure.signals import SourceClips
from vidlab.errors import UserError
from vidlab.perceptual.hdf5 import read_hdf5
from vidlab.perceptual.hed import HED, load_hed
from vidlab.perceptual.pidinet import PiDiNet, angular, central, load_pidinet, radial

REFERENCE = Path(__file__).with_name("hed_reference.npz")


def count(net: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def test_sizes_are_those_that_are_published():
    # VGG-16 without its dense layers has 14 714 688; then five maps of one channel and their weighted sum
    assert count(HED()) == 14_714_688 + (64 + 128 + 256 + 512 + 512) + 5 + 6
    assert round(count(PiDiNet()) / 1e6, 2) == 0.71  # Su et al. 2021, table 5


@pytest.mark.network
def test_hed_answers_as_its_package_does():
    expected = torch.from_numpy(np.load(REFERENCE)["edges"])
    height, width = expected.shape
    image = np.round((perceptual_inputs.image_pairs()[0][:1, :height, :width] + 1) * 127.5) / 127.5 - 1
    found = load_hed()(torch.from_numpy(image).float().permute(0, 3, 1, 2))
    torch.testing.assert_close(found[0, 0], expected, rtol=0, atol=1e-5)


def test_difference_convolutions_by_hand():
    """Of a flat picture nothing is left inside; of a ramp a central difference is the sum of w_i (x_i - x_c)."""
    weight = torch.arange(9.0).view(1, 1, 3, 3)
    flat = torch.ones(1, 1, 7, 7)
    for kind in (central, angular, radial):
        assert kind(flat, weight, 1, 1)[..., 2:5, 2:5].abs().max() < 1e-5
    ramp = torch.arange(7.0).expand(1, 1, 7, 7)  # each column one more than the one before
    right, left = weight[..., 2].sum(), weight[..., 0].sum()
    assert central(ramp, weight, 1, 1)[0, 0, 3, 3] == right - left
    # the last eight weights, 1 to 8, stand around in reading order at columns -1, 0, 1, -1, 1, -1, 0, 1
    assert radial(ramp, weight, 1, 1)[0, 0, 3, 3] == -1 + 3 - 4 + 5 - 6 + 8  # two steps from the middle against one
    around = torch.tensor([3, 0, 1, 6, 4, 2, 7, 8, 5])
    x = torch.randn(1, 1, 5, 5)
    patch = x[0, 0, 1:4, 1:4].flatten()
    by_hand = sum(w * (patch[n] - patch[(around == n).nonzero().item()]) for n, w in enumerate(weight.flatten()))
    torch.testing.assert_close(angular(x, weight, 1, 1)[0, 0, 2, 2], by_hand)


def test_pidinet_is_read_as_its_authors_save_it(tmp_path):
    torch.manual_seed(0)
    net = PiDiNet()
    state = {f"module.{name}": value for name, value in net.state_dict().items()}
    assert {"module.init_block.weight", "module.block1_1.conv1.weight", "module.block2_1.shortcut.bias",
            "module.block4_4.conv2.weight", "module.dilations.3.conv2_4.weight", "module.attentions.0.conv1.bias",
            "module.conv_reduces.0.conv.weight", "module.classifier.bias"} <= set(state)  # fmt: skip
    file = tmp_path / "table5_pidinet.pth"
    torch.save({"epoch": 19, "args": Namespace(sa=True, dil=True), "state_dict": state}, file)
    clip = torch.rand(1, 3, 2, 24, 32) * 2 - 1
    found = PiDiNetSketch(str(file)).extract(SourceClips(clip))
    assert found.shape == (1, 1, 2, 24, 32)
    torch.testing.assert_close(found[:, :, 1], net(clip[:, :, 1]))
    torch.save({"state_dict": {"module.init_block.weight": torch.zeros(3)}}, file)
    with pytest.raises(UserError, match="is no PiDiNet of 60 channels"):
        load_pidinet(str(file))
    with pytest.raises(UserError, match=r"structure\.sketch\.path"):
        load_pidinet(str(tmp_path / "none.pth"))


def test_a_file_of_another_kind_is_no_hdf5(tmp_path):
    file = tmp_path / "weights.h5"
    file.write_bytes(b"no such thing")
    with pytest.raises(UserError, match="cannot be read as HDF5"):
        read_hdf5(file)
    import h5py

    with h5py.File(file, "w") as made:
        made["a/vars/0"] = np.arange(6.0, dtype=np.float32).reshape(2, 3)
        made["elsewhere"] = h5py.ExternalLink("/etc/passwd", "/")
        made["text"] = "abc"
    found = read_hdf5(file)
    assert list(found) == ["a/vars/0"] and torch.equal(found["a/vars/0"], torch.arange(6.0).view(2, 3))


def test_a_damaged_hdf5_is_read_or_named(tmp_path):
    import h5py

    file, refused = tmp_path / "weights.h5", 0
    with h5py.File(file, "w") as made:
        made["a/vars/0"] = np.arange(6.0, dtype=np.float32).reshape(2, 3)
    intact = file.read_bytes()
    for place in range(0, len(intact), 37):
        file.write_bytes(intact[:place] + bytes([intact[place] ^ 0xFF]) + intact[place + 1 :])
        try:
            read_hdf5(file)
        except UserError as error:
            assert "cannot be read as HDF5" in str(error)
            refused += 1
    assert refused > 5
