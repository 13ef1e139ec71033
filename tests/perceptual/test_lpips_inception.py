from pathlib import Path

import numpy as np
import perceptual_inputs
import pytest
import torch

from vidlab.errors import UserError
from vidlab.perceptual.inception import Inception, _Conv, load_inception
from vidlab.perceptual.lpips import LPIPS, load_lpips, unit_length
from vidlab.perceptual.resize import resize_frames, resize_videos

HERE = Path(__file__).parent


@pytest.mark.parametrize(("net", "trunk", "heads"), [("alex", 2_469_696, 1152), ("vgg", 14_714_688, 1472)])
def test_lpips_has_the_published_number_of_weights(net, trunk, heads):
    model = LPIPS(net)
    assert sum(p.numel() for p in model.convs.parameters()) == trunk  # of AlexNet and VGG16 without classifiers
    assert sum(len(head) for head in model.heads) == heads


def test_lpips_is_the_weighted_distance_of_normalized_features():
    """Equation 1 of the paper, written out with loops over places."""
    model = LPIPS("alex")
    first, second = torch.rand(2, 1, 3, 40, 37) * 2 - 1
    expected = 0.0
    for a, b, head in zip(model.features(first), model.features(second), model.heads, strict=True):
        places = [
            float((head * (a[0, :, y, x] / a[0, :, y, x].norm() - b[0, :, y, x] / b[0, :, y, x].norm()) ** 2).sum())
            for y in range(a.shape[2])
            for x in range(a.shape[3])
        ]
        expected += sum(places) / len(places)
    assert model(first, second).item() == pytest.approx(expected, rel=1e-5)
    assert model(first, first).item() == 0 and model(first, second).item() == model(second, first).item()


def test_gradients_reach_the_images_and_are_finite():
    image = torch.full((1, 3, 40, 40), -0.03, requires_grad=True)
    LPIPS("alex")(image, torch.zeros(1, 3, 40, 40)).sum().backward()
    assert image.grad.isfinite().all() and image.grad.abs().sum() > 0
    zeros = torch.zeros(1, 2, 1, 1, requires_grad=True)
    unit_length(zeros).sum().backward()
    assert zeros.grad.isfinite().all()


def test_small_images_and_unknown_nets_are_refused():
    with pytest.raises(UserError, match="at least 31 pixels a side, these have 30 x 64"):
        LPIPS("alex")(torch.zeros(1, 3, 30, 64), torch.zeros(1, 3, 30, 64))
    LPIPS("alex")(torch.zeros(1, 3, 31, 31), torch.zeros(1, 3, 31, 31))
    LPIPS("vgg")(torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 16))
    with pytest.raises(UserError, match="at least 75 x 75"):
        Inception()(torch.zeros(1, 3, 74, 299))


def test_inception_gives_2048_features():
    model = Inception()
    # 21 785 568 kernel weights of Inception-v3 without its classifiers and BatchNorm (hand sum over its 94
    # convolutions)
    convs = [m for m in model.modules() if isinstance(m, _Conv)]
    assert len(convs) == 94
    assert model(torch.zeros(2, 3, 75, 75)).shape == (2, 2048)


def test_bilinear_resize_by_hand():
    """Two pixels to four: centers at 1/4, 3/4 of a pixel, edges repeated."""
    row = torch.tensor([0.0, 1.0]).view(1, 1, 1, 2)
    assert resize_frames(row, 1, 4).flatten().tolist() == [0, 0.25, 0.75, 1]
    assert resize_videos(row.view(1, 1, 1, 1, 2).expand(1, 1, 3, 1, 2), 1, 4)[0, 0, 2].flatten().tolist() == [
        0,
        0.25,
        0.75,
        1,
    ]
    assert resize_frames(row, 1, 1, "area").item() == 0.5
    with pytest.raises(UserError, match="known filters are bilinear, "):
        resize_frames(row, 1, 4, "lanczos")


@pytest.mark.network
@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_lpips_equals_the_original(net):
    expected = np.load(HERE / "reference.npz")[net]
    pairs = [torch.from_numpy(x).permute(0, 3, 1, 2) for x in perceptual_inputs.image_pairs()]
    assert (load_lpips(net)(*pairs) - torch.from_numpy(expected)).abs().max() < 1e-5


@pytest.mark.network
def test_inception_equals_the_published_program():
    expected = np.load(HERE / "inception_reference.npz")["inception"]
    images = torch.from_numpy(perceptual_inputs.inception_images()).permute(0, 3, 1, 2)
    with torch.inference_mode():
        assert (load_inception()(images) - torch.from_numpy(expected)).abs().max() < 1e-4
