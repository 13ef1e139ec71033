"""What a video autoencoder is trained on besides an adversary: reconstruction, KL and wavelet terms.

Sums and divisors are those of the published WF-VAE training, so its weights carry over: the terms are large numbers
(sums over a clip), of which the weights 1e-6 (KL) and 0.1 (wavelets) take a part.
"""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor


def reconstruction_loss(
    pixels: Float[Tensor, "B C T H W"],
    reconstruction: Float[Tensor, "B C T H W"],
    perceptual: Float[Tensor, "frames"] | None = None,
    perceptual_weight: float = 1.0,
) -> Float[Tensor, ""]:
    """Absolute error plus weighted perceptual distance, summed over a frame and averaged over frames.

    The distance counts once for each value of the frame, as it is broadcast over pixels in the published training and
    in latent diffusion (Rombach et al. 2022).

    Args:
        pixels, reconstruction: clips.
        perceptual: distance of each of the B T frames, such as LPIPS.
        perceptual_weight: lambda_lpips: 1, in the third stage of WF-VAE 0.1.
    """
    frames = pixels.shape[0] * pixels.shape[2]
    loss = (pixels - reconstruction).abs().sum() / frames
    if perceptual is None:
        return loss
    return loss + perceptual_weight * perceptual.mean() * (pixels[0].numel() / pixels.shape[2])


def kl_loss(mean: Float[Tensor, "B C T H W"], log_variance: Float[Tensor, "B C T H W"]) -> Float[Tensor, ""]:
    """KL(N(mean, exp(log_variance)) || N(0, 1)), summed over latents and averaged over clips.

    Kingma and Welling 2014 (arXiv 1312.6114), appendix B.
    """
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum() / mean.shape[0]


def wavelet_loss(
    analyzed: Sequence[Float[Tensor, "B _ _ _ _"]], synthesized: Sequence[Float[Tensor, "B _ _ _ _"]]
) -> Float[Tensor, ""]:
    """L_WL, equation 2 of the Open-Sora Plan report (arXiv 2412.00131): bands of the decoder against the encoder's.

    Absolute differences summed over all bands and averaged over clips. Both sides carry gradients.

    Args:
        analyzed: bands of the encoder, level by level.
        synthesized: bands of the decoder, in the same order and shapes.

    Raises:
        ValueError: levels that do not match.
    """
    shapes = [[tuple(bands.shape) for bands in side] for side in (analyzed, synthesized)]
    if shapes[0] != shapes[1] or not shapes[0]:
        raise ValueError(f"bands of encoder and decoder differ in shape: {shapes[0]} and {shapes[1]}")
    differences = [(ours - theirs).abs().sum() for ours, theirs in zip(synthesized, analyzed, strict=True)]
    return sum(differences, differences[0].new_zeros(())) / analyzed[0].shape[0]
