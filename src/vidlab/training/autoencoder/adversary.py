"""Losses that need an adversary: the term that the autoencoder adds to its own, and that of the discriminator."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vidlab.autoencoders.learned import LearnedAutoencoder
from vidlab.losses.adversarial import adaptive_weight, generator_loss, hinge_loss
from vidlab.randomness import KeyedRNG
from vidlab.training.autoencoder.reconstruction import Reconstruction

Terms = dict[str, Tensor]


def against_discriminator(
    autoencoder: LearnedAutoencoder, discriminator: nn.Module, made: Reconstruction, share: float
) -> tuple[Float[Tensor, ""], Terms]:
    """The generator's weighted adversarial term, lambda_adv L_adv, and both factors by name.

    lambda_adv is equation 4 of the Open-Sora Plan report (arXiv 2412.00131), at the decoder's last layer.

    Args:
        autoencoder: whose reconstruction it is.
        discriminator: gets no gradients.
        made: the reconstruction, with its graph.
        share: of the reconstruction's gradient.
    """
    with _frozen(discriminator):
        adversarial = generator_loss(discriminator(made.pixels))
    weight = adaptive_weight(made.reconstruction, adversarial, autoencoder.last_decoder_weight(), share)
    return weight * adversarial, {"adversarial": adversarial, "adaptive_weight": weight}


def discriminate(
    autoencoder: LearnedAutoencoder, discriminator: nn.Module, pixels: Float[Tensor, "B 3 T H W"], draw: KeyedRNG
) -> tuple[Float[Tensor, ""], Float[Tensor, "B 3 T H W"], Terms]:
    """The discriminator's hinge loss, the reconstruction it saw, and what is logged.

    Args:
        autoencoder: gets no gradients; the reconstruction is of a sample of the posterior.
        discriminator: in training.
        pixels: real clips in [-1, 1].
        draw: random numbers of the clips.
    """
    with torch.no_grad():
        posterior = autoencoder.encode_to_moments(pixels).posterior
        noise = draw.normal("posterior", tuple(posterior.mean.shape[1:]))
        fake_pixels = autoencoder.decode_z(posterior.sample(noise.to(posterior.mean))).pixels
    real, fake = discriminator(pixels), discriminator(fake_pixels)  # (B, 1, t, h, w)
    loss = hinge_loss(real, fake)
    return loss, fake_pixels, {"discriminator": loss, "logits_real": real.mean(), "logits_fake": fake.mean()}


@contextmanager
def _frozen(network: nn.Module) -> Iterator[None]:
    """Gradients pass through, and none is kept."""
    network.requires_grad_(False)
    try:
        yield
    finally:
        network.requires_grad_(True)
