"""VideoPipeline: prompts, and frames where they are given, become videos of a model trained here."""

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vidlab.autoencoders.base import Autoencoder
from vidlab.autoencoders.streaming import decode_in_chunks
from vidlab.backbones.base import VideoDenoiser
from vidlab.conditioning.base import Conditioning
from vidlab.data.video import to_frames
from vidlab.diffusion.objective import Objective
from vidlab.errors import UserError
from vidlab.pipelines.condition_builder import ConditionBuilder, Frames, Micro, Pixels
from vidlab.pipelines.conditioning_frames import GivenFrames, GivenMedia, Media
from vidlab.pipelines.generated import GeneratedVideo, GeneratedVideos
from vidlab.pipelines.generation_settings import GenerationSettings
from vidlab.pipelines.progress import bar
from vidlab.pipelines.refined import RefinedPrompts, chosen_refiner
from vidlab.pipelines.structure_input import StructureInput
from vidlab.pipelines.system import GenerationBatch, all_jobs
from vidlab.precision import autocast
from vidlab.randomness import KeyedRNG
from vidlab.sampling.base import Sampler, check_belong
from vidlab.sampling.guidance import Guidance
from vidlab.sampling.long_video import LongVideo, continued, interpolated, starts_of_clips, upsampled
from vidlab.structure import StructureSignal
from vidlab.text.base import TextEncoder
from vidlab.text.refiner.refiner import PromptRefiner

MakeChoice = Callable[[str, str], Any]
BEHIND = 1 << 16  # clips of an upsampler are numbered after those of the generator


@dataclass(frozen=True)
class VideoPipeline:
    """A trained model with everything that turns prompts into its videos.

    ``pipe = vidlab.load("last")`` makes one of a run; ``pipe("a blue circle moving right")`` makes videos.

    Args:
        denoiser: predicts the objective's target.
        objective: what it was trained for.
        autoencoder: pixels to latents.
        text_encoder: captions to features.
        conditioning: how known frames enter.
        sampler: turns noise into latents.
        guidance: how strongly the prompt is followed.
        clip_shape: (frames, height, width) of a clip in pixels.
        frame_stride: source frames from one frame to the next in training, told to models that read it.
        source: where the model comes from, for messages.
        make_choice: makes a sampler or a guidance of a choice's name, given the group and the name.
        frames_at_once: frames that the autoencoder decodes at a time: long clips in bounded memory; None is all.
        refiner: expands prompts where it is asked to, with ``refine=True``.
        upsampler: a temporal upsampler of the same height and width, which makes frames between those of every video.
    """

    denoiser: VideoDenoiser
    objective: Objective
    autoencoder: Autoencoder
    text_encoder: TextEncoder
    conditioning: Conditioning
    sampler: Sampler
    guidance: Guidance
    clip_shape: tuple[int, int, int]
    frame_stride: int = 1
    source: str = ""
    make_choice: MakeChoice | None = None
    frames_at_once: int | None = None
    refiner: PromptRefiner | None = None
    upsampler: "VideoPipeline | None" = None

    @property
    def device(self) -> torch.device:
        """Where the denoiser is."""
        return next(self.denoiser.parameters()).device

    def to(self, device: torch.device | str) -> "VideoPipeline":
        """Move the networks; returns the pipeline."""
        for part in (self.denoiser, self.autoencoder, self.text_encoder, self.refiner, self.upsampler):
            if part is not None:
                part.to(device)
        return self

    def __call__(
        self,
        prompt: str | Sequence[str],
        num_videos: int = 1,
        seed: int = 0,
        *,
        image: Media | None = None,
        last_image: Media | None = None,
        video: Media | None = None,
        video_frames: int | None = None,
        segments: int = 1,
        overlap: int | None = None,
        interpolate: bool = False,
        structure: StructureInput | None = None,
        sampler: Sampler | str | None = None,
        guidance: Guidance | str | None = None,
        steps: int | None = None,
        batch_size: int = 8,
        precision: str = "auto",
        fps: float = 8.0,
        progress: bool = True,
        refine: bool | PromptRefiner | str = False,
    ) -> GeneratedVideos:
        """Videos for one prompt or several; the same as ``generate.py`` makes with the same settings, bit by bit.

        Args:
            prompt: a text, or several.
            num_videos: per prompt.
            seed: of all random numbers; a video depends on it, its prompt and its number.
            image: a picture that the video starts from: a file, or uint8 (H, W, 3).
            last_image: one that it ends with.
            video: one to continue: a file, or uint8 (T, H, W, 3).
            video_frames: how many of its last frames are given; None is as many as in training, or half a clip.
            segments: clips in a row, each knowing the end of the one before.
            overlap: frames that they share; None is as many as in training, or half a clip.
            interpolate: take the clip for key frames and fill every gap between two of them; with a temporal upsampler
                (``conditioning=key_frames``) make frames between all those of ``video``.
            structure: a video whose edges, depth or outlines the videos follow; of a model trained with them.
            sampler: in place of the trained one; a choice of ``conf/sampler`` by name too.
            guidance: in place of the trained one; a choice of ``conf/guidance`` by name too.
            steps: sampling steps in place of the sampler's.
            batch_size: videos made at once.
            precision: ``auto``, ``32-true`` or ``bf16-mixed``.
            fps: frames per second at which the videos are shown.
            progress: draw a bar.
            refine: expand the prompts first, with the pipeline's refiner, or with one that is given or named by its
                folder; videos then know both prompts.

        Raises:
            UserError: a prompt that the text encoder cannot read whole, or what the model cannot take.
        """
        media = GivenMedia(image, last_image, video, video_frames)
        work = num_videos, seed, batch_size, precision
        settings = GenerationSettings(*work, segments, overlap, interpolate, fps, structure)
        return self.using(sampler, guidance, steps)._made(prompt, media, settings, refine, progress)

    def _made(
        self,
        prompt: str | Sequence[str],
        media: GivenMedia,
        settings: GenerationSettings,
        refine: bool | PromptRefiner | str,
        progress: bool,
    ) -> GeneratedVideos:
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        refined = RefinedPrompts.of(chosen_refiner(refine, self.refiner, self.device), prompts) if refine else None
        prompts = refined.texts if refined else prompts
        self.check(prompts, [*media.names, *(["interpolate"] if settings.interpolate else [])], settings.segments)
        every = self.conditioning.every if settings.interpolate else None
        given = media.read(self.clip_shape, self.conditioning.default_num_frames(self.clip_shape[0]), every)
        videos = self.generate(prompts, settings, given, progress)
        return GeneratedVideos(tuple(refined.marked(videos, settings.num_videos))) if refined else videos

    def using(
        self, sampler: Sampler | str | None = None, guidance: Guidance | str | None = None, steps: int | None = None
    ) -> "VideoPipeline":
        """The same model with another sampler, guidance or number of steps; None leaves what it has.

        Raises:
            UserError: a name that is no choice.
        """
        wanted = {"sampler": sampler or self.sampler, "guidance": guidance or self.guidance}
        chosen = {group: _made_of(group, value, self.make_choice) for group, value in wanted.items()}
        if steps is not None:
            chosen["sampler"] = replace(chosen["sampler"], steps=steps)
        check_belong(self.objective, chosen["sampler"], chosen["guidance"], self.conditioning.takes_frames)
        return replace(self, **chosen)

    def check(self, prompts: Sequence[str], given: Sequence[str], segments: int = 1) -> None:
        """Refuse what the model cannot take, before anything is sampled.

        Args:
            prompts: all of them.
            given: names of settings that need a model which takes frames.
            segments: clips in a row.

        Raises:
            UserError: naming the settings, or the prompt.
        """
        if not prompts:
            raise UserError("prompt=[]: at least one prompt is needed.")
        asked = [*given, *(["segments"] if segments > 1 else [])]
        if asked and not self.conditioning.takes_frames:
            raise UserError(
                f"{', '.join(asked)}: this model was trained without conditioning on frames. Train one with "
                "conditioning=masked_video or conditioning=frame_replacement."
            )
        for prompt in prompts:
            self.text_encoder.check(prompt)

    def generate(
        self,
        prompts: Sequence[str],
        settings: GenerationSettings,
        given: GivenFrames | None = None,
        progress: bool = True,
    ) -> GeneratedVideos:
        """``num_videos`` of each prompt. A video depends on (seed, prompt, its number) and not on its batch."""
        jobs = all_jobs(prompts, settings.num_videos, settings.seed)
        found: list[GeneratedVideo] = []
        computing = autocast(self.device.type, settings.precision)
        with torch.inference_mode(), computing, bar("generating", len(jobs), progress) as advance:
            asked = settings.structure
            signal = None if asked is None else asked.signal(self.conditioning, self.clip_shape)
            for batch in jobs.batches(settings.batch_size):
                structure = None if signal is None else signal.expanded(len(batch))
                pixels = self._videos(batch, settings, given, structure, advance)
                pixels = pixels if self.upsampler is None else frames_between(self.upsampler, batch, pixels)
                made = zip(batch.prompts, batch.numbers, pixels.float(), strict=True)
                found += [GeneratedVideo(p, n, to_frames(video.cpu()), settings.fps) for p, n, video in made]
        return GeneratedVideos(tuple(found))

    def _videos(
        self,
        jobs: GenerationBatch,
        settings: GenerationSettings,
        given: GivenFrames | None,
        structure: StructureSignal | None,
        advance: Callable[[float], None],
    ) -> Tensor:
        """(B, 3, T, H, W), T longer than a clip where clips are continued or interpolated."""
        frames, height, width = self.clip_shape
        every = self.conditioning.every
        clips = settings.segments + (frames - 1 if settings.interpolate else 0)
        if settings.interpolate and every is not None and given is not None:
            clips = len(starts_of_clips(given.pixels.shape[1], len(range(0, frames, every))))

        def make(pixels: Tensor, known: Tensor, number: int, stride: int = 1) -> Tensor:
            micro = {"sampling_stride": (stride * self.frame_stride,)}
            told = partial(_advance, advance, len(jobs) / clips)
            return self.clips(jobs.prompts, jobs.draw(number), pixels, known, told, micro, structure)

        if settings.interpolate and every is not None and given is not None:
            return upsampled(make, given.pixels.expand(len(jobs), -1, -1, -1, -1), every, frames)
        pixels = torch.zeros(len(jobs), 3, frames, height, width)
        known = torch.zeros(len(jobs), frames, dtype=torch.bool)
        if given is not None:
            pixels, known = pixels + given.pixels, known | given.known
        if settings.interpolate:
            # told to be as far apart as the clips between them are long (STIV switches this micro-condition)
            key_frames = make(pixels, known, 0, stride=frames - 1)
            return interpolated(lambda pixels, known, number: make(pixels, known, number + 1), key_frames)
        overlap = settings.overlap or self.conditioning.default_num_frames(frames)
        return continued(make, pixels, known, settings.segments, overlap)

    @torch.no_grad()
    def clips(
        self,
        prompts: Sequence[str],
        draw: KeyedRNG,
        pixels: Pixels | None = None,
        known: Frames | None = None,
        progress: Callable[[int, int], None] | None = None,
        micro: Micro | None = None,
        structure: StructureSignal | None = None,
    ) -> Pixels:
        """One clip for each prompt, in [-1, 1], in the precision that is set.

        Args:
            prompts: one per clip.
            draw: the random numbers of each clip.
            pixels: clips whose frames marked in ``known`` are given; None gives none.
            known: True at given frames.
            progress: called with (steps done, steps).
            micro: micro-conditions by name, where the backbone reads them and the plain ones will not do.
            structure: signals that the clips follow, one for each; guidance is by the text, not by them.

        Raises:
            UserError: frames are given that the model's conditioning cannot take.
        """
        builder = self.condition_builder
        noise = draw.normal("initial", astuple(builder.latent)).to(self.device)  # (B, C, t, h, w)
        conditions = builder.for_guidance(prompts, noise, pixels, known, micro, structure)
        latents = self.sampler.sample(self.denoiser, self.objective, self.guidance, noise, conditions, progress, draw)
        return decode_in_chunks(self.autoencoder, latents, self.frames_at_once).clamp(-1, 1)

    @property
    def condition_builder(self) -> ConditionBuilder:
        """What the denoiser is told of clips."""
        return ConditionBuilder(self.denoiser, self.autoencoder, self.text_encoder, self.conditioning, self.clip_shape)


def frames_between(upsampler: VideoPipeline, jobs: GenerationBatch, videos: Pixels) -> LongVideo:
    """Videos with frames made between their own, by a temporal upsampler (STIV's, behind a generator).

    Args:
        upsampler: of the videos' height and width.
        jobs: their prompts and random numbers.
        videos: of two frames or more.

    Returns:
        (T - 1) n + 1 frames for T, of which each n-th is as it was.
    """
    every, frames = _every(upsampler), upsampler.clip_shape[0]

    def make(pixels: Tensor, known: Tensor, number: int) -> Tensor:
        return upsampler.clips(jobs.prompts, jobs.draw(BEHIND + number), pixels, known)

    return upsampled(make, videos, every, frames)


def behind(pipeline: VideoPipeline, upsampler: VideoPipeline) -> VideoPipeline:
    """The pipeline with a temporal upsampler behind it.

    Raises:
        UserError: it is none, or makes videos of another size.
    """
    _every(upsampler)
    sizes = [one.clip_shape[1:] for one in (pipeline, upsampler)]
    if sizes[0] != sizes[1]:
        raise UserError(f"upsampler={upsampler.source}: its videos are {sizes[1]} pixels, those before it {sizes[0]}.")
    return replace(pipeline, upsampler=upsampler)


def _every(upsampler: VideoPipeline) -> int:
    every = upsampler.conditioning.every
    if every is None:
        raise UserError(
            f"upsampler={upsampler.source}: it is no temporal upsampler. Train one with conditioning=key_frames, as "
            "experiment=stiv/tup_laptop does."
        )
    return every


def _made_of(group: str, value: Any, make_choice: MakeChoice | None) -> Any:
    """What a name stands for among the choices of its group; what is no name is itself."""
    if not isinstance(value, str):
        return value
    if make_choice is None:
        raise UserError(f"{group}={value}: this pipeline knows no names. Give a {group} itself.")
    return make_choice(group, value)


def _advance(advance: Callable[[float], None], videos: float, done: int, steps: int) -> None:
    """Tell a bar that counts videos of one step of a batch."""
    advance(videos / steps)
