"""Where a run writes: a new folder, or the folder of the run it resumes."""

from pathlib import Path

from omegaconf import OmegaConf

from vidlab.errors import UserError
from vidlab.lab.scaling import model_scale  # noqa: F401  registers the resolvers of sizes, composed with folders

RUNS = Path("runs")


def run_folder(ckpt_path: str | None, name: str, time: str, tracking_uri: str | None = None) -> str:
    """``runs/<name>/<time>``, or the folder of the run that ``ckpt_path`` names.

    A reference that cannot be resolved gets a new folder here and its error from the training job. Hydra asks before it
    writes to the folder.

    Raises:
        UserError: the run is being trained by another process; its folder is left as it is.
    """
    fresh = RUNS / name / time
    if not ckpt_path:
        return str(fresh)
    from vidlab.lab.runs.resolve import resolve_run

    try:
        found = resolve_run(ckpt_path, RUNS, name, tracking_uri)
    except UserError:
        return str(fresh)
    if not (found.folder / "run.json").exists():
        return str(fresh)
    from vidlab.lab.runs.run_lock import refuse_locked

    refuse_locked(found.folder)
    return str(found.folder)


def record_subfolder(ckpt_path: str | None) -> str | None:
    """Where Hydra records a command in the run's folder: nowhere when it resumes, before it is known to be accepted.

    The settings of a run that is resumed are in its ``config.yaml``.
    """
    return None if ckpt_path else ".hydra"


OmegaConf.register_new_resolver("run_folder", run_folder, replace=True)
OmegaConf.register_new_resolver("record_subfolder", record_subfolder, replace=True)
