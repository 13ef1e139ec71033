"""The autoencoders that an evaluation names, built and with weights."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from vidlab.autoencoders.base import Autoencoder
from vidlab.autoencoders.weight_files import CONFIG, OURS
from vidlab.errors import UserError
from vidlab.lab.cli.hydra_main import instantiate, locate_target
from vidlab.lab.compose import locate_autoencoder
from vidlab.lab.exported import load_stored
from vidlab.lab.rebuilding import no_larger_than, rebuilding
from vidlab.lab.runs.resolve import EXPORT, read_run_record, resolve_run
from vidlab.lab.runs.run_folder import RUNS
from vidlab.lab.trusted_config import Allowed, shipped_targets, trained_config
from vidlab.tensors import refuse_other_shapes
from vidlab.training.checkpoint_io import BESIDE

GROUP, CHOICE = "autoencoder", "choice"


@dataclass(frozen=True)
class Entry:
    """An autoencoder to evaluate.

    Args:
        name: what tables call it.
        source: where it comes from: a checkpoint, a folder, or a configuration choice with its settings.
        autoencoder: in evaluation mode.
        trained: the configuration of the run it comes from; None without one.
        mlflow_run_id: of that run.
        step: optimizer steps of the checkpoint.
    """

    name: str
    source: str
    autoencoder: Autoencoder
    trained: DictConfig | None = None
    mlflow_run_id: str | None = None
    step: int = 0


def build_entry(item: str | Mapping[str, Any], cfg: DictConfig) -> Entry:
    """Build what one item of ``autoencoders=[...]`` names.

    Args:
        item: a choice of ``conf/autoencoder``; a mapping of ``choice`` and settings of it, such as
            ``{choice: image_vae, path: sd-vae-ft-mse}``; a folder of published weights; or a run of an autoencoder, or
            of a denoiser, whose autoencoder is meant: ``last``, a run folder, a checkpoint or an MLflow run id.
        cfg: the evaluation's configuration.

    Raises:
        UserError: there is no such choice or run, a setting cannot work, or the weights are missing.
    """
    if not isinstance(item, str):
        settings = dict(item)
        name = settings.pop(CHOICE, None)
        if not name:
            raise UserError(
                f"autoencoders: {dict(item)} names no choice. Write {{choice: image_vae, path: <folder>}}, the choice "
                f"being one of {', '.join(choices())}."
            )
        entry = _from_choice(str(name), settings, cfg)
    elif _is_choice(item):
        entry = _from_choice(item, {}, cfg)
    elif (Path(item).expanduser() / CONFIG).is_file() and not (Path(item).expanduser() / EXPORT).is_file():
        entry = _from_published(Path(item).expanduser().resolve())
    else:
        entry = _from_run(item, cfg)
    entry.autoencoder.check_trained()
    entry.autoencoder.requires_grad_(False).eval()
    return entry


def choices(group: str = GROUP) -> list[str]:
    """What ``autoencoder=`` can be."""
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.object_type import ObjectType

    loader = GlobalHydra.instance().config_loader()
    names = [f"{group}/{name}" for name in loader.get_group_options(group, ObjectType.CONFIG)]
    for inner in loader.get_group_options(group, ObjectType.GROUP):
        names += [f"{group}/{name}" for name in choices(f"{group}/{inner}")]
    return [name.removeprefix(f"{GROUP}/") for name in names]


def _is_choice(name: str) -> bool:
    return name in choices()


def _from_choice(name: str, settings: Mapping[str, Any], cfg: DictConfig) -> Entry:
    from hydra import compose

    if not _is_choice(name):
        raise UserError(f"autoencoders: there is no choice autoencoder={name}. There are {', '.join(choices())}.")
    node = compose("train", [f"{GROUP}={name}"])[GROUP]
    with open_dict(node):
        node.update(settings)
    told = ", ".join(f"{key}={Path(str(value)).name if key == 'path' else value}" for key, value in settings.items())
    source = " ".join([f"{GROUP}={name}", *(f"{GROUP}.{key}={value}" for key, value in settings.items())])
    return Entry(f"{name} ({told})" if told else name, source, _built(node, cfg))


def _from_published(folder: Path) -> Entry:
    try:
        kind = str(json.loads((folder / CONFIG).read_text("utf-8"))["_class_name"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"autoencoders: {folder / CONFIG} names no _class_name, so its weights are unknown.") from error
    known = published_classes()
    if kind not in known:
        raise UserError(f"autoencoders: {folder} holds a {kind}; vidlab reads {', '.join(known)}.")
    return Entry(folder.name, str(folder), known[kind].from_published(folder))


def published_classes() -> dict[str, type[Autoencoder]]:
    """The autoencoders of ``conf/autoencoder`` that have a published form, by what their folders say they hold."""
    found = [locate_target(name, GROUP) for name in sorted(shipped_targets(GROUP))]
    kinds = [kind for kind in found if isinstance(kind, type) and issubclass(kind, Autoencoder)]
    return {kind.published_class: kind for kind in kinds if kind.published_class is not None}


def _built(node: DictConfig, cfg: DictConfig) -> Autoencoder:
    whole = OmegaConf.create({GROUP: node, "name": cfg.name, "logger": {"uri": cfg.tracking_uri}})
    assert isinstance(whole, DictConfig)
    locate_autoencoder(whole)
    built = instantiate(whole[GROUP], GROUP)
    assert isinstance(built, Autoencoder)
    return built


def trained_autoencoder(state: Mapping[str, Any], trained: DictConfig, checkpoint: Path, weights: str) -> Autoencoder:
    """The autoencoder that a run trained.

    Args:
        state: the checkpoint's content.
        trained: its configuration, from ``trained_config``.
        checkpoint: its file.
        weights: ``ema``, averaged where the run kept averages, or ``raw``.

    Raises:
        UserError: a setting of its configuration cannot work any more.
    """
    node = trained[GROUP].copy()
    with open_dict(node):
        node.path = str(checkpoint)
    own = {name.removeprefix(OURS): value for name, value in state["state_dict"].items() if name.startswith(OURS)}
    with rebuilding(checkpoint), no_larger_than(own, checkpoint):
        autoencoder = instantiate(node, GROUP)
        assert isinstance(autoencoder, Autoencoder)
        if weights == "raw":
            refuse_other_shapes(own, autoencoder.state_dict(), str(checkpoint), BESIDE)
            autoencoder.load_state_dict(own)
    return autoencoder


def _from_run(reference: str, cfg: DictConfig) -> Entry:
    if cfg.weights not in ("ema", "raw"):
        raise UserError(f"weights={cfg.weights}: choose ema or raw.")
    try:
        run = resolve_run(reference, RUNS, cfg.name, cfg.tracking_uri, key="autoencoders", exports=True)
    except UserError as error:
        raise UserError(f"{error} A choice is one of {', '.join(choices())}.") from error
    state = load_stored(run.checkpoint, cfg.weights)
    trained = trained_config(state, run.checkpoint, Allowed.of(cfg.allow))
    if any(name.startswith(OURS) for name in state["state_dict"]):
        autoencoder = trained_autoencoder(state, trained, run.checkpoint, cfg.weights)
    else:  # a denoiser's run, whose frozen autoencoder is elsewhere
        autoencoder = _built(trained[GROUP].copy(), cfg)
    record = read_run_record(run.folder)
    name = f"{record.experiment}/{run.folder.name}" if record else run.folder.name
    return Entry(
        name, str(run.checkpoint), autoencoder, trained, run.mlflow_run_id, int(state.get("global_step", 0))
    )  # fmt: skip
