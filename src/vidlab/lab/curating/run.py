"""The job: compose recipe, engine and sources, run them, and say what to type next."""

import warnings
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from vidlab.command_line import command, setting, shell_word
from vidlab.curation.curate import Curated, Settings, curate
from vidlab.curation.output.funnel import funnel_text
from vidlab.curation.output.lists import write_lists
from vidlab.curation.output.report import funnel_metrics, write_report
from vidlab.curation.recipe import Recipe
from vidlab.curation.sources import source_videos
from vidlab.data.names import shown
from vidlab.errors import UserError
from vidlab.lab.cli.hydra_main import instantiate
from vidlab.lab.curating.live import LiveFunnel
from vidlab.lab.tracking.mlflow_logger import MLflowLogger
from vidlab.lab.tracking.store import short

REASONS = 12
REPORT = "report.html"


def run_recipe(cfg: DictConfig) -> str:
    """Curate the videos of ``cfg.data``; returns what to print.

    Raises:
        UserError: no recipe is chosen, or a setting cannot work.
    """
    recipe = build_recipe(cfg)
    settings = build_settings(cfg, recipe)
    recipe.check()  # before clips are fetched or looked for
    source = instantiate(cfg.data.source, "data.source")
    with LiveFunnel() as live:
        done = curate(recipe, list(source_videos(source)), settings, live)
    write_lists(done, None if settings.export is None else settings.export.caption)
    page = write_report(done, done.root / REPORT)
    track(done, page, cfg)
    return curation_text(done, cfg)


def track(done: Curated, page: Path, cfg: DictConfig) -> None:
    """Keep funnel and report as an MLflow run of the experiment ``<name>-curation``.

    A store that fails costs a warning, never the clips.
    """
    uri = cfg.logger.get("uri")
    if uri is None:
        return
    logger = MLflowLogger(uri, f"{cfg.name}-curation", done.root.name, system_metrics=False, folder=done.root)
    try:
        logger.start()
    except UserError as error:
        warnings.warn(f"MLflow did not store the curation ({short(error)})", stacklevel=2)
        return
    logger.set_tags({"vidlab.recipe": done.recipe.name, "vidlab.data": str(cfg.data.name)})
    logger.log_metrics(funnel_metrics(done.funnel), 0)
    logger.log_artifact(page)
    logger.close("success")


def build_recipe(cfg: DictConfig) -> Recipe:
    """The recipe of a configuration.

    Raises:
        UserError: there is none.
    """
    if cfg.get("curation") is None:
        raise UserError("stage=curate needs a recipe: add curation=open_sora_plan (see conf/curation for others).")
    made = instantiate(cfg.curation, "curation")
    if not isinstance(made, Recipe):
        raise UserError(f"curation: {type(made).__name__} is no recipe (vidlab.curation.recipe.recipe makes one).")
    return made


def build_settings(cfg: DictConfig, recipe: Recipe) -> Settings:
    """How to run it; the folder is ``curated/<data>-<recipe>`` unless ``folder`` says otherwise."""
    folder = Path(cfg.folder).expanduser() if cfg.folder else Path("curated") / f"{cfg.data.name}-{recipe.name}"
    return Settings(
        folder.absolute(),
        instantiate(cfg.engine, "engine"),
        cfg.sources_per_partition,
        cfg.retries,
        instantiate(cfg.export, "export"),
    )


def uncaptioned(done: Curated) -> int:
    """How many of the kept clips have no caption."""
    rows = (row for table in done.tables(("rejected_by", "captions")) for row in table.to_pylist())
    return sum(not row["rejected_by"] and not row["captions"] for row in rows)


def curation_text(done: Curated, cfg: DictConfig) -> str:
    """The funnel, the reasons, and what to type next."""
    funnel = done.funnel
    lines = [
        f"{done.root}",
        f"  {len(done.partitions)} partitions of data={cfg.data.name}, recipe {done.recipe.name}: "
        f"{funnel.kept} clips kept, {funnel.kept_seconds / 60:.1f} minutes",
        funnel_text(funnel),
        f"  clips to look at, and why: {done.root / REPORT}",
    ]
    lines += [f"  note: {', '.join(done.recipe.left_out)} did not run"] if done.recipe.left_out else []
    reasons: Any = list(funnel.most_common_reasons())
    lines += [f"  rejected: {count} at {step}: {shown(reason)}" for step, reason, count in reasons[:REASONS]]
    lines += [f"  and {len(reasons) - REASONS} reasons more"] if len(reasons) > REASONS else []
    silent = uncaptioned(done) if cfg.export is not None and cfg.export.caption is None else 0
    if silent:
        word = shell_word(setting("export.caption", "a video"))
        lines.append(f"  note: {silent} kept clips have no caption and are not in the shards; {word} captions them")
    if cfg.export is not None and funnel.kept > silent:
        shards = done.root / "shards"
        lines.append(f"  train on it   {command('train.py', 'data=shards', setting('data.path', shards))}")
    return "\n".join(lines)
