"""An adversary for autoencoders: a 3-D PatchGAN, the hinge loss, and the weight that balances it."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import relu

from vidlab.layers.causal import TrainedConv3d

Logits = Float[Tensor, "B 1 t h w"]


class PatchDiscriminator3D(nn.Module):
    """Tells real from reconstructed patches of clips: PatchGAN (Isola et al. 2017, arXiv 1611.07004) with 3-D kernels.

    Strided 3x3x3 convolutions, each but the first and the last followed by batch normalization and dropout, leaky ReLU
    of slope 0.2 between. Time is halved by the first two convolutions, space by the first ``layers``. Weights start at
    N(0, 0.02^2), gains of the normalization at N(1, 0.02^2). The defaults are those of WF-VAE, whose names it keeps.

    Args:
        channels: of the clips.
        width: channels after the first convolution; doubled by each further one, up to eight times.
        layers: strided convolutions.
        dropout: share of activations dropped in training.
    """

    def __init__(self, channels: int = 3, width: int = 64, layers: int = 4, dropout: float = 0.3) -> None:
        super().__init__()
        found: list[nn.Module] = [TrainedConv3d(channels, width, 3, stride=2, padding=1), nn.LeakyReLU(0.2)]
        widths = [width * min(2**n, 8) for n in range(layers + 1)]
        for n in range(1, layers + 1):
            stride = (2 if n == 1 else 1, 2, 2) if n < layers else (1, 1, 1)
            found += [
                TrainedConv3d(widths[n - 1], widths[n], 3, stride=stride, padding=1, bias=False),
                nn.BatchNorm3d(widths[n]),
                nn.LeakyReLU(0.2),
                nn.Dropout(dropout),
            ]
        self.main = nn.Sequential(*found, TrainedConv3d(widths[-1], 1, 3, padding=1))
        self.apply(_initialize)

    def forward(self, clips: Float[Tensor, "B C T H W"]) -> Logits:
        """A logit for each patch, above 0 for real."""
        return self.main(clips)  # (B, 1, t, h, w)


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Conv3d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm3d):
        nn.init.normal_(module.weight, 1.0, 0.02)


def hinge_loss(real: Logits, fake: Logits) -> Float[Tensor, ""]:
    """The discriminator's loss: half of mean max(0, 1 - real) + mean max(0, 1 + fake) (Lim and Ye 2017, 1705.02894)."""
    return 0.5 * (relu(1 - real).mean() + relu(1 + fake).mean())


def generator_loss(fake: Logits) -> Float[Tensor, ""]:
    """The autoencoder's part: minus the mean logit of its reconstructions."""
    return -fake.mean()


def adaptive_weight(
    reconstruction: Float[Tensor, ""],
    adversarial: Float[Tensor, ""],
    last_layer: Tensor,
    weight: float = 0.5,
    delta: float = 1e-6,
    limit: float = 1e6,
) -> Float[Tensor, ""]:
    """lambda_adv, equation 4 of the Open-Sora Plan report: gradients of both losses get one size at the last layer.

    weight * |grad reconstruction| / (|grad adversarial| + delta), after Esser et al. 2021 (arXiv 2012.09841,
    equation 7). The graphs of both losses stay for the backward pass; the weight itself carries no gradient.

    Args:
        reconstruction, adversarial: the losses.
        last_layer: weight of the decoder's last layer.
        weight: 1/2 in the paper.
        delta: keeps the quotient finite.
        limit: largest quotient, as published.
    """
    of_reconstruction, of_adversary = (
        torch.autograd.grad(loss, last_layer, retain_graph=True)[0].norm() for loss in (reconstruction, adversarial)
    )
    return weight * (of_reconstruction / (of_adversary + delta)).clamp(max=limit).detach()  # eq. 4
