"""Open-Sora Plan v1.3 whole, from its published folders."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from vidlab.backbones.open_sora_plan import OpenSoraPlan
from vidlab.clip import Conditions, Controls, TextEmbedding
from vidlab.conditioning.masked_video import MaskedVideo, Stage
from vidlab.data.video import to_frames
from vidlab.diffusion.objective import Objective
from vidlab.errors import UserError
from vidlab.pipelines.open_sora_plan_parts import Parts, Places, find_parts
from vidlab.pipelines.system import GenerationBatch, GenerationRequest, release_memory
from vidlab.precision import autocast, uses_bf16
from vidlab.sampling.base import Sampler, check_belong
from vidlab.sampling.guidance import Guidance
from vidlab.sampling.guided import concatenate_texts

Latent = Float[Tensor, "C t h w"]
Advance = Callable[[float], None]


@dataclass(frozen=True)
class Texts:
    """Encoded captions, one row each: of every prompt, and the negative one."""

    prompts: Mapping[str, TextEmbedding]
    negative: TextEmbedding


@dataclass(frozen=True)
class OpenSoraPlanSystem:
    """Text and images to video by Open-Sora Plan v1.3 (arXiv 2412.00131): mT5-XXL, Skiparse denoiser, WF-VAE.

    Parts are loaded one after another, each after the one before is gone, so memory is that of the largest part: the
    text encoder reads all prompts, the autoencoder given frames, the denoiser makes all latents, and the autoencoder
    decodes them one video at a time. Between these the latents wait on the CPU.

    A release is a folder with ``any93x640x640`` (text to video), ``any93x640x640_i2v`` (with given frames), ``vae`` and
    ``text_encoder`` or ``mt5-xxl``; each has ``config.json`` and safetensors. The image-to-video denoiser is taken when
    frames are given: an image to start from, images at both ends, or the start of a video.

    Guidance knows the ``full`` condition, ``image`` (the negative prompt, with the given frames) and ``null`` (the
    negative prompt alone). The authors guide from ``image`` to ``full``.

    Args:
        sampler: turns noise into latents.
        guidance: combines predictions.
        objective: the schedule and parameterization the denoiser was trained with.
        frames, height, width: of a video in pixels: 1 + 4n, and multiples of 16 for patches of 2 x 2.
        path: folder of the release, or its hub id.
        text_encoder, tokenizer, denoiser, vae: folders or hub ids that take the place of those in ``path``. The
            tokenizer is local, and only needed where it is neither beside the text encoder nor in ``path``.
        max_tokens: the longest prompt in tokens, the template's words and the end token included.
        template: what a prompt is put into, at ``{}``.
        negative_prompt: what guidance leads away from; "" is the empty caption of training.
        chunk: latent frames the autoencoder decodes at once; None is all. The video is the same.
        attention: attention kernel of the denoiser.

    Raises:
        UserError: a template without its place for the prompt, or sizes below 1.
    """

    sampler: Sampler
    guidance: Guidance
    objective: Objective
    frames: int = 93
    height: int = 352
    width: int = 640
    path: str | None = None
    text_encoder: str | None = None
    tokenizer: str | None = None
    denoiser: str | None = None
    vae: str | None = None
    max_tokens: int = 512
    template: str = "{}"
    negative_prompt: str = ""
    chunk: int | None = 2
    attention: str = "auto"

    def __post_init__(self) -> None:
        if self.template.count("{}") != 1:
            raise UserError(f"system.template={self.template!r} must hold {{}} once, where the prompt goes.")
        for name, size in (("frames", self.frames), ("height", self.height), ("width", self.width)):
            if size < 1:
                raise UserError(f"{name}={size} must be at least 1.")
        check_belong(self.objective, self.sampler, self.guidance)

    @property
    def clip_shape(self) -> tuple[int, int, int]:
        """(frames, height, width)."""
        return self.frames, self.height, self.width

    @property
    def default_num_frames(self) -> int:
        """Half of a video is continued, as the authors do."""
        return max(self.frames // 2, 1)

    @property
    def source(self) -> str:
        """The folder, or that of the denoiser."""
        return str(self.path or self.denoiser)

    def generate(self, request: GenerationRequest, advance: Advance) -> list[UInt8[np.ndarray, "T H W 3"]]:
        """One stage after another, each with one part in memory.

        Raises:
            UserError: a part that is missing or does not fit, a prompt that is too long, or frames given to a
                text-to-video denoiser.
        """
        places = Places(self.path, self.text_encoder, self.tokenizer, self.denoiser, self.vae)
        parts = find_parts(places, self.clip_shape, with_frames=request.given is not None)
        with torch.inference_mode(), autocast(request.device, request.precision):
            texts = self.encode_prompts(parts, request)
            release_memory(request.device)
            controls = self.encode_frames(parts, request) if parts.conditioned else {}
            release_memory(request.device)
            latents = self.denoise(parts, request, texts, controls, advance)
            release_memory(request.device)
            videos = self.decode(parts, request, latents)
        release_memory(request.device)
        return videos

    def encode_prompts(self, parts: Parts, request: GenerationRequest) -> Texts:
        """Every prompt, and the negative one, once; on the CPU.

        Raises:
            UserError: a prompt of more than ``max_tokens`` tokens.
        """
        from vidlab.text.pretrained import PretrainedEncoder

        bf16 = uses_bf16(request.precision, request.device)
        dtype: Literal["bfloat16", "float32"] = "bfloat16" if bf16 else "float32"
        encoder = PretrainedEncoder(str(parts.text_encoder), self.max_tokens, dtype, tokenizer=str(parts.tokenizer))
        captions = {prompt: self.template.replace("{}", prompt) for prompt in request.jobs.prompts}
        for caption in (*captions.values(), self.negative_prompt):
            encoder.check(caption)
        encoder = encoder.to(request.device)
        prompts = {prompt: encoder([caption]).to("cpu") for prompt, caption in captions.items()}
        return Texts(prompts, encoder([self.negative_prompt]).to("cpu"))

    def encode_frames(self, parts: Parts, request: GenerationRequest) -> Mapping[str, Controls]:
        """What the denoiser is told of the given frames (``given``) and of none (``nothing``); on the CPU."""
        from vidlab.autoencoders.wfvae import WFVAE

        vae = WFVAE.from_published(parts.vae, chunk=self.chunk).eval().to(request.device)
        conditioning = MaskedVideo([Stage({"i2v": 1.0})])
        pixels, known = torch.zeros(1, 3, *self.clip_shape), torch.zeros(1, self.frames, dtype=torch.bool)
        told = {"nothing": (pixels, known)}
        if request.given is not None:
            told["given"] = (request.given.pixels[None], request.given.known[None])
        found = {}
        for name, (clip, frames) in told.items():
            conditions = conditioning.for_inference(clip.to(request.device), frames.to(request.device), vae)
            assert conditions.controls is not None
            found[name] = Controls(conditions.controls.channels.float().cpu(), conditions.controls.mask.float().cpu())
        return {"given": found["nothing"]} | found

    def denoise(
        self, parts: Parts, request: GenerationRequest, texts: Texts, controls: Mapping[str, Controls], advance: Advance
    ) -> list[Latent]:
        """Latents of every video, on the CPU."""
        dtype = torch.bfloat16 if uses_bf16(request.precision, request.device) else torch.float32
        denoiser = OpenSoraPlan.released(parts.denoiser, parts.latent, self.attention, dtype, request.device)
        size, found = parts.latent, []
        for jobs in request.jobs.batches(request.batch_size):
            draw, count = jobs.draw(), len(jobs)
            noise = draw.normal("initial", (size.channels, size.frames, size.height, size.width)).to(request.device)
            conditions = batch_conditions(jobs, texts, controls, request.device)

            def progress(done: int, steps: int, count: int = count) -> None:
                advance(count / steps)

            latents = self.sampler.sample(denoiser, self.objective, self.guidance, noise, conditions, progress, draw)
            found += list(latents.float().cpu())
        return found

    def decode(self, parts: Parts, request: GenerationRequest, latents: Sequence[Latent]) -> list[np.ndarray]:
        """Frames of each video, uint8."""
        from vidlab.autoencoders.wfvae import WFVAE

        vae = WFVAE.from_published(parts.vae, chunk=self.chunk).eval().to(request.device)
        return [to_frames(vae.decode(z[None].to(request.device))[0]) for z in latents]


def batch_conditions(
    jobs: GenerationBatch, texts: Texts, controls: Mapping[str, Controls], device: str
) -> Mapping[str, Conditions]:
    """What each pass of guidance is told of a batch of videos."""
    text = concatenate_texts([texts.prompts[prompt] for prompt in jobs.prompts]).to(device)
    empty = concatenate_texts([texts.negative] * len(jobs)).to(device)
    told = {
        name: Controls(*(x.expand(len(jobs), *x.shape[1:]).to(device) for x in (value.channels, value.mask)))
        for name, value in controls.items()
    }
    return {
        "full": Conditions(text=text, controls=told.get("given")),
        "image": Conditions(text=empty, controls=told.get("given")),
        "null": Conditions(text=empty, controls=told.get("nothing")),
    }
