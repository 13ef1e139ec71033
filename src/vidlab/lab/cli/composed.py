"""A configuration in Python: what a command would compose, for notebooks and for a choice by its name."""

from collections.abc import Iterator
from contextlib import contextmanager

from omegaconf import DictConfig

from vidlab.errors import UserError
from vidlab.lab.cli.error_messages import explain
from vidlab.lab.cli.programs import config_folder
from vidlab.lab.runs import run_folder as _resolvers  # noqa: F401  registers what the configuration interpolates


def compose(*overrides: str, program: str = "train") -> DictConfig:
    """What ``train.py``, or another program, composes of these words: ``compose("model=skiparse", "seed=1")``.

    Nothing is built and nothing is written. What a command alone knows, such as its run folder, is not there.

    Args:
        overrides: as they are typed after ``python train.py``.
        program: ``train``, ``generate``, ``evaluate`` or ``curate``.

    Raises:
        UserError: words that do not compose, or a program that there is not.
    """
    import hydra

    if not (config_folder() / f"{program}.yaml").is_file():
        raise UserError(f"program={program}: choose train, generate, evaluate or curate.")
    with shipped_configuration():
        try:
            return hydra.compose(program, list(overrides))
        except Exception as error:
            told = explain(error)
            if told is None:
                raise
            raise UserError(told) from error


@contextmanager
def shipped_configuration() -> Iterator[None]:
    """Hydra on the shipped configuration; what a command that is running has composed stays as it is."""
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    before = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(config_folder()), version_base="1.3"):
            yield
    finally:
        GlobalHydra.instance().hydra = before
