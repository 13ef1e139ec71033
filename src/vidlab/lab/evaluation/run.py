"""``python evaluate.py``: runs or videos in, tables, pictures and MLflow metrics out."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig, ListConfig, OmegaConf

from vidlab.conditioning.base import Conditioning
from vidlab.data.module import ClipDataModule
from vidlab.errors import UserError
from vidlab.lab.cli.hydra_main import instantiate
from vidlab.lab.cli.progress import bar
from vidlab.lab.compose import build_data, resolve_accelerator
from vidlab.lab.evaluation.clips import RealClip, ScoredClip, clips_of_folder, readable, real_clips
from vidlab.lab.evaluation.comparison.over_seeds import compare_over_seeds, group_runs, named_by_settings
from vidlab.lab.evaluation.generation import Recipe, followed_clips, generate_held_out, identity
from vidlab.lab.evaluation.noise_levels import errors_by_noise_level
from vidlab.lab.evaluation.report import Evaluated, distinct
from vidlab.lab.evaluation.report_files import write_report, write_seed_report
from vidlab.lab.evaluation.scoring import score
from vidlab.lab.evaluation.store import store_scores
from vidlab.lab.exported import load_stored
from vidlab.lab.loading import LoadSettings, module_of
from vidlab.lab.runs.configurations import RunSettings, read_settings
from vidlab.lab.runs.resolve import Run, read_run_record, resolve_run
from vidlab.lab.runs.run_folder import RUNS
from vidlab.lab.sweeps.record import RECORD, read_sweep
from vidlab.lab.trusted_config import Allowed, trained_config
from vidlab.metrics.base import VideoMetric
from vidlab.metrics.series import Series
from vidlab.precision import resolve_precision

log = logging.getLogger(__name__)

# Generated videos, by everything they depend on: evaluating again with other metrics finds them here.
VIDEOS = Path("evaluations/videos")
LEAST = {"num_videos": 2, "batch_size": 1, "seed": 0, "conditioning_frames": 0, "noise_levels": 0}


def run_evaluation(cfg: DictConfig) -> Path:
    """Evaluate everything that is named; returns the folder of the report.

    Raises:
        UserError: nothing or too much is named, a setting is out of range, or no metric can be measured.
    """
    from hydra.core.hydra_config import HydraConfig

    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    folder = Path(HydraConfig.get().runtime.output_dir)
    check_settings(cfg)
    if cfg.autoencoders:
        from vidlab.lab.evaluation.autoencoders import evaluate_autoencoders

        evaluate_autoencoders(cfg, folder)
        return folder
    metrics = build_metrics(cfg)
    subjects = []
    for reference in _runs(cfg):
        key = "runs" if cfg.runs else "run"
        run = resolve_run(reference, RUNS, cfg.name, cfg.tracking_uri, key=key, exports=True)
        subjects.append(evaluate_run(run, cfg, metrics))
        store_scores(cfg.tracking_uri, subjects[-1])
    for path in _folders(cfg):
        subjects.append(evaluate_folder(Path(path).expanduser(), cfg, metrics))
    if cfg.runs and len(subjects) > 1:
        groups = named_by_settings(group_runs(distinct(subjects)))
        write_seed_report(folder, compare_over_seeds(groups))
    else:
        write_report(folder, distinct(subjects))
    return folder


def check_settings(cfg: DictConfig) -> None:
    """Refuse what cannot be evaluated before anything is loaded.

    Raises:
        UserError: by key and what is allowed.
    """
    named = [key for key in ("run", "runs", "videos", "autoencoders") if cfg[key]]
    if len(named) != 1:
        told = f"{', '.join(named)} are named" if named else "nothing is named"
        raise UserError(
            f"{told}: give one of run=<last, a run folder, a checkpoint or an MLflow run id>, runs=[<a>,<b>], "
            "videos=<a folder> or autoencoders=[<a run>,haar,trilinear]."
        )
    if cfg.autoencoders is not None and not isinstance(cfg.autoencoders, ListConfig):
        raise UserError(f"autoencoders={cfg.autoencoders}: give a list, such as autoencoders=[last,haar,trilinear].")
    for key, least in LEAST.items():
        if not isinstance(cfg[key], int) or cfg[key] < least:
            raise UserError(f"{key}={cfg[key]}: it must be a whole number of {least} or more.")
    if cfg.num_reference is not None and (not isinstance(cfg.num_reference, int) or cfg.num_reference < 2):
        raise UserError(f"num_reference={cfg.num_reference}: it must be a whole number of 2 or more, or null.")


def _runs(cfg: DictConfig) -> list[str]:
    if cfg.run:
        return [str(cfg.run)]
    named = [cfg.runs] if isinstance(cfg.runs, str) else cfg.runs or ()
    return [one for run in named for one in runs_of(str(run))]


def runs_of(reference: str) -> list[str]:
    """The run that is named, or the finished runs of a sweep's folder, in the order of its jobs.

    In a folder without a sweep's record these are the runs with a checkpoint.

    Raises:
        UserError: the record is damaged, or no job has finished.
    """
    folder = Path(reference).expanduser()
    if (folder / "checkpoints").is_dir() or not folder.is_dir():
        return [reference]
    if (folder / RECORD).is_file():
        return _finished(folder)
    jobs = [path.parents[1] for path in folder.glob("*/checkpoints/last.ckpt")]
    return [str(job) for job in sorted(jobs, key=lambda job: (len(job.name), job.name))] or [reference]


def _finished(folder: Path) -> list[str]:
    """The folders of a sweep's finished jobs; the other jobs are named, and take no part."""
    sweep = read_sweep(folder)
    others = ", ".join(f"job {job.number} ({job.state})" for job in sweep.jobs if job.state != "finished")
    found = [str(folder / job.folder) for job in sweep.jobs if job.state == "finished"]
    if not found:
        raise UserError(f"runs={folder}: no job of this sweep has finished: {others or 'it has none'}.")
    if others:
        log.warning("runs=%s: left out are %s", folder, others)
    return found


def _folders(cfg: DictConfig) -> list[str]:
    if not cfg.videos:
        return []
    return [cfg.videos] if isinstance(cfg.videos, str) else [str(path) for path in cfg.videos]


def build_metrics(cfg: DictConfig) -> dict[str, VideoMetric]:
    """The metrics of the configuration, by name; null takes one out."""
    return {name: instantiate(node, f"metrics.{name}") for name, node in cfg.metrics.items() if node}


def evaluate_run(run: Run, cfg: DictConfig, metrics: Mapping[str, VideoMetric]) -> Evaluated:
    """Generate for the captions of held-out clips, and score.

    Raises:
        UserError: the checkpoint's model or data cannot be built with these settings.
    """
    state = load_stored(run.checkpoint, cfg.weights)
    trained = trained_config(state, run.checkpoint, Allowed.of(cfg.allow))
    module = module_of(state, trained, run.checkpoint, LoadSettings.of(cfg))
    step = int(state.get("global_step", 0))
    del state
    device = "cpu" if resolve_accelerator(cfg.accelerator) == "cpu" else "cuda"
    module.to(device)
    if cfg.get("data"):
        trained.data = OmegaConf.to_container(cfg.data)
    set_size(trained.data, module.clip_shape)
    data = held_out_data(trained, cfg)
    recipe = Recipe(cfg.seed, cfg.conditioning_frames, cfg.batch_size, cfg.precision, cfg.fps)
    folder = VIDEOS / _identity(run, cfg, step, data, module.conditioning)
    name = _name(run)
    count = min(cfg.num_videos, len(data.data.val))
    with bar(f"generating {name}", count) as advance:
        clips = generate_held_out(module, iter(data.val_dataloader()), folder, recipe, advance)
    reference = _reference(cfg, clips, data)
    followed = module.conditioning.tells_structure or None
    originals = followed_clips(iter(data.val_dataloader()), folder, cfg.fps) if followed else None
    with bar(f"scoring {name}", len(clips) + len(reference)) as advance:
        scores = score(metrics, clips, reference, advance, originals)
    if cfg.noise_levels:
        learned = OmegaConf.to_yaml(OmegaConf.create({"o": trained.objective, "a": trained.autoencoder}))
        told = identity(learned=learned)
        errors = errors_by_noise_level(module, data.val_dataloader(), cfg.noise_levels, cfg.precision, told)
        scores = replace(scores, results={**scores.results, **errors})
    others = {
        "seed": cfg.seed, "weights": cfg.weights, "clip_shape": module.clip_shape, "data": data.data.hash,
        "precision": resolve_precision(cfg.precision, device), "conditioning_frames": cfg.conditioning_frames or None,
        "reference": cfg.reference, "num_reference": cfg.num_reference, "structure": followed,
    }  # fmt: skip
    series = Series(len(clips), module.sampler, module.guidance, others)
    settings = _settings(run)
    return Evaluated(name, str(run.checkpoint), clips, scores, run.mlflow_run_id, step, series, settings)


def _settings(run: Run) -> RunSettings | None:
    """What made a run; its checkpoint's name counts, so that ``best`` and ``last`` of one run are told apart."""
    found = read_settings(run.folder)
    return found and replace(found, overrides=(*found.overrides, f"checkpoint={run.checkpoint.stem}"))


def set_size(data: DictConfig, shape: tuple[int, int, int]) -> None:
    """Clips of another size; a source that renders its own, as long and large as the clips are, renders these.

    Args:
        data: the configuration of a run's data, whose interpolations are resolved.
        shape: frames, height, width.
    """
    source, stride = data.get("source") or {}, data.get("frame_stride", 1)
    for name, new in zip(("frames", "height", "width"), shape, strict=True):
        spans = [(size - 1) * stride + 1 if name == "frames" else size for size in (data[name], new)]
        if source.get(name) == spans[0]:
            source[name] = spans[1]
        data[name] = new


def held_out_data(trained: DictConfig, cfg: DictConfig) -> ClipDataModule:
    """The data a model was trained on, with its first ``num_videos`` held-out clips."""
    trained.data.val_clips = cfg.num_videos
    trained.data.batch_size = cfg.batch_size
    trained.data.num_workers = 0
    data = build_data(trained)
    assert isinstance(data, ClipDataModule)
    data.setup()
    return data


def _identity(run: Run, cfg: DictConfig, step: int, data: ClipDataModule, conditioning: Conditioning) -> str:
    """Names the folder of generated videos: it changes with everything the videos depend on."""
    state = run.checkpoint.stat()
    chosen = {
        key: cfg[key] for key in ("seed", "num_videos", "conditioning_frames", "weights", "precision", "steps", "fps")
    }
    chosen |= {key: cfg[key] for key in ("frames", "height", "width")}
    chosen |= {key: OmegaConf.to_container(cfg[key]) if cfg.get(key) else None for key in ("sampler", "guidance")}
    chosen |= {"structure": True} if conditioning.tells_structure else {}
    return identity(
        checkpoint=str(run.checkpoint), size=state.st_size, time=state.st_mtime_ns, step=step,
        data=data.data.hash, view=str(data.view), **chosen,
    )  # fmt: skip


def _name(run: Run) -> str:
    record = read_run_record(run.folder)
    short = run.folder.name
    return f"{record.experiment}/{short}" if record else short


def _reference(cfg: DictConfig, clips: Sequence[ScoredClip], data: ClipDataModule | None) -> list[RealClip]:
    """Real clips for distances between sets: a folder that is named, or the held-out clips of the run's data."""
    frames, limit = clips[0].frames().shape[0], cfg.num_reference or 2 * len(clips)
    if cfg.reference:
        return real_clips(Path(cfg.reference).expanduser(), frames, limit)
    if data is None:
        return []
    index = data.data.val
    stride = data.view.frame_stride
    return [RealClip(index.root, index.row(position), stride) for position in range(min(limit, len(index)))]


def evaluate_folder(folder: Path, cfg: DictConfig, metrics: Mapping[str, VideoMetric]) -> Evaluated:
    """Score the videos of a folder."""
    clips = readable(clips_of_folder(folder, "videos"), f"videos={folder}")
    reference = _reference(cfg, clips, None)
    with bar(f"scoring {folder.name}", len(clips) + len(reference)) as advance:
        scores = score(metrics, clips, reference, advance)
    return Evaluated(folder.name, str(folder), clips, scores)
