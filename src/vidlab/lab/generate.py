"""From a checkpoint and prompts to video files, for people and for metrics."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from omegaconf import DictConfig

from vidlab.errors import UserError
from vidlab.files import terminal
from vidlab.lab.captions.refiners import resolve_refiner
from vidlab.lab.cli.hydra_main import instantiate
from vidlab.lab.cli.progress import bar
from vidlab.lab.compose import resolve_accelerator
from vidlab.lab.image_models.inputs import INPUTS, give_inputs
from vidlab.lab.loading import SIZES, LoadSettings, load_pipeline
from vidlab.pipelines.conditioning_frames import GivenFrames, conditioning_frames
from vidlab.pipelines.generated import GeneratedVideo, write
from vidlab.pipelines.generation_settings import GenerationSettings
from vidlab.pipelines.refined import RefinedPrompts
from vidlab.pipelines.structure_input import StructureInput
from vidlab.pipelines.system import GenerationRequest, System, all_jobs
from vidlab.pipelines.video_pipeline import VideoPipeline, behind
from vidlab.text.refiner.refiner import PromptRefiner

log = logging.getLogger(__name__)

# From prompts to their videos.
Make = Callable[[Sequence[str]], list[GeneratedVideo]]
# Settings of structure= beside the signals, with the values that ask for nothing.
STRUCTURE = {"video": None, "frames": None, "strength": 1.0, "interval": [0.0, 1.0]}
OPTIONAL = (*SIZES, "steps", "video_frames", "overlap", "frames_at_once")
LEAST = {"num_videos": 1, "batch_size": 1, "seed": 0, "segments": 1, "refiner_tokens": 1, **dict.fromkeys(OPTIONAL, 1)}


def run_generation(cfg: DictConfig) -> Path:
    """Generate ``num_videos`` per prompt and write them; returns the folder.

    Raises:
        UserError: no checkpoint, a prompt the text encoder cannot read whole, or sizes that do not fit.
    """
    from hydra.core.hydra_config import HydraConfig

    folder = Path(HydraConfig.get().runtime.output_dir)
    prompts = [cfg.prompt] if isinstance(cfg.prompt, str) else [str(prompt) for prompt in cfg.prompt]
    check_settings(cfg)
    if not prompts:
        raise UserError("prompt=[]: at least one prompt is needed.")
    source, make = (from_system if cfg.get("system") else from_checkpoint)(cfg)
    refined = refined_prompts(cfg, prompts)
    samples = make(prompts if refined is None else refined.texts)
    if refined is not None:
        samples = refined.marked(samples, cfg.num_videos)
    write(samples, folder, cfg.fps)
    print(f"{len(samples)} videos from {terminal(source)}\n  look at      {folder}/sheet.png, grid.gif, grid.mp4")
    print(f"  one by one   {folder}/000.mp4, 000.gif, ...\n  for metrics  {folder}/originals (lossless, with prompts)")
    return folder


def refined_prompts(cfg: DictConfig, prompts: Sequence[str]) -> RefinedPrompts | None:
    """The prompts, expanded and told; None where ``refine`` is false.

    Raises:
        UserError: there is no refiner.
    """
    if not cfg.refine:
        return None
    refiner = PromptRefiner.load(resolve_refiner(cfg.refiner), max_new_tokens=cfg.refiner_tokens).to(_device(cfg))
    refined = RefinedPrompts.of(refiner, prompts)
    for one in refined.prompts:
        print(terminal(f"  {one.original} -> {one.refined}"))
    return refined


def from_checkpoint(cfg: DictConfig) -> tuple[str, Make]:
    """The checkpoint, and what makes videos with the model trained here.

    Raises:
        UserError: no checkpoint, or sizes that do not fit.
    """
    pipeline = load_pipeline(cfg.checkpoint, LoadSettings.of(cfg), cfg.name, cfg.allow)
    if cfg.upsampler is not None:
        _, height, width = pipeline.clip_shape
        settings = LoadSettings(cfg.weights, cfg.tracking_uri, height=height, width=width)
        pipeline = behind(pipeline, load_pipeline(cfg.upsampler, settings, cfg.name, cfg.allow, key="upsampler"))
    return pipeline.source, partial(_by_checkpoint, cfg, pipeline)


def _by_checkpoint(cfg: DictConfig, pipeline: VideoPipeline, prompts: Sequence[str]) -> list[GeneratedVideo]:
    """Raises ``UserError`` for a prompt the text encoder cannot read whole, and inputs the model cannot take."""
    asked = [name for name in ("image", "last_image", "video", "interpolate") if cfg[name]]
    pipeline.check(prompts, asked, cfg.segments)
    if pipeline.conditioning.tells_structure and not cfg.structure.video:
        log.warning("structure.video is not set: the videos are those of the model without structure control")
    give_inputs(pipeline, {name: cfg[name] for name in INPUTS}, cfg.max_megapixels)
    settings = GenerationSettings(
        cfg.num_videos, cfg.seed, cfg.batch_size, cfg.precision, cfg.segments, cfg.overlap, cfg.interpolate, cfg.fps,
        structure_input(cfg.structure, cfg.max_megapixels),
    )  # fmt: skip
    pipeline = replace(pipeline.to(_device(cfg)), frames_at_once=cfg.frames_at_once)
    default_num_frames = pipeline.conditioning.default_num_frames(pipeline.clip_shape[0])
    every = pipeline.conditioning.every if cfg.interpolate else None
    return list(pipeline.generate(prompts, settings, _given(cfg, pipeline.clip_shape, default_num_frames, every)))


def from_system(cfg: DictConfig) -> tuple[str, Make]:
    """Where a published system comes from, and what makes videos with it.

    Raises:
        UserError: settings or parts that do not fit, or a long video, which a system does not make.
    """
    for name, plain in (("segments", 1), ("interpolate", False)):
        if cfg[name] != plain:
            raise UserError(f"{name}={cfg[name]}: a system makes videos of one clip. Use {name}={str(plain).lower()}.")
    for name in INPUTS:
        if cfg[name].path is not None:
            raise UserError(f"{name}.path={cfg[name].path} is for a checkpoint of model=harivo. Leave it out.")
    if cfg.upsampler is not None:
        raise UserError(f"upsampler={cfg.upsampler} goes behind a checkpoint, not behind a system. Leave it out.")
    if cfg.structure.video:
        raise UserError(f"structure.video={cfg.structure.video} is for a checkpoint of conditioning=structure.")
    if cfg.frames_at_once is not None:
        raise UserError(f"frames_at_once={cfg.frames_at_once}: a system has settings of its own, such as system.chunk.")
    if cfg.steps is not None:
        if cfg.get("sampler") is None:
            raise UserError(f"steps={cfg.steps}: the system names no sampler. Add one, such as sampler=euler.")
        cfg.sampler.steps = cfg.steps
    parts = {name: instantiate(cfg.get(name), name) for name in ("sampler", "guidance")}
    sizes = {name: cfg[name] for name in SIZES if cfg[name] is not None}
    system: System = instantiate(cfg.system, "system")(**parts, **sizes)
    return system.source, partial(_by_system, cfg, system)


def _by_system(cfg: DictConfig, system: System, prompts: Sequence[str]) -> list[GeneratedVideo]:
    jobs = all_jobs(prompts, cfg.num_videos, cfg.seed)
    given = _given(cfg, system.clip_shape, system.default_num_frames)
    with bar("generating", len(jobs)) as advance:
        videos = system.generate(GenerationRequest(jobs, given, _device(cfg), cfg.precision, cfg.batch_size), advance)
    made = zip(jobs.prompts, jobs.numbers, videos, strict=True)
    return [GeneratedVideo(prompt, number, frames, cfg.fps) for prompt, number, frames in made]


def structure_input(asked: DictConfig, max_megapixels: float) -> StructureInput | None:
    """What ``structure`` asks for; None where it names no video.

    Args:
        asked: ``video``, ``frames``, ``strength`` and ``interval``; everything else in it is a signal by its name.
        max_megapixels: larger frames are refused.

    Raises:
        UserError: a signal without a video, or a setting out of range.
    """
    signals = {str(name): node for name, node in asked.items() if name not in STRUCTURE}
    if not asked.video:
        idle = [*signals, *(name for name, plain in STRUCTURE.items() if asked[name] != plain)]
        if idle:
            raise UserError(
                f"structure: {', '.join(idle)} is set and structure.video is not. Give the video or picture "
                "whose structure is followed, structure.video=clip.mp4."
            )
        return None
    extractors = {name: instantiate(node, f"structure.{name}") for name, node in signals.items()}
    frames = [asked.frames] if isinstance(asked.frames, int) else asked.frames
    return StructureInput(
        str(asked.video), extractors or None, None if frames is None else list(frames), asked.strength,
        tuple(asked.interval), max_megapixels,
    )  # fmt: skip


def _device(cfg: DictConfig) -> str:
    return "cpu" if resolve_accelerator(cfg.accelerator) == "cpu" else "cuda"


def _given(
    cfg: DictConfig, clip_shape: tuple[int, int, int], default_num_frames: int, every: int | None = None
) -> GivenFrames | None:
    """The frames that ``image``, ``last_image`` and ``video`` name."""
    media = cfg.image, cfg.last_image, cfg.video, cfg.video_frames
    return conditioning_frames(clip_shape, default_num_frames, *media, cfg.max_megapixels, every)


def check_settings(cfg: DictConfig) -> None:
    """Refuse settings out of range before the checkpoint is read.

    Raises:
        UserError: by key, value and what is allowed.
    """
    for name, least in LEAST.items():
        value = cfg[name]
        if (value is not None or name not in OPTIONAL) and (not isinstance(value, int) or value < least):
            raise UserError(f"{name}={value}: it must be a whole number of {least} or more.")
    if not isinstance(cfg.refine, bool):
        raise UserError(f"refine={cfg.refine}: it must be true or false; refiner={cfg.refine} says which refiner.")
    if cfg.segments > 1 and cfg.interpolate:
        raise UserError("segments and interpolate both make long videos: take one of them.")
    if not isinstance(cfg.fps, int | float) or not 0 < cfg.fps <= 1000:
        raise UserError(f"fps={cfg.fps}: it must be a number above 0, at most 1000.")
    if not isinstance(cfg.max_megapixels, int | float) or not cfg.max_megapixels > 0:
        raise UserError(f"max_megapixels={cfg.max_megapixels}: it must be a number above 0.")
    if cfg.accelerator not in ("auto", "cpu", "gpu"):
        raise UserError(f"accelerator={cfg.accelerator}: choose auto, cpu or gpu.")
