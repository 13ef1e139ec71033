"""``train.py plan=true``: the plan is printed, and nothing is left behind."""

from pathlib import Path

from omegaconf import DictConfig

from vidlab.lab.planner.plan import plan_training
from vidlab.lab.planner.report import row, text_of
from vidlab.lab.planner.table import write_row
from vidlab.lab.published_sizes import take_published_sizes
from vidlab.lab.runs.job import is_sweep


def run_plan(cfg: DictConfig) -> None:
    """Print the plan of a training; of a job of a sweep, also leave its row for the table at the end.

    Raises:
        UserError: a configuration that cannot work.
    """
    from hydra.core.hydra_config import HydraConfig

    hydra = HydraConfig.get()
    overrides = tuple(hydra.overrides.task)
    take_published_sizes(cfg, overrides)
    plan = plan_training(cfg)
    if is_sweep():
        write_row(Path(hydra.runtime.output_dir), row(plan, overrides))
    print(text_of(plan), flush=True)
