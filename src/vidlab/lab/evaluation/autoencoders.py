"""``python evaluate.py autoencoders=[...]``: what autoencoders keep of the same held-out clips, side by side."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from vidlab.autoencoders.streaming import check_chunk
from vidlab.clip import ClipBatch
from vidlab.data.module import ClipDataModule
from vidlab.errors import UserError
from vidlab.lab.cli.hydra_main import instantiate
from vidlab.lab.cli.progress import bar
from vidlab.lab.compose import build_data, resolve_accelerator
from vidlab.lab.evaluation.entries import Entry, build_entry
from vidlab.lab.evaluation.reconstruction import Reconstructed, Setup, reconstruct_held_out, write_originals
from vidlab.lab.evaluation.reconstruction_report import Subject, write_reconstruction_report
from vidlab.lab.evaluation.report import Evaluated, distinct
from vidlab.lab.evaluation.scoring import Scores, score
from vidlab.lab.evaluation.store import store_evaluation, store_scores
from vidlab.lab.loading import SIZES
from vidlab.metrics.base import VideoMetric

METRICS = "reconstruction"  # conf/metrics, unless another choice is named


def evaluate_autoencoders(cfg: DictConfig, folder: Path) -> None:
    """Reconstruct held-out clips with every autoencoder that is named, score, compare, report and store.

    Raises:
        UserError: an autoencoder, the data or a setting cannot be used, or no metric can be measured.
    """
    check_chunk(cfg.frames_at_once)
    items = OmegaConf.to_container(cfg.autoencoders, resolve=True)
    assert isinstance(items, list)
    entries = [build_entry(item, cfg) for item in items]
    data = held_out(cfg, entries)
    batches = held_out_batches(data)
    metrics, left_out = usable_metrics(chosen_metrics(cfg), data.view.frames)
    device = "cpu" if resolve_accelerator(cfg.accelerator) == "cpu" else "cuda"
    setup = Setup(device, cfg.precision, float(cfg.fps), cfg.frames_at_once)
    originals = write_originals(batches, folder / "originals", setup.fps)
    made: list[Reconstructed] = []
    evaluated: list[Evaluated] = []
    for place, entry in enumerate(entries):
        with bar(f"reconstructing with {entry.name}", len(originals)) as advance:
            made.append(reconstruct_held_out(entry, batches, folder / f"reconstructions-{place}", setup, advance))
        with bar(f"scoring {entry.name}", len(originals)) as advance:
            scores = score(metrics, made[-1].clips, (), advance, originals)
        scores = Scores(scores.results, {**scores.not_measured, **left_out})
        evaluated.append(
            Evaluated(entry.name, entry.source, made[-1].clips, scores, entry.mlflow_run_id, entry.step)
        )  # fmt: skip
        store_scores(cfg.tracking_uri, evaluated[-1])
    named = distinct(evaluated)
    subjects = [Subject(one, many.cost, many.latents) for one, many in zip(named, made, strict=True)]
    files = write_reconstruction_report(folder, subjects, originals, setup, str(data.name))
    store_evaluation(cfg.tracking_uri, cfg.name, folder, [(s.evaluated, s.facts()) for s in subjects], files)


def held_out(cfg: DictConfig, entries: Sequence[Entry]) -> ClipDataModule:
    """The data with its first ``num_videos`` held-out clips, ready.

    ``data=`` decides, else it is that of the first run that is named. Sizes are ``frames``, ``height`` and ``width``,
    else those given as ``data.frames`` and so on, else those of the first run, else the data's own.

    Raises:
        UserError: there is neither, or a setting cannot work.
    """
    trained = next((entry.trained for entry in entries if entry.trained is not None), None)
    root = cfg if cfg.get("data") else trained
    if root is None:
        raise UserError("data: no data is named, and no run whose data could be taken. Add data=clips, for example.")
    container = OmegaConf.to_container(root.data)
    whole = OmegaConf.create({"seed": root.seed, "data": container})
    assert isinstance(whole, DictConfig)
    given = _given_keys()
    for name in SIZES:
        if cfg[name]:
            whole.data[name] = cfg[name]
        elif trained is not None and f"data.{name}" not in given:
            whole.data[name] = trained.data[name]
    whole.data.update({"val_clips": cfg.num_videos, "batch_size": cfg.batch_size, "num_workers": 0, "cache": None})
    data = build_data(whole)
    assert isinstance(data, ClipDataModule)
    data.setup()
    return data


def held_out_batches(data: ClipDataModule) -> list[ClipBatch]:
    """The held-out clips, decoded once: every autoencoder gets the same.

    Raises:
        UserError: fewer than two.
    """
    batches = list(data.val_dataloader())
    count = sum(len(batch) for batch in batches)
    if count < 2:
        raise UserError(f"data={data.name} holds out {count} clips of this size, and an evaluation needs 2 or more.")
    return batches


def _given_keys() -> set[str]:
    """Keys on the command line."""
    from hydra.core.hydra_config import HydraConfig

    return {override.lstrip("+~").split("=", 1)[0] for override in HydraConfig.get().overrides.task}


def chosen_metrics(cfg: DictConfig) -> DictConfig:
    """The metrics named on the command line; without any, those of reconstructions."""
    from hydra import compose

    if "metrics" in _given_keys():
        return cfg.metrics
    return compose("evaluate", [f"metrics={METRICS}"]).metrics


def usable_metrics(nodes: Mapping[Any, Any], frames: int) -> tuple[dict[str, VideoMetric], dict[str, str]]:
    """Metrics that clips of ``frames`` are long enough for, and why others are left out.

    The others are not built: their networks may have to be fetched.
    """
    built: dict[str, VideoMetric] = {}
    left_out: dict[str, str] = {}
    for name, node in nodes.items():
        if not node:
            continue
        needed = ((node.get("frames") or 1) - 1) * (node.get("stride") or 1) + 1
        if needed > frames:
            left_out[str(name)] = f"it needs {needed} frames, and the clips have {frames}"
        else:
            built[str(name)] = instantiate(node, f"metrics.{name}")
    if not built:
        told = "; ".join(f"{name}: {why}" for name, why in left_out.items()) or "metrics is empty"
        raise UserError(f"none of the metrics can be measured: {told}.")
    return built, left_out
