"""The main job: compose, train, summarize."""

import logging
import signal
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, Trainer, seed_everything
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig

from vidlab.callbacks.cost.budget import BudgetLimit
from vidlab.callbacks.cost.hashes import shared_tags
from vidlab.callbacks.cost.meter import CostMeter
from vidlab.callbacks.last_checkpoint import StopRequestedError
from vidlab.command_line import command, setting
from vidlab.data.module import ClipDataModule
from vidlab.errors import UserError
from vidlab.files import remove_leftovers, terminal
from vidlab.lab.cache_key import check_cache
from vidlab.lab.cli.hydra_main import instantiate
from vidlab.lab.cli.planning import asks_for_plan
from vidlab.lab.cli.signals import EndOnSigterm, Terminated, held, terminable
from vidlab.lab.compose import build_data, build_module, build_trainer, name_classes
from vidlab.lab.image_models.provide import image_model_flops, provide_image_model
from vidlab.lab.init import Initializer, RunContext
from vidlab.lab.planner.run import run_plan
from vidlab.lab.published_sizes import take_published_sizes
from vidlab.lab.runs.config_record import ConfigRecord, resolved_yaml
from vidlab.lab.runs.job import Job, find_job, is_sweep
from vidlab.lab.runs.opening import opening
from vidlab.lab.runs.resolve import Run
from vidlab.lab.runs.resume_check import check_changes
from vidlab.lab.runs.run_lock import locked
from vidlab.lab.runs.run_start import RunRecorder, RunStart, run_tags
from vidlab.lab.runs.stopping import leave_process_group, stopped
from vidlab.lab.runs.summary import Course, Summary, shortened, summarize, summary_of
from vidlab.lab.scaling.model_scale import check_scale
from vidlab.lab.sweeps.own_processes import end_with_starter, run_as_command, starts_processes
from vidlab.lab.tracking.heartbeat import Heartbeat
from vidlab.lab.tracking.metric_record import MetricRecord
from vidlab.lab.tracking.mlflow_logger import MLflowLogger
from vidlab.lab.tracking.store import find_run, run_to_continue
from vidlab.parallel.ranks import data_ranks
from vidlab.training.checkpoint_io import load_checkpoint
from vidlab.training.module import ClipModule
from vidlab.training.optimization.fully_sharded import check_parallelism, shards_of
from vidlab.training.warm_start import WarmStartReport

log = logging.getLogger(__name__)


def run_training(cfg: DictConfig) -> float | None:
    """Train as configured; returns the last ``val/loss``.

    Raises:
        UserError: a configuration that cannot work, before the first batch.
        SystemExit: 143 (128 + 15) when SIGTERM, 130 when Ctrl-C ended training, after a checkpoint.
    """
    _quiet()
    end_with_starter()
    check_scale(cfg)
    name_classes(cfg)
    if asks_for_plan(cfg.get("plan")):
        run_plan(cfg)
        return None
    if is_sweep() and starts_processes(cfg.trainer):
        return run_as_command(cfg)
    with terminable():
        job = find_job(cfg)
        take_published_sizes(cfg, job.overrides)
        with locked(job.folder):
            remove_leftovers(job.folder / "checkpoints", quiet=0)
            provide_image_model(cfg, tuple(cfg.get("allow") or ()))
            done = already_trained(cfg, job)
            if done is None:
                return train(cfg, job)
            end_record(cfg, job)
            print(done.text, flush=True)
            return done.loss


def train(cfg: DictConfig, job: Job) -> float | None:
    """Train in a folder that no other process trains in; as ``run_training``."""
    logger, heartbeat, status = None, None, "failed"
    trainer: Trainer | None = None
    try:
        check_seed(cfg.seed)
        warn_of_no_buckets(cfg, job.overrides)
        seed_everything(cfg.seed, workers=True, verbose=False)
        module, data = build_module(cfg), build_data(cfg)
        if isinstance(data, ClipDataModule):
            data.accept_changes = cfg.accept_changes
        check_cache(cfg, module, data)
        logger = make_logger(cfg, job)
        trainer = build_trainer(cfg, logger)
        check_parallelism(trainer, module)
        tags = run_tags(cfg, job, trainer, module, data)
        clips = cfg.data.batch_size * data_ranks(trainer).size * trainer.accumulate_grad_batches
        size = opening(module.cost(), module.clip_shape, clips, shards_of(trainer))
        shared = partial(
            shared_tags, module, data, data_ranks(trainer).size, trainer.accumulate_grad_batches,
            trainer.strategy.root_device.type,
        )  # fmt: skip
        heartbeat = Heartbeat(job.folder, logger.set_tags)
        inherited = inherit_weights(cfg, job, module)
        text = resolved_yaml(cfg)
        start = RunStart(RunRecorder(cfg, text, job, logger, data, tags, size, inherited, heartbeat, shared))
        callbacks = [ConfigRecord(text, job.folder), EndOnSigterm()]
        callbacks += [MetricRecord(logger)] if isinstance(logger, MLflowLogger) else []
        counting = count_cost(cfg, trainer, module, data)
        trainer.callbacks[:] = [start, *counting, *trainer.callbacks, *callbacks]  # type: ignore[attr-defined]
        logger.check()
        started = time.monotonic()
        first = fit(trainer, module, data, job.resumed)
        seconds = time.monotonic() - started
        summary = summarize(
            job, trainer, module, logger, Course(first, seconds, start.first_step, image_model_flops(cfg))
        )
        report(summary, logger)
        status = "success"
    except StopRequestedError as error:
        status = "interrupted"
        stopped(job.folder, job.overrides, trainer, error.number, together=True)
    except (KeyboardInterrupt, SystemExit) as error:  # Lightning exits after Ctrl-C, Terminated is an exit too
        status = "interrupted"
        number = signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT
        stopped(job.folder, job.overrides, trainer, number, together=False)
    finally:
        if heartbeat is not None:
            heartbeat.stop()
        if logger is not None:
            with held():
                logger.close(status)
    assert trainer is not None
    leave_process_group(trainer)
    return summary.last.get("val/loss")


@dataclass(frozen=True)
class AlreadyTrained:
    """A resumed run that has nothing left to do: what to say, and its last ``val/loss``."""

    text: str
    loss: float | None


def already_trained(cfg: DictConfig, job: Job) -> AlreadyTrained | None:
    """Whether the run to resume has taken all steps and left a summary; one without is validated and gets it.

    Raises:
        UserError: settings have changed that a resumed run keeps.
    """
    if job.resumed is None:
        return None
    state = load_checkpoint(job.resumed.checkpoint, on_disk=True)
    check_changes(cfg, state, job.resumed.checkpoint, job.overrides)
    steps = state.get("global_step", 0)
    found, end = summary_of(job.folder, steps), end_of(cfg, state)
    if found is None or end is None:
        return None
    key, asked, twice = end
    longer = [word for word in job.overrides if not word.startswith(("ckpt_path=", f"{key}="))]
    again = command("train.py", *longer, f"{key}={twice:g}", setting("ckpt_path", shortened(job.folder)))
    text = (
        f"{shortened(job.folder)} has already taken {steps} steps, and {key}={asked:g} asks for no more: "
        f"nothing was trained or changed. For a longer run: {again}"
    )
    return AlreadyTrained(text, found["last"].get("val/loss"))


def end_of(cfg: DictConfig, state: Mapping[str, Any]) -> tuple[str, float, float] | None:
    """What a checkpoint's run has reached: the setting that ends it, its value, and one that doubles the run."""
    steps, asked = state.get("global_step", 0), cfg.trainer.get("max_steps")
    if isinstance(asked, int) and 0 <= asked <= steps:
        return "trainer.max_steps", asked, 2 * steps
    if not cfg.get("budget"):
        return None
    meter, budget = CostMeter(), instantiate(cfg.budget, "budget")
    if (counted := state.get("callbacks", {}).get(meter.state_key)) is not None:
        meter.load_state_dict(counted)
    return ("budget.value", budget.value, 2 * budget.value) if budget.reached(meter.work) else None


def count_cost(cfg: DictConfig, trainer: Trainer, module: ClipModule, data: LightningDataModule) -> list[Callback]:
    """What counts the cost of the run, and what ends it at its budget.

    Raises:
        UserError: a budget that cannot be.
    """
    meter = CostMeter()
    if not cfg.get("budget"):
        return [meter]
    limit = BudgetLimit(instantiate(cfg.budget, "budget"), meter)
    limit.begin(trainer, module, data)
    return [meter, limit]


def end_record(cfg: DictConfig, job: Job) -> None:
    """End the MLflow run of a training that was killed between its summary and the end of its run."""
    uri, run_id = cfg.logger.get("uri"), job.resumed.mlflow_run_id if job.resumed else None
    if uri is None or run_id is None:
        return
    known = run_to_continue(uri, run_id)
    if known is not None and find_run(uri, known, "ckpt_path").info.status != "FINISHED":
        logger = make_logger(cfg, job)
        logger.start()
        logger.close("success")


def check_seed(seed: object) -> None:
    """Refuse what is not a seed.

    Raises:
        UserError: anything but a whole number from 0 to 2**32 - 1.
    """
    if not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise UserError(f"seed={seed}: it must be a whole number from 0 to {2**32 - 1}.")


@rank_zero_only
def warn_of_no_buckets(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Say that settings of buckets do nothing where there are none."""
    rule = cfg.data.get("bucketing")
    if rule is None or rule.get("max_tokens") is not None:
        return
    typed = (word.lstrip("+") for word in overrides)
    useless = [word for word in typed if word.startswith("data.bucketing.") and "max_tokens" not in word]
    if useless:
        log.warning(
            "%s: without data.bucketing.max_tokens (height x width in pixels, at most) there are no buckets, and this "
            "does nothing", ", ".join(useless)
        )  # fmt: skip


def make_logger(cfg: DictConfig, job: Job) -> Any:
    """The logger of the run, not yet opened; a resumed run continues its MLflow run."""
    extra: dict[str, Any] = {"folder": str(job.folder)}
    if job.resumed is not None and job.resumed.mlflow_run_id and "run_id" in cfg.logger:
        extra["run_id"] = run_to_continue(cfg.logger.get("uri"), job.resumed.mlflow_run_id)
    if "run_name" in cfg.logger and cfg.logger.run_name is None:
        extra["run_name"] = (" ".join(job.overrides) or "defaults")[:80]
    if "tags" in cfg.logger and job.sweep is not None:
        extra["tags"] = {**(cfg.logger.tags or {}), **job.sweep.tags()}
    return instantiate(cfg.logger, "logger", **extra)


def inherit_weights(cfg: DictConfig, job: Job, module: ClipModule) -> WarmStartReport | None:
    """Start from trained weights where ``init`` names some; a resumed run has its own."""
    if job.resumed is not None:
        return None
    initializer: Initializer = instantiate(cfg.init, "init")
    module.configure_model()
    report = initializer.apply(module, RunContext(cfg.name, cfg.logger.get("uri")))
    if report is None and module.needs_parent:
        raise UserError(
            "conditioning=structure trains a controller beside a model that stays as it is, and init=none gives none. "
            "Train the model first, then add init=from_run init.run=<its run>."
        )
    if report is not None:
        log.info("%s\n  every name is in %s", report.text(), job.folder / "inherited.json")
    return report


def fit(trainer: Trainer, module: ClipModule, data: LightningDataModule, resumed: Run | None) -> dict[str, float]:
    """Validate before the first step, train, validate after the last; returns the first validation's metrics."""
    first: dict[str, float] = {}
    module.lr_schedule.factor(trainer.max_steps)  # refuses a run without an end before anything is computed
    if resumed is None:
        trainer.validate(module, datamodule=data, verbose=False, weights_only=True)
        first = {name: float(value) for name, value in trainer.callback_metrics.items()}
    checkpoint = str(resumed.checkpoint) if resumed else None
    trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    if not trainer.callback_metrics:  # no step was left: the run was stopped between its last and the summary
        trainer.validate(module, datamodule=data, verbose=False, weights_only=True)
    return first


@rank_zero_only
def report(summary: Summary, logger: Any) -> None:
    """Print the summary and write ``summary.json``: a full disk then takes nothing away from a finished training."""
    print(terminal(summary.text()), file=sys.stdout, flush=True)
    logger.set_tags(summary.tags())
    try:
        summary.write()
    except OSError as error:
        warnings.warn(f"{summary.folder}/summary.json was not written ({error.strerror})", RuntimeWarning, stacklevel=1)


def _quiet() -> None:
    """Drop messages that say nothing to the person who started the run."""
    for message in QUIET:
        warnings.filterwarnings("ignore", message=message)
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators.cuda", "alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.WARNING)


QUIET = (
    # the order of data is restored by the DataModule, from batches_consumed
    r".*resuming from a checkpoint that ended before the epoch ended.*",
    r".*does not have many workers.*",
    r".*The dirpath has changed.*",
    r".*Checkpoint directory .* exists and is not empty.*",
    r".*`isinstance\(treespec, LeafSpec\)`.*",
    r".*lr_scheduler.step\(\).*",
    r".*Total length of `list` across ranks is zero.*",  # data.val_clips=0
    r".*module\(s\) in eval mode at the start of training.*",  # the autoencoder drops nothing
    # batches know how to move themselves, wherever they come from
    r".*You have overridden `transfer_batch_to_device`.*",
    r".*FSDP2-wrapped module .* returned a view tensor.*",  # nothing is written into it
)
