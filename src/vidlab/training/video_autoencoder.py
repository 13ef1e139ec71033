"""The LightningModule that trains learned video autoencoders: reconstruction against an adversary, in turn."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import override

from vidlab.autoencoders.base import Autoencoder
from vidlab.autoencoders.learned import LearnedAutoencoder
from vidlab.clip import ClipBatch
from vidlab.cost.flops import ModelCost, autoencoder_cost
from vidlab.errors import UserError
from vidlab.metrics.reconstruction.psnr import PSNR
from vidlab.metrics.reconstruction.ssim import SSIM
from vidlab.perceptual.lpips import LPIPS
from vidlab.randomness import KeyedRNG, seed_of
from vidlab.training.autoencoder.adversary import against_discriminator, discriminate
from vidlab.training.autoencoder.alternating import AlternatingModule
from vidlab.training.autoencoder.augmentation import mirrored
from vidlab.training.autoencoder.gan_step import GANOptimizerStep
from vidlab.training.autoencoder.latent_stats import LatentMoments
from vidlab.training.autoencoder.perceptual import check_size
from vidlab.training.autoencoder.reconstruction import LossWeights, Reconstruction, reconstruct
from vidlab.training.autoencoder.trainer_checks import check_data, check_precision_and_strategy
from vidlab.training.autoencoder.turns import Turns
from vidlab.training.module import stop_iteration_is_an_error
from vidlab.training.optimization.clipping import AdaptiveClipper
from vidlab.training.optimization.optimizers import OptimizerFactory

SCALES = ("all", "channel", "keep")
SSIM_SMALLEST = 11


class VideoAutoencoder(AlternatingModule):
    """Trains an autoencoder on clips as WF-VAE was (Open-Sora Plan, arXiv 2412.00131, section 2.1, equations 2 to 4).

    The generator minimizes, with sums over a frame's or a clip's values as published,

        |x - x'| + lambda_lpips LPIPS + lambda_KL KL + lambda_WL WL + lambda_adv L_adv,

    where lambda_adv is ``weights.adversarial`` times the ratio of the gradients of the first two terms and of L_adv at
    the decoder's last layer. The discriminator minimizes the hinge loss.

    A *step* is a batch fetched, whoever uses it: ``trainer.max_steps``, intervals, the learning-rate schedules and
    ``trainer.global_step`` count batches. Before ``discriminator_start`` every step is the generator's; from then on
    even steps are the generator's and odd ones the discriminator's. With ``accumulate``, as many successive batches
    make one turn and one optimizer step.

    Each validation measures mean and standard deviation of the latents of the held-out clips, with the averaged weights
    where there are any, and stores the scale and shift that give them unit variance in the autoencoder; mean and
    standard deviation of every channel, before scaling, are in checkpoints as ``latents``.

    Args:
        autoencoder: a ``LearnedAutoencoder``; all of it is trained.
        clip_shape: (frames, height, width) of training clips in pixels.
        optimizer: builds the optimizer of the autoencoder; without ``lr_multipliers`` it takes the autoencoder's own.
        lr_schedule: factor on both rates by step.
        weights: of the terms.
        perceptual: the LPIPS network, frozen; None trains and validates without.
        discriminator: the adversary; None trains without.
        discriminator_optimizer: builds the optimizer of the adversary; None takes ``optimizer`` without its
            ``lr_multipliers``, which name parameters of the autoencoder.
        discriminator_start: step from which there is an adversary.
        mirror: train on clips mirrored, turned and reversed in time at random (``mirrored``); validation never does.
        accumulate: batches to an optimizer step; Lightning leaves accumulation to modules with two optimizers.
        adaptive_clipping: leaves outlying gradients out, with statistics for each of the two; None does not.
        latent_scale: ``all``: one scale and shift for all channels; ``channel``: one for each; ``keep``: those that the
            autoencoder came with.
        seed: seed of every random number of training.

    Logs:
        per step of the generator train/loss, train/reconstruction (absolute error and LPIPS together), train/l1 (mean
        absolute error of a value), train/lpips (mean of frames), train/kl, train/wavelet, train/grad_norm, and with an
        adversary train/adversarial and train/adaptive_weight; per step of the discriminator train/discriminator,
        train/logits_real, train/logits_fake, train/discriminator_grad_norm; per validation val/loss (the generator's
        without the adversary), val/psnr (dB), val/ssim, val/lpips, val/l1, val/kl, val/wavelet, val/latent_std (before
        scaling).

    Raises:
        UserError: an autoencoder without anything to train, or a setting out of range.
    """

    results = ("val/loss", "val/psnr", "val/ssim", "val/lpips", "val/l1")

    def __init__(
        self,
        autoencoder: Autoencoder,
        clip_shape: tuple[int, int, int],
        optimizer: OptimizerFactory,
        lr_schedule: Any,
        weights: LossWeights | None = None,
        perceptual: LPIPS | None = None,
        discriminator: nn.Module | None = None,
        discriminator_optimizer: OptimizerFactory | None = None,
        discriminator_start: int = 0,
        mirror: bool = False,
        accumulate: int = 1,
        adaptive_clipping: AdaptiveClipper | None = None,
        latent_scale: str = "all",
        seed: int = 0,
    ) -> None:
        if not isinstance(autoencoder, LearnedAutoencoder):
            raise UserError(
                f"autoencoder: {type(autoencoder).__name__} has nothing to train. Use autoencoder=wfvae_nano, or "
                "another that is learned."
            )
        turns = Turns(discriminator is not None, discriminator_start, accumulate)
        if latent_scale not in SCALES:
            raise UserError(f"task.latent_scale={latent_scale}: choose {', '.join(SCALES)}.")
        check_size(perceptual, *clip_shape[1:])
        autoencoder.latent_shape(*clip_shape)
        weights = weights or LossWeights()
        weights.check(autoencoder)
        networks = [GANOptimizerStep("generator", autoencoder, optimizer.clip_norm, adaptive_clipping)]
        optimizers = [replace(optimizer, lr_multipliers=optimizer.lr_multipliers or autoencoder.lr_multipliers)]
        if discriminator is not None:
            optimizers.append(discriminator_optimizer or replace(optimizer, lr_multipliers={}))
            clip_norm = optimizers[1].clip_norm
            networks.append(GANOptimizerStep("discriminator", discriminator, clip_norm, adaptive_clipping))
        super().__init__(turns, networks, optimizers, lr_schedule)
        self.autoencoder: LearnedAutoencoder = autoencoder
        self.clip_shape, self.weights, self.mirror = clip_shape, weights, mirror
        self.perceptual = perceptual
        self.discriminator = discriminator
        self.latent_scale, self.seed = latent_scale, seed
        self._moments: LatentMoments | None = None
        self.latents: dict[str, list[float]] = {}

    @override
    def configure_model(self) -> None:
        """Nothing is left to build."""

    @override
    def on_fit_start(self) -> None:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        check_data(data, self.perceptual, measures_latents=self.latent_scale != "keep")
        check_precision_and_strategy(self.trainer)

    @stop_iteration_is_an_error
    def training_step(self, batch: ClipBatch, batch_index: int) -> dict[str, Tensor]:
        """One batch, for the network whose turn it is.

        Returns:
            ``loss``, detached: the optimizer step has been taken; ``per_clip``, (B,), the absolute error of each clip.
        """
        turn = self.turns.turn(self.trainer.global_step)
        if self.mirror:
            batch = replace(batch, content=mirrored(batch.pixels, self._draw(batch)))
        with self._random_numbers_of(batch):
            loss, shown = (self._discriminate if turn else self._generate)(batch)
        self.finish_batch(loss, batch)
        return {"loss": loss.detach(), "per_clip": (shown - batch.pixels).abs().mean(dim=(1, 2, 3, 4))}

    def reconstruct(self, batch: ClipBatch, draw: KeyedRNG | None) -> Reconstruction:
        """Encode and decode; with ``draw`` a sample of the posterior, otherwise its mean."""
        return reconstruct(self.autoencoder, batch.pixels, self.weights, self.perceptual, draw)

    def _generate(self, batch: ClipBatch) -> tuple[Float[Tensor, ""], Float[Tensor, "B 3 T H W"]]:
        """The loss, and the reconstruction without its graph."""
        made, step = self.reconstruct(batch, self._draw(batch)), self.trainer.global_step
        found = {**made.terms, "reconstruction": made.reconstruction}
        loss = made.total
        if self.discriminator is not None and self.turns.adversary_present(step):
            term, terms = against_discriminator(self.autoencoder, self.discriminator, made, self.weights.adversarial)
            loss, found = loss + term, found | terms
        self.log_terms({**found, "loss": loss}, step)
        return loss, made.pixels.detach()

    def _discriminate(self, batch: ClipBatch) -> tuple[Float[Tensor, ""], Float[Tensor, "B 3 T H W"]]:
        """As ``_generate``."""
        assert self.discriminator is not None
        loss, shown, found = discriminate(self.autoencoder, self.discriminator, batch.pixels, self._draw(batch))
        self.log_terms(found, self.trainer.global_step)
        return loss, shown

    @stop_iteration_is_an_error
    def validation_step(self, batch: ClipBatch, batch_index: int) -> dict[str, Tensor]:
        """Reconstruct held-out clips from the posterior's mean.

        Returns:
            ``reconstruction``, (B, 3, T, H, W) in [-1, 1].
        """
        made = self.reconstruct(batch, draw=None)
        moments = LatentMoments.of(made.posterior)
        self._moments = moments if self._moments is None else self._moments + moments
        pixels, shown = batch.pixels.float(), made.pixels.float().clamp(-1, 1)
        found = {**made.terms, "loss": made.total, "psnr": PSNR().score(shown, pixels, batch.captions).mean()}
        if min(batch.size[1:]) >= SSIM_SMALLEST:
            found["ssim"] = SSIM().score(shown, pixels, batch.captions).mean()
        metrics = {f"val/{name}": value.float() for name, value in found.items()}
        self.log_dict(metrics, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(batch))
        return {"reconstruction": shown}

    @override
    def on_validation_epoch_end(self) -> None:
        """Measure the latents of all ranks' clips, and scale them to unit variance."""
        if self._moments is None:
            return
        sums = self.trainer.strategy.reduce(self._moments.sums.to(torch.float64), reduce_op="sum")
        moments, self._moments = LatentMoments(sums), None
        self.log("val/latent_std", moments.together.std.item())
        self.latents = {"mean": moments.mean.tolist(), "std": moments.std.tolist()}
        if self.latent_scale != "keep":
            found = moments.scale(by_channel=self.latent_scale == "channel")
            self.autoencoder.set_latent_scale(found.scale, found.shift)

    def averaged(self) -> dict[str, nn.Parameter]:
        """The autoencoder's parameters: an adversary is not averaged."""
        return {f"autoencoder.{name}": parameter for name, parameter in self.autoencoder.named_parameters()}

    @override
    def cost(self, clip_shape: tuple[int, int, int] | None = None) -> ModelCost:
        # encoding and decoding; losses and adversary come on top
        return autoencoder_cost(self.autoencoder, *(clip_shape or self.clip_shape))

    @override
    def tags(self) -> dict[str, str]:
        return {"objective": "autoencoder"}

    @override
    def reader_of_pixels(self) -> str:
        return "task=autoencoder"

    @override
    def frozen_keys(self) -> set[str]:
        # LPIPS is read from its own file
        return set() if self.perceptual is None else {f"perceptual.{key}" for key in self.perceptual.state_dict()}

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["latents"] = self.latents

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.latents = checkpoint.get("latents", {})

    @contextmanager
    def _random_numbers_of(self, batch: ClipBatch) -> Iterator[None]:
        """Dropout's numbers follow from the batch, so that a resumed run draws the same."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(seed_of(self.seed, batch.number, self.global_rank, "dropout"))
            yield

    def _draw(self, batch: ClipBatch) -> KeyedRNG:
        return batch.draw(self.seed)
