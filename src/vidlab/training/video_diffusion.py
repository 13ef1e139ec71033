"""Training of video denoisers as one LightningModule, whatever backbone, objective and conditioning are chosen."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from fnmatch import fnmatch
from typing import Any

from torch import Tensor
from typing_extensions import override

from vidlab.autoencoders.base import Autoencoder
from vidlab.backbones.base import VideoDenoiser
from vidlab.clip import ClipBatch, LatentShape, LossContext
from vidlab.conditioning.base import Conditioning, NoConditioning, TrainingClips
from vidlab.cost.flops import ModelCost
from vidlab.diffusion.objective import Objective
from vidlab.errors import UserError
from vidlab.layers.compilation.blocks import MODES
from vidlab.layers.compilation.offloading import ActivationOffload
from vidlab.losses.base import Regularizer, Regularizers
from vidlab.parallel.exchange import Team
from vidlab.pipelines.video_pipeline import VideoPipeline
from vidlab.sampling.base import Sampler, check_belong
from vidlab.sampling.guidance import Guidance
from vidlab.text.base import TextEncoder
from vidlab.training.denoiser_plan import DenoiserPlan, TrainingCosts
from vidlab.training.encoding import TrainingEncoders
from vidlab.training.given_away import GivenAwayWarning
from vidlab.training.held_out import HeldOutMeasures
from vidlab.training.input_checks import check_inputs, check_structure
from vidlab.training.module import stop_iteration_is_an_error
from vidlab.training.optimization.fully_sharded import gathered_dtype, shard
from vidlab.training.optimization.optimizers import OptimizerFactory
from vidlab.training.optimization.single_optimizer import SingleOptimizerModule


class VideoDiffusion(SingleOptimizerModule):
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
        activation_offload: keep in main memory what the denoiser's backward pass needs.

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
        activation_offload: bool = False,
    ) -> None:
        super().__init__(optimizer, lr_schedule)
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
        self.sampler, self.guidance = sampler, guidance
        self.regularizers = Regularizers(dict(regularizers or {}))
        self.regularizer_modules = self.regularizers.modules()
        self.plan.check_requested(self.regularizers.requested)
        self.costs = TrainingCosts(self.plan, objective, self.encoders, self.conditioning, self.regularizers.requested)
        self.log_snr_bins = tuple(float(value) for value in log_snr_bins)
        self.seed = seed
        self.compile_mode = _compile_mode(compile)
        self.offload = _offload(activation_offload, compile)
        self.backbone: VideoDenoiser | None = None
        self._given_away = GivenAwayWarning(self.conditioning)
        self._given_away.check(self.latent.frames)
        check_structure(self.conditioning.tells_structure, self.plan.spec)
        check_belong(objective, sampler, guidance, self.conditioning.takes_frames)
        check_inputs(objective.input_shapes(self.latent), self.latent, sum(controls), self.plan.spec)

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
        return self.costs.planned(latent)

    @override
    def step_cost(self, batch: ClipBatch) -> ModelCost:
        return self.costs.last or self.cost(batch.size)

    @override
    def cost_beside(self, batch: ClipBatch) -> dict[str, int]:
        return self.costs.beside(batch)

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

    @stop_iteration_is_an_error
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
        clips = TrainingClips(pixels, x0, draw, batch.number, batch.factors, batch.strides)
        given = self.conditioning.for_training(clips, self.autoencoder)
        text = self.encoders.text_of(batch, draw)
        conditions = self.pipeline.condition_builder.build(text, given, x0, batch.size, draw, batch.micro)
        corrupted = self.objective.prepare(x0, conditions, draw)
        corrupted = replace(corrupted, input=replace(corrupted.input, requested=self.regularizers.requested))
        self.costs.saw(corrupted.input)
        with nullcontext() if self.offload is None else self.offload.forward(self.denoiser):
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
        loss = self.finish_batch(batch, found, objective, x0.numel())
        shown = {"t": corrupted.input.t.detach(), "per_clip": objective.per_clip.detach()}
        return {"loss": loss, **shown, "part": corrupted.part}

    @stop_iteration_is_an_error
    def validation_step(self, batch: ClipBatch, batch_index: int) -> None:
        """The same held-out clips, noise, noise levels and known frames each time; val/x0_mse knows the text alone."""
        measures = self.measures
        held_out = measures.held_out(batch)
        metrics = measures.x0_mse(held_out, self.log_snr_bins)
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


def _offload(asked: bool, compile: bool | str) -> ActivationOffload | None:
    if asked and _compile_mode(compile) is not None:
        raise UserError(
            f"activation_offload=true moves what single operations keep, and with compile={compile} the compiler "
            "chooses what is kept. Use one of the two."
        )
    return ActivationOffload() if asked else None
