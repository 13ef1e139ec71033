"""Training of video denoisers as one LightningModule, whatever backbone, objective and conditioning are chosen."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from vidlab.autoencoders.base import Autoencoder
from vidlab.backbones.base import VideoDenoiser
from vidlab.clip import ClipBatch, DenoiserInput, LatentShape, LossContext
from vidlab.conditioning.base import Conditioning, NoConditioning, TrainingClips
from vidlab.cost.flops import ModelCost, StepInput
from vidlab.diffusion.objective import InputShape, Objective
from vidlab.errors import UserError
from vidlab.layers.compilation.blocks import MODES
from vidlab.losses.base import Regularizer, Regularizers
from vidlab.parallel.exchange import Team
from vidlab.pipelines.video_pipeline import VideoPipeline
from vidlab.sampling.base import Sampler, check_belong
from vidlab.sampling.guidance import Guidance
from vidlab.text.base import TextEncoder
from vidlab.training.denoiser_plan import DenoiserPlan
from vidlab.training.encoding import TrainingEncoders
from vidlab.training.given_away import GivenAwayWarning
from vidlab.training.held_out import HeldOutMeasures
from vidlab.training.input_checks import check_inputs, check_structure
from vidlab.training.module import ClipModule
from vidlab.training.optimization.fully_sharded import gathered_dtype, shard
from vidlab.training.optimization.optimizers import OptimizerFactory, trainable_parameters
from vidlab.training.step_interval import steps_taken
from vidlab.training.step_means import StepMeans, scale_gradients


class VideoDiffusion(ClipModule):
    """Trains a denoiser on clips with captions.

    Args:
        backbone: called with ``latent`` and ``text_width``, returns the denoiser.
        objective: what is learned.
        autoencoder: pixels to latents; frozen.
        text_encoder: captions to features; learned with the denoiser if it has trainable parameters.
        clip_shape: (frames, height, width) of training clips in pixels.
        optimizer: builds the optimizer.
        lr_schedule: gives the learning-rate factor by step.
        sampler: turns noise into latents for previews.
        guidance: guidance of previews.
        conditioning: what is known of a clip besides its caption; nothing by default.
        regularizers: named terms added to the objective.
        latents: what an autoencoder with a variance gives in training: ``sample`` draws from its distribution, as
            Open-Sora Plan does, ``mode`` takes the most likely. Validation takes the most likely.
        text_dropout: share of clips whose caption is replaced by "" in training, for guidance.
        log_snr_bins: log signal-to-noise ratios at which ``val/x0_mse`` is measured.
        seed: seed of every random number of training.
        compile: compile the blocks of the denoiser with torch.compile: True, or ``max`` to search for faster kernels.
        attention: attention kernel of the denoiser.
        ssm: state-space kernel of the denoiser.

    Logs:
        train/loss, train/<regularizer>, train/grad_norm per step; val/loss, val/x0_mse (pixels, mean over bins) and
        val/x0_mse/log_snr_<bin> per validation, and val/loss/<part> where an objective has parts, such as stages. Only
        val/x0_mse compares across objectives and autoencoders.
    """

    results = ("val/loss", "val/x0_mse")

    def __init__(
        self,
        backbone: Callable[..., VideoDenoiser],
        objective: Objective,
        autoencoder: Autoencoder,
        text_encoder: TextEncoder,
        clip_shape: tuple[int, int, int],
        optimizer: OptimizerFactory,
        lr_schedule: Any,
        sampler: Sampler,
        guidance: Guidance,
        conditioning: Conditioning | None = None,
        regularizers: Mapping[str, Regularizer] | None = None,
        latents: str = "sample",
        text_dropout: float = 0.1,
        log_snr_bins: Sequence[float] = (-4.0, -2.0, 0.0, 2.0, 4.0),
        seed: int = 0,
        compile: bool | str = False,
        attention: str = "auto",
        ssm: str = "auto",
    ) -> None:
        super().__init__()
        self.encoders = TrainingEncoders(autoencoder, text_encoder, latents, text_dropout)
        self.conditioning: Conditioning = conditioning or NoConditioning()
        self.clip_shape = clip_shape
        self.objective = objective
        self.autoencoder = autoencoder.requires_grad_(False).eval()
        self.text_encoder = text_encoder
        self.latent = LatentShape(*autoencoder.latent_shape(*clip_shape))
        controls = self.conditioning.control_channels(self.latent, autoencoder.stride)
        told = {"attention": attention, "ssm": ssm}, controls, type(self.conditioning).__name__
        self.plan = DenoiserPlan(backbone, self.latent, text_encoder.width, text_encoder.pooled_width, *told)
        self.optimizer_factory = optimizer
        self.lr_schedule = lr_schedule
        self.sampler, self.guidance = sampler, guidance
        self.regularizers = Regularizers(dict(regularizers or {}))
        self.regularizer_modules = self.regularizers.modules()
        self.plan.check_requested(self.regularizers.requested)
        self.log_snr_bins = tuple(float(value) for value in log_snr_bins)
        self.seed = seed
        self.compile_mode = _compile_mode(compile)
        self.backbone: VideoDenoiser | None = None
        self._given_away = GivenAwayWarning(self.conditioning)
        self._given_away.check(self.latent.frames)
        check_structure(self.conditioning.tells_structure, self.plan.spec)
        check_belong(objective, sampler, guidance, self.conditioning.takes_frames)
        check_inputs(objective.input_shapes(self.latent), self.latent, sum(controls), self.plan.spec)
        self._base_lrs = []
        self._step_means: StepMeans | None = None
        self._last_read: StepInput | None = None

    def configure_model(self) -> None:
        """Build the denoiser, and with trainer=fsdp2 shard what is trained; each once, later calls do nothing."""
        if self.backbone is None:
            self._build()
        if self.device_mesh is not None:
            self.trainer.precision_plugin.convert_module(self)  # shards keep the type they are made of
            shard(self, self.device_mesh["data_parallel"], gathered_dtype(self.trainer))

    def _build(self) -> None:
        self.autoencoder.check_trained()
        self.backbone = self.plan.build()
        if not self.backbone.spec.reads_pooled_text:
            self.text_encoder.freeze_pooled()
        if not self.backbone.spec.trains_text:
            self.text_encoder.requires_grad_(False)
        tokens = self.encoders.planned_text_tokens
        self.regularizers.fit_features(lambda names: self.plan.feature_shapes(names, self.objective, tokens))
        if self.compile_mode is not None:
            self.backbone.compile_blocks(mode=MODES[self.compile_mode])

    def train(self, mode: bool = True) -> "VideoDiffusion":
        """Training mode for what is trained; the autoencoder drops nothing."""
        super().train(mode)
        self.autoencoder.eval()
        return self

    def cost(self, clip_shape: tuple[int, int, int] | None = None) -> ModelCost:
        """Parameters, tokens and FLOPs of the denoiser for one clip, as a training step computes it.

        Captions are taken to have ``encoders.planned_text_tokens`` tokens; the mean over what the objective gives the
        denoiser to read.

        Args:
            clip_shape: (frames, height, width) in pixels; None is the shape the module was made for.
        """
        latent = self.latent if clip_shape is None else LatentShape(*self.autoencoder.latent_shape(*clip_shape))
        channels = sum(self.conditioning.control_channels(latent, self.autoencoder.stride))
        tokens = self.encoders.planned_text_tokens
        return self.plan.mean_cost(self.objective, latent, lambda shape: self._reads(shape, tokens, channels))

    @override
    def step_cost(self, batch: ClipBatch) -> ModelCost:
        return self.cost(batch.size) if self._last_read is None else self.plan.cost(self._last_read)

    @override
    def cost_beside(self, batch: ClipBatch) -> dict[str, int]:
        return {} if self._last_read is None else self.encoders.flops_of(batch, self._last_read.text_tokens)

    def _reads(self, shape: InputShape, text_tokens: int, control_channels: int) -> StepInput:
        requested = self.regularizers.requested
        trained = self.text_encoder.trainable and self.plan.spec.trains_text
        return StepInput(shape, text_tokens, control_channels, requested, trained)

    @property
    def patch(self) -> tuple[int, int, int]:
        """Latent frames, rows and columns to a token."""
        return self.plan.spec.patch

    def token_count(self, latent: LatentShape) -> int:
        """Tokens that the denoiser processes for one clip, at most."""
        count = self.denoiser.token_count
        return max(sum(map(count, (x.latent, *x.history))) for x in self.objective.input_shapes(latent))

    @override
    def check_sharing(self, processes: int) -> None:
        self.plan.check_sharing(processes)

    @override
    def share_sequences(self, team: Team) -> None:
        self.denoiser.share_sequence(team)

    def tags(self) -> dict[str, str]:
        """What is learned."""
        return dict(self.objective.tags())

    def reader_of_pixels(self) -> str | None:
        """The conditioning, where it needs them."""
        return f"conditioning={type(self.conditioning).__name__}" if self.conditioning.reads_pixels else None

    @property
    def denoiser(self) -> VideoDenoiser:
        """The built denoiser."""
        if self.backbone is None:
            raise RuntimeError("call configure_model() first")
        return self.backbone

    def training_step(self, batch: ClipBatch, batch_index: int) -> dict[str, Tensor | str]:
        """One batch: corrupt, predict, compare.

        Returns:
            ``loss`` to minimize; of each clip ``t`` and ``per_clip``, its part of the objective; ``part``, such as the
            stage that the batch was.
        """
        draw = batch.draw(self.seed)
        x0 = self.encoders.latents_of(batch, draw)  # (B, C, t, h, w)
        self._given_away.check(x0.shape[2])
        pixels = None if batch.encoded else batch.pixels
        clips = TrainingClips(pixels, x0, draw, batch.number, batch.factors)
        given = self.conditioning.for_training(clips, self.autoencoder)
        text = self.encoders.text_of(batch, draw)
        conditions = self.pipeline.conditions(text, given, x0, batch.size, draw, batch.micro)
        corrupted = self.objective.prepare(x0, conditions, draw)
        corrupted = replace(corrupted, input=replace(corrupted.input, requested=self.regularizers.requested))
        self._last_read = self._read_in(corrupted.input)
        output = self.denoiser(corrupted.input)
        objective = self.objective.loss(corrupted, output)
        context = LossContext(
            batch, corrupted.input, output, corrupted.target, batch.number, draw,
            latent=LatentShape(*x0.shape[1:]),
            x0_of=lambda output, input: self.objective.denoised(output, input).x0, decode=self.autoencoder.decode,
        )  # fmt: skip
        terms = self.regularizers.values(context)
        loss = self.regularizers.added_to(objective.total, terms)
        found = {"train/loss": loss} | {f"train/{name}": value for name, value in terms.items()}
        if self._step_means is None:
            self._log_step(found)
        else:
            share = self._step_means.share(objective.counted.sum(), x0.numel())
            self._step_means.add(found, share)
            loss = loss * share
        self.count(batch)
        shown = {"t": corrupted.input.t.detach(), "per_clip": objective.per_clip.detach()}
        return {"loss": loss, **shown, "part": corrupted.part}

    def _read_in(self, input: DenoiserInput) -> StepInput:
        """What the cost of a step with this input depends on."""
        past = tuple(LatentShape(*part.latents.shape[1:]) for part in input.history)
        shape = InputShape(LatentShape(*input.latents.shape[1:]), past)
        controls = 0 if input.controls is None else input.controls.channels.shape[1]
        return self._reads(shape, 0 if input.text is None else input.text.tokens.shape[1], controls)

    def on_after_backward(self) -> None:
        """After the last batch of a step: what its gradient lacks to that of the mean over all batches and ranks."""
        if self._step_means is None or self.trainer.fit_loop.epoch_loop._should_accumulate():
            return
        strategy = self.trainer.strategy
        mean = self._step_means.close(lambda sums: strategy.reduce(sums, reduce_op="sum"), self.trainer.world_size)
        scale_gradients(trainable_parameters(self), mean.factor)
        self._log_step(mean.values)

    def _log_step(self, values: Mapping[str, Tensor]) -> None:
        """Log means over all clips of an optimizer step."""
        for name, value in values.items():
            self.log(name, value.detach(), batch_size=1)

    def validation_step(self, batch: ClipBatch, batch_index: int) -> None:
        """The same held-out clips, noise, noise levels and known frames each time; val/x0_mse knows the text alone."""
        measures = self.measures
        held_out = measures.held_out(batch)
        errors = {f"val/x0_mse/log_snr_{value:g}": measures.x0_errors(held_out, value).mean()
                  for value in self.log_snr_bins}  # fmt: skip
        mean = torch.stack(list(errors.values())).mean()
        metrics = {"val/x0_mse": mean, **errors}
        self.log_dict(metrics, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(batch))
        for loss in measures.losses(held_out):
            counted = round(loss.counted.sum().item())  # a mean over elements, however they are dealt to batches
            for name in ("val/loss", f"val/loss/{loss.part}") if loss.part else ("val/loss",):
                self.log(name, loss.total, on_step=False, on_epoch=True, sync_dist=True, batch_size=counted)

    @property
    def measures(self) -> HeldOutMeasures:
        """What is measured of the model as it is now, on held-out clips."""
        return HeldOutMeasures(self.pipeline)

    @property
    def pipeline(self) -> VideoPipeline:
        """What makes videos of the model as it is now."""
        return VideoPipeline(
            self.denoiser, self.objective, self.autoencoder, self.text_encoder, self.conditioning, self.sampler,
            self.guidance, self.clip_shape,
        )  # fmt: skip

    def configure_optimizers(self) -> Any:
        """The optimizer over trainable parameters and a schedule stepped per optimizer step."""
        optimizer = self.optimizer_factory.build(self)
        self._base_lrs = [[group["lr"] for group in optimizer.param_groups]]
        # a plain function: LambdaLR does not store it, so a resumed run follows the schedule of its own length
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.rate_at(step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_start(self) -> None:
        """Follow the schedule of this run; where a step has several batches, average over all of them."""
        self.use_this_schedule([self.lr_schedulers()])
        several = self.trainer.accumulate_grad_batches * self.trainer.world_size > 1
        self._step_means = StepMeans() if several else None

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Follow the steps taken: a discarded step leaves the schedule where it is."""
        if scheduler.last_epoch < steps_taken(self.trainer):
            super().lr_scheduler_step(scheduler, metric)

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        """Clip the global norm to ``optimizer.clip_norm``, after callbacks have treated the gradients."""
        self.log("train/grad_norm", self.optimizer_factory.clip(self))

    @property
    @override
    def needs_parent(self) -> bool:
        return bool(self.plan.spec.frozen)

    @override
    def inherited(self) -> set[str]:
        frozen = {f"backbone.{pattern}" for pattern in self.plan.spec.frozen}
        found = {name for name, _ in self.named_parameters() if any(fnmatch(name, pattern) for pattern in frozen)}
        if not self.plan.spec.trains_text and self.text_encoder.trainable:
            found |= {f"text_encoder.{name}" for name, _ in self.text_encoder.named_parameters()}
        return found | super().inherited()

    def frozen_keys(self) -> set[str]:
        """Names of parameters and buffers that are rebuilt from the configuration."""
        keys = {f"autoencoder.{key}" for key in self.autoencoder.state_dict()}
        keys |= {f"backbone.{key}" for key in self.denoiser.frozen_keys()}
        if not self.text_encoder.trainable:
            keys |= {f"text_encoder.{key}" for key in self.text_encoder.state_dict()}
        return keys


def _compile_mode(compile: bool | str) -> str | None:
    name = str(compile).lower()
    if name not in (*MODES, "false"):
        raise UserError(f"compile={compile}: choose one of true, max, false.")
    return None if name == "false" else name
