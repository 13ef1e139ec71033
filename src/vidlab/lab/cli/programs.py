"""The programs of vidlab by name: those that compose a configuration, as train.py does, and small reports."""

import difflib
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parents[2]
CONFIGURATIONS = (PACKAGE / "conf", PACKAGE.parents[1] / "conf")


@dataclass(frozen=True)
class Program:
    """What ``vidlab NAME`` runs.

    Args:
        says: what it is for, in a line.
        function: ``module:function``, imported when it is run.
        config: the primary configuration that is composed for it; None for a program that parses its own arguments.
        text_keys: keys that hold free text.
    """

    says: str
    function: str
    config: str | None = None
    text_keys: tuple[str, ...] = ()

    def load(self) -> Callable[..., Any]:
        """Import the function."""
        module, _, name = self.function.partition(":")
        found: Callable[..., Any] = getattr(importlib.import_module(module), name)
        return found


PROGRAMS: Mapping[str, Program] = {
    "train": Program("train a model, or a sweep of them", "vidlab.lab.train:run_training", "train"),
    "generate": Program(
        "make videos from prompts and pictures", "vidlab.lab.generate:run_generation", "generate", ("prompt",)
    ),
    "evaluate": Program(
        "score and compare runs, videos and autoencoders", "vidlab.lab.evaluation.run:run_evaluation", "evaluate"
    ),
    "compare": Program(
        "compare the runs of a sweep on one page, videos side by side", "vidlab.lab.compare.__main__:main"
    ),
    "curate": Program(
        "index, encode or caption data, curate raw videos, teach a prompt refiner",
        "vidlab.lab.curate:run_curation",
        "curate",
    ),
    "plan": Program("print the order and the buckets of the data of a training", "vidlab.lab.reports.data_plan:main"),
    "step_times": Program(
        "measure a training step on each bucket, for batches that take equal time", "vidlab.lab.reports.step_times:main"
    ),
    "layouts": Program("compare token layouts: distances and FLOPs", "vidlab.lab.reports.layout_report:main"),
    "export": Program("write what a run trained as safetensors and JSON", "vidlab.lab.export:main"),
    "vbench": Program("combine result files of VBench into its scores", "vidlab.metrics.vbench.scores:main"),
    "videophy": Program("combine result files of VideoPhy into its scores", "vidlab.metrics.videophy.scores:main"),
    "claims": Program("recompute what the papers print", "vidlab.lab.claims.page:main"),
    "assets": Program("list or fetch pinned weights and clips", "vidlab.assets:main"),
}


def config_folder() -> Path:
    """The shipped configuration: beside the package in a wheel, at the root of a checkout."""
    return next((path for path in CONFIGURATIONS if path.is_dir()), CONFIGURATIONS[0])


def run_program(name: str) -> None:
    """Run a program with the arguments in ``sys.argv``.

    Raises:
        SystemExit: as the program of that name.
    """
    program = PROGRAMS[name]
    if program.config is None:
        code = program.load()()
        if code:
            raise SystemExit(code)
        return
    from vidlab.lab.cli.hydra_main import main
    from vidlab.lab.runs import run_folder  # noqa: F401  registers the resolver of run folders

    def job(cfg: Any) -> Any:
        return program.load()(cfg)

    main(config_path=str(config_folder()), config_name=program.config, text_keys=program.text_keys)(job)()


def usage(unknown: str | None) -> str:
    """The list of programs; for a word that is none, what was meant."""
    lines = []
    if unknown is not None:
        near = difflib.get_close_matches(unknown, PROGRAMS, 1)
        lines = [f"{unknown}: no such program.{f' Did you mean {near[0]}?' if near else ''}", ""]
    lines += ["vidlab PROGRAM [group=choice ...] [key=value ...]", ""]
    lines += [f"  {name:<12}{program.says}" for name, program in PROGRAMS.items()]
    return "\n".join([*lines, "", "vidlab PROGRAM --help says what a program takes."])
