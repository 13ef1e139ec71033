from itertools import pairwise

import pytest
import torch
from torch import nn

from vidlab.losses.adversarial import PatchDiscriminator3D, adaptive_weight, generator_loss, hinge_loss


def logits(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32).view(1, 1, 1, 1, -1)


def test_parameters_of_the_published_discriminator():
    widths = [64, 128, 256, 512, 512]
    inner = sum(27 * a * b + 2 * b for a, b in pairwise(widths))
    model = PatchDiscriminator3D()
    assert sum(p.numel() for p in model.parameters()) == 27 * 3 * 64 + 64 + inner + 27 * 512 + 1
    names = [name for name, _ in model.named_parameters()]
    assert (
        names[:4] == ["main.0.weight", "main.0.bias", "main.2.weight", "main.3.weight"] and names[-1] == "main.18.bias"
    )


def test_strides():
    model = PatchDiscriminator3D(width=2)
    strides = [layer.stride for layer in model.main if isinstance(layer, nn.Conv3d)]
    assert strides == [(2, 2, 2), (2, 2, 2), (1, 2, 2), (1, 2, 2), (1, 1, 1), (1, 1, 1)]
    assert model(torch.randn(2, 3, 17, 64, 48)).shape == (2, 1, 5, 4, 3)
    assert model.eval()(torch.randn(1, 3, 1, 16, 16)).shape == (1, 1, 1, 1, 1)


def test_weights_at_the_start():
    torch.manual_seed(0)
    model = PatchDiscriminator3D(width=16)
    convolutions = torch.cat([layer.weight.flatten() for layer in model.main if isinstance(layer, nn.Conv3d)])
    gains = torch.cat([layer.weight for layer in model.main if isinstance(layer, nn.BatchNorm3d)])
    assert convolutions.std().item() == pytest.approx(0.02, rel=0.01) and abs(convolutions.mean()) < 1e-4
    assert gains.mean().item() == pytest.approx(1, abs=0.005) and gains.std().item() == pytest.approx(0.02, rel=0.1)


def test_hinge_by_hand():
    # real: max(0, 1 - x) of 2, 0.5, -1 is 0, 0.5, 2; fake: max(0, 1 + x) of -2, 0.5 is 0, 1.5
    assert hinge_loss(logits(2, 0.5, -1), logits(-2, 0.5, -2)).item() == pytest.approx(0.5 * (2.5 / 3 + 1.5 / 3))
    assert generator_loss(logits(1, 2, 6)).item() == -3


def test_it_learns_to_tell_noise_from_flat_clips():
    torch.manual_seed(0)
    model = PatchDiscriminator3D(width=4, layers=2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(30):
        real, fake = torch.rand(4, 3, 1, 1, 1).expand(4, 3, 5, 16, 16), torch.randn(4, 3, 5, 16, 16)
        loss = hinge_loss(model(real), model(fake))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.3  # 1 at the start


def losses(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Two losses of a decoder whose last layer is ``weight``."""
    x = torch.linspace(-1, 1, 12, dtype=torch.float64).view(4, 3)
    y = torch.tanh(x @ weight)
    return (y - 0.3).abs().sum(), -(3 * y**2).mean()


def test_the_adaptive_weight_by_finite_differences():
    weight = torch.linspace(0.1, 1.2, 6, dtype=torch.float64).view(3, 2).requires_grad_()
    found = adaptive_weight(*losses(weight), weight)
    step, norms = 1e-6, [0.0, 0.0]
    for place in range(weight.numel()):
        moved = [weight.detach().clone() for _ in range(2)]
        moved[0].view(-1)[place] += step
        moved[1].view(-1)[place] -= step
        up, down = losses(moved[0]), losses(moved[1])
        for which in range(2):
            norms[which] += ((up[which] - down[which]).item() / (2 * step)) ** 2
    assert found.item() == pytest.approx(0.5 * norms[0] ** 0.5 / (norms[1] ** 0.5 + 1e-6), rel=1e-6)
    assert not found.requires_grad


def test_both_gradients_get_one_size():
    weight = torch.linspace(0.1, 1.2, 6, dtype=torch.float64).view(3, 2).requires_grad_()
    reconstruction, adversarial = losses(weight)
    factor = adaptive_weight(reconstruction, adversarial, weight, weight=1.0)
    sizes = [
        torch.autograd.grad(loss, weight, retain_graph=True)[0].norm().item()
        for loss in (reconstruction, factor * adversarial)
    ]
    assert sizes[0] == pytest.approx(sizes[1], rel=1e-5)
    (reconstruction + factor * adversarial).backward()  # the graphs are still there
    assert weight.grad.isfinite().all()


def test_a_silent_adversary_does_not_divide_by_zero():
    weight = torch.ones(2, requires_grad=True)
    assert adaptive_weight((weight * 3).sum(), (weight * 0).sum(), weight).item() == 0.5e6
