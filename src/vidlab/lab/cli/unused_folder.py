"""Folders that Hydra makes before anything is known of a job: those in which nothing came to be are removed again."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hydra.core.hydra_config import HydraConfig

from vidlab.lab.cli.error_messages import explain

# What is there before a job has done anything: Hydra's records and log, the lock of a run.
BEFORE = (".hydra", "*.log", "run.lock", "multirun.yaml")


@contextmanager
def no_trace_of_mistakes() -> Iterator[None]:
    """Remove the folder of this job when a mistake, or a signal, ends it before it has written anything there.

    A folder that the command line names stays, and one that holds anything else: of a run that is resumed, or of a
    process that others share it with.
    """
    try:
        yield
    except BaseException as error:
        config = HydraConfig.get()
        named = any(word.startswith(("hydra.run.dir=", "hydra.sweep.")) for word in config.overrides.hydra)
        if not named and (not isinstance(error, Exception) or explain(error) is not None):
            remove_unused(Path(config.runtime.output_dir))
        raise


def remove_unused(folder: Path) -> None:
    """Remove a folder that holds nothing but what was there before the job."""
    inside = list(folder.iterdir()) if folder.is_dir() else []
    if folder == Path.cwd() or not all(any(path.match(known) for known in BEFORE) for path in inside):
        return
    shutil.rmtree(folder, ignore_errors=True)
