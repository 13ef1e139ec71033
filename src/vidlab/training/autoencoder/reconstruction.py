"""The loss of a learned autoencoder without its adversary: absolute error, LPIPS, KL and wavelet terms."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from vidlab.autoencoders.base import Posterior
from vidlab.autoencoders.learned import WAVELET_BANDS, LearnedAutoencoder
from vidlab.errors import UserError
from vidlab.losses.autoencoding import kl_loss, reconstruction_loss, wavelet_loss
from vidlab.perceptual.lpips import LPIPS
from vidlab.randomness import KeyedRNG
from vidlab.training.autoencoder.perceptual import frame_distances


@dataclass(frozen=True)
class LossWeights:
    """What each term counts; the defaults are WF-VAE's.

    Args:
        perceptual: of LPIPS beside the absolute error, lambda_lpips: 1, in the authors' third stage 0.1.
        kl: lambda_KL.
        wavelet: lambda_WL; 0 leaves the term out of the loss, and it is logged all the same where there are bands.
        adversarial: share of the reconstruction's gradient at the last layer that the adversary's gets (equation 4).

    Raises:
        UserError: a negative weight.
    """

    perceptual: float = 1.0
    kl: float = 1e-6
    wavelet: float = 0.1
    adversarial: float = 0.5

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 0:
                raise UserError(f"task.weights.{name}={value} must not be negative.")

    def check(self, autoencoder: LearnedAutoencoder) -> None:
        """Refuse a weight of a term that an autoencoder cannot give.

        Raises:
            UserError: ``wavelet`` is not 0, and there are no bands.
        """
        if self.wavelet and WAVELET_BANDS not in autoencoder.features:
            raise UserError(
                f"task.weights.wavelet={self.wavelet}: {type(autoencoder).__name__} has no wavelet sub-bands to "
                "compare. Set task.weights.wavelet=0."
            )


@dataclass(frozen=True)
class Reconstruction:
    """A batch, encoded and decoded, and the terms of its loss without the adversary.

    Args:
        posterior: of z, the unscaled latents.
        pixels: what was decoded, not clamped.
        terms: unweighted, by the names they are logged under.
        reconstruction: absolute error and LPIPS together, which the adversary is balanced against.
        total: the weighted sum of all.
    """

    posterior: Posterior
    pixels: Float[Tensor, "B 3 T H W"]
    terms: dict[str, Tensor]
    reconstruction: Float[Tensor, ""]
    total: Float[Tensor, ""]


def reconstruct(
    autoencoder: LearnedAutoencoder,
    pixels: Float[Tensor, "B 3 T H W"],
    weights: LossWeights,
    perceptual: LPIPS | None = None,
    draw: KeyedRNG | None = None,
) -> Reconstruction:
    """Encode and decode; with ``draw`` a sample of the posterior, otherwise its mean.

    Args:
        autoencoder: in training.
        pixels: clips in [-1, 1].
        weights: of the terms.
        perceptual: the LPIPS network; None leaves the term out.
        draw: random numbers of the clips.
    """
    wanted = autoencoder.features & {WAVELET_BANDS}
    encoded = autoencoder.encode_to_moments(pixels, wanted)
    posterior = encoded.posterior
    assert posterior.log_variance is not None
    z = posterior.mode  # (B, C, T', H', W')
    if draw is not None:
        z = posterior.sample(draw.normal("posterior", tuple(z.shape[1:])).to(z))
    decoded = autoencoder.decode_z(z, wanted)
    distances = None if perceptual is None else frame_distances(perceptual, pixels, decoded.pixels)
    reconstruction = reconstruction_loss(pixels, decoded.pixels, distances, weights.perceptual)
    kl = kl_loss(posterior.mean, posterior.log_variance)
    total = reconstruction + weights.kl * kl
    terms = {"l1": (pixels - decoded.pixels).abs().mean(), "kl": kl}
    if wanted:
        terms["wavelet"] = wavelet_loss(encoded.features[WAVELET_BANDS], decoded.features[WAVELET_BANDS])
        total = total + weights.wavelet * terms["wavelet"]  # Open-Sora Plan, eq. 3, but for the adversary
    terms |= {} if distances is None else {"lpips": distances.mean()}
    return Reconstruction(posterior, decoded.pixels, terms, reconstruction, total)
