"""From a checkpoint and prompts to video files, for people and for metrics."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from vidlab.command_line import command, setting
from vidlab.data.video import to_frames
from vidlab.data.video.contact_sheets import (
    contact_sheet,
    grid_mp4,
    tile,
    upscale_nearest,
    write_gif,
    write_lossless_mp4,
    write_playable_mp4,
    write_png,
)
from vidlab.errors import UserError
from vidlab.files import write_text
from vidlab.lab.cli.hydra_main import instantiate
from vidlab.lab.cli.progress import bar
from vidlab.lab.cli.safe_text import terminal
from vidlab.lab.compose import build_module, resolve_accelerator
from vidlab.lab.conditioning_frames import GivenFrames, conditioning_frames
from vidlab.lab.exported import load_stored
from vidlab.lab.rebuilding import no_larger_than, rebuilding
from vidlab.lab.runs.resolve import resolve_run
from vidlab.lab.runs.run_folder import RUNS
from vidlab.lab.systems.base import GenerationBatch, GenerationRequest, System, all_jobs
from vidlab.lab.trusted_config import Allowed, trained_config
from vidlab.sampling.long_video import continued, filled_in
from vidlab.training.precision import autocast
from vidlab.training.video_diffusion import VideoDiffusion

SIZES = ("frames", "height", "width")
OPTIONAL = (*SIZES, "steps", "video_frames", "overlap")
LEAST = {"num_videos": 1, "batch_size": 1, "seed": 0, "segments": 1, **dict.fromkeys(OPTIONAL, 1)}


@dataclass(frozen=True)
class GeneratedVideo:
    """One generated video: uint8 (T, H, W, 3) and what it was made from."""

    prompt: str
    number: int
    frames: np.ndarray


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
    make = from_system if cfg.get("system") else from_checkpoint
    source, samples = make(cfg, prompts)
    write(samples, folder, cfg.fps)
    print(f"{len(samples)} videos from {terminal(source)}\n  look at      {folder}/sheet.png, grid.gif, grid.mp4")
    print(f"  one by one   {folder}/000.mp4, 000.gif, ...\n  for metrics  {folder}/originals (lossless, with prompts)")
    return folder


def from_checkpoint(cfg: DictConfig, prompts: Sequence[str]) -> tuple[str, list[GeneratedVideo]]:
    """The checkpoint, and what the model trained here makes.

    Raises:
        UserError: no checkpoint, a prompt the text encoder cannot read whole, or sizes that do not fit.
    """
    run = resolve_run(cfg.checkpoint, RUNS, cfg.name, cfg.tracking_uri, key="checkpoint", exports=True)
    state = load_stored(run.checkpoint, cfg.weights)
    trained = trained_config(state, run.checkpoint, Allowed.of(cfg.allow))
    module = module_of(state, trained, run.checkpoint, cfg)
    check_conditioning(cfg, module)
    for prompt in prompts:
        module.text_encoder.check(prompt)
    usual = module.conditioning.default_num_frames(module.clip_shape[0])
    stride = trained.data.get("frame_stride", 1)
    plan = GenerationSettings(
        cfg.num_videos, cfg.seed, cfg.batch_size, cfg.precision, cfg.segments, cfg.overlap, cfg.interpolate, stride
    )  # fmt: skip
    module = module.to(_device(cfg))
    return str(run.checkpoint), generate(module, prompts, plan, conditioning_frames(cfg, module.clip_shape, usual))


def from_system(cfg: DictConfig, prompts: Sequence[str]) -> tuple[str, list[GeneratedVideo]]:
    """Where a published system comes from, and what it makes.

    Raises:
        UserError: settings or parts that do not fit, or a long video, which a system does not make.
    """
    for name, plain in (("segments", 1), ("interpolate", False)):
        if cfg[name] != plain:
            raise UserError(f"{name}={cfg[name]}: a system makes videos of one clip. Use {name}={str(plain).lower()}.")
    if cfg.steps is not None:
        cfg.sampler.steps = cfg.steps
    parts = {name: instantiate(cfg[name], name) for name in ("sampler", "guidance")}
    sizes = {name: cfg[name] for name in SIZES if cfg[name] is not None}
    system: System = instantiate(cfg.system, "system")(**parts, **sizes)
    jobs = all_jobs(prompts, cfg.num_videos, cfg.seed)
    given = conditioning_frames(cfg, system.clip_shape, system.default_num_frames)
    with bar("generating", len(jobs)) as advance:
        videos = system.generate(GenerationRequest(jobs, given, _device(cfg), cfg.precision, cfg.batch_size), advance)
    made = zip(jobs.prompts, jobs.numbers, videos, strict=True)
    return system.source, [GeneratedVideo(prompt, number, frames) for prompt, number, frames in made]


def _device(cfg: DictConfig) -> str:
    return "cpu" if resolve_accelerator(cfg.accelerator) == "cpu" else "cuda"


def check_conditioning(cfg: DictConfig, module: VideoDiffusion) -> None:
    """Refuse what needs a model that takes frames, before anything is sampled.

    Raises:
        UserError: naming the settings.
    """
    asked = [name for name in ("image", "last_image", "video", "interpolate") if cfg[name]]
    asked += ["segments"] if cfg.segments > 1 else []
    if asked and not module.conditioning.takes_frames:
        raise UserError(
            f"{', '.join(asked)}: this model was trained without conditioning on frames. Train one with "
            "conditioning=masked_video or conditioning=frame_replacement."
        )


def check_settings(cfg: DictConfig) -> None:
    """Refuse settings out of range before the checkpoint is read.

    Raises:
        UserError: by key, value and what is allowed.
    """
    for name, least in LEAST.items():
        value = cfg[name]
        if (value is not None or name not in OPTIONAL) and (not isinstance(value, int) or value < least):
            raise UserError(f"{name}={value}: it must be a whole number of {least} or more.")
    if cfg.segments > 1 and cfg.interpolate:
        raise UserError("segments and interpolate both make long videos: take one of them.")
    if not isinstance(cfg.fps, int | float) or not 0 < cfg.fps <= 1000:
        raise UserError(f"fps={cfg.fps}: it must be a number above 0, at most 1000.")
    if cfg.accelerator not in ("auto", "cpu", "gpu"):
        raise UserError(f"accelerator={cfg.accelerator}: choose auto, cpu or gpu.")


def module_of(state: dict[str, Any], trained: DictConfig, checkpoint: Path, cfg: DictConfig) -> VideoDiffusion:
    """Rebuild the trained module from its checkpoint alone, in evaluation mode.

    Args:
        state: the checkpoint's content.
        trained: its configuration, from ``trained_config``.
        checkpoint: its file.
        cfg: the command's settings, which win over the trained ones.

    Raises:
        UserError: a checkpoint of an autoencoder, or a setting of ``cfg`` it cannot take.
    """
    trained = copy.deepcopy(trained)
    if not trained.get("model"):
        raise UserError(
            f"{checkpoint} is of an autoencoder, which generates nothing. See what it reconstructs with "
            f"{command('evaluate.py', setting('autoencoders', [checkpoint]))}"
        )
    if cfg.weights not in ("ema", "raw"):
        raise UserError(f"weights={cfg.weights}: choose ema or raw.")
    trained.logger = {"uri": cfg.get("tracking_uri")}  # a file names no store for this command to ask
    with rebuilding(checkpoint):
        for name in SIZES:
            trained.data[name] = cfg[name] or trained.data[name]
        for group in ("sampler", "guidance"):
            trained[group] = cfg.get(group) or trained[group]
        if cfg.steps is not None:
            trained.sampler.steps = cfg.steps
        module = build_module(trained)
        with no_larger_than(state["state_dict"], checkpoint):
            module.configure_model()
        module.on_load_checkpoint(state)
        module.load_state_dict(state["state_dict"])
        if cfg.weights == "ema" and not state.get("averaged"):
            _take_average(module, state, checkpoint)
        return module.eval()


@torch.no_grad()
def _take_average(module: VideoDiffusion, state: dict[str, Any], checkpoint: Path) -> None:
    if not state.get("ema"):
        raise UserError(f"{checkpoint} holds no averaged weights (trained without callbacks.ema). Use weights=raw.")
    parameters = dict(module.named_parameters())
    for name, value in state["ema"].items():
        parameters[name].copy_(value)


@dataclass(frozen=True)
class GenerationSettings:
    """What to make of each prompt.

    Args:
        num_videos: per prompt.
        seed: of all random numbers.
        batch_size: videos made at once.
        precision: of the denoiser.
        segments: clips a video is continued to.
        overlap: frames a clip shares with the one before; None is half a clip.
        interpolate: take the clip for key frames and fill the gaps between them.
        frame_stride: source frames from one frame to the next in training, told to models that read it.
    """

    num_videos: int
    seed: int
    batch_size: int
    precision: str
    segments: int = 1
    overlap: int | None = None
    interpolate: bool = False
    frame_stride: int = 1


def generate(
    module: VideoDiffusion, prompts: Sequence[str], plan: GenerationSettings, given: GivenFrames | None = None
) -> list[GeneratedVideo]:
    """``num_videos`` per prompt. A video depends on (seed, prompt, its number) and not on its batch."""
    jobs = all_jobs(prompts, plan.num_videos, plan.seed)
    samples = []
    with torch.inference_mode(), autocast(module.device.type, plan.precision), bar("generating", len(jobs)) as advance:
        for batch in jobs.batches(plan.batch_size):
            pixels = _videos(module, batch, plan, given, advance)
            made = zip(batch.prompts, batch.numbers, pixels.float(), strict=True)
            samples += [GeneratedVideo(prompt, number, to_frames(video.cpu())) for prompt, number, video in made]
    return samples


def _videos(
    module: VideoDiffusion,
    jobs: GenerationBatch,
    plan: GenerationSettings,
    given: GivenFrames | None,
    advance: Callable[[float], None],
) -> Tensor:
    frames, height, width = module.clip_shape
    clips = plan.segments + (frames - 1 if plan.interpolate else 0)

    def make(pixels: Tensor, known: Tensor, number: int, stride: int = 1) -> Tensor:
        progress, micro = _scaled(advance, len(jobs) / clips), {"sampling_stride": (stride * plan.frame_stride,)}
        return module.generate(jobs.prompts, jobs.draw(number), pixels, known, progress, micro)

    pixels, known = torch.zeros(len(jobs), 3, frames, height, width), torch.zeros(len(jobs), frames, dtype=torch.bool)
    if given is not None:
        pixels, known = pixels + given.pixels, known | given.known
    if plan.interpolate:
        # told to be as far apart as the clips between them are long (STIV switches this micro-condition)
        key_frames = make(pixels, known, 0, stride=frames - 1)
        return filled_in(lambda pixels, known, number: make(pixels, known, number + 1), key_frames)
    return continued(make, pixels, known, plan.segments, plan.overlap or module.conditioning.default_num_frames(frames))


def _scaled(advance: Callable[[float], None], videos: float) -> Callable[[int, int], None]:
    return lambda done, steps: advance(videos / steps)


def write(samples: Sequence[GeneratedVideo], folder: Path, fps: float) -> None:
    """Write, for people, a contact sheet, a grid and every video as gif and mp4; for metrics, lossless originals.

    ``originals`` is a folder of videos with caption files, so it is also a data set (``data=folder``).
    """
    originals = folder / "originals"
    originals.mkdir(parents=True, exist_ok=True)
    for index, sample in enumerate(samples):  # first: the rest can be made from them
        write_text(originals / f"{index:03d}.txt", sample.prompt + "\n")
        write_lossless_mp4(originals / f"{index:03d}.mp4", sample.frames, fps)
    videos = np.stack([sample.frames for sample in samples])
    write_png(folder / "sheet.png", contact_sheet(videos, labels=[sample.prompt for sample in samples]))
    grid_mp4(folder / "grid.mp4", videos, fps)
    write_gif(folder / "grid.gif", tile(upscale_nearest(videos, 128)), fps)
    for index, sample in enumerate(samples):
        write_playable_mp4(folder / f"{index:03d}.mp4", sample.frames, fps)
        write_gif(folder / f"{index:03d}.gif", upscale_nearest(sample.frames, 256), fps)
