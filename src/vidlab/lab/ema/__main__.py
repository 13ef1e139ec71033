"""``python -m vidlab.lab.ema <run> <length>``: a checkpoint whose average has another length."""

import argparse
import sys
from collections.abc import Sequence

from vidlab.command_line import command, exit_code, setting
from vidlab.files import terminal


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m vidlab.lab.ema",
        description="Average a run's weights over another length, from what callbacks=[default,post_hoc_ema] has "
        "stored, and write a checkpoint that generate.py, evaluate.py and init.run take.",
    )
    parser.add_argument("run", help="'last', a run folder, a checkpoint file or an MLflow run id")
    parser.add_argument("lengths", nargs="+", type=float, help="sigma_rel, such as 0.08; several write several files")
    parser.add_argument("--name", default="vidlab", help="the experiment in which 'last' looks")
    parser.add_argument("--uri", default="sqlite:///mlflow.db", help="the MLflow store in which run ids are looked up")
    return parser


@exit_code
def main(arguments: Sequence[str] | None = None) -> None:
    """Write a checkpoint for each length."""
    asked = _parser().parse_args(arguments)
    import torch

    from vidlab.files import written_aside
    from vidlab.lab.ema.reconstruction import with_average
    from vidlab.lab.exported import load_stored
    from vidlab.lab.runs.resolve import resolve_run
    from vidlab.lab.runs.run_folder import RUNS

    run = resolve_run(asked.run, RUNS, asked.name, asked.uri, key="run")
    state = load_stored(run.checkpoint)
    for length in asked.lengths:
        content = with_average(state, run.folder, length, "ema", run.checkpoint)
        path = run.checkpoint.parent / f"ema-{length:g}.ckpt"
        with written_aside(path) as aside:
            torch.save(content, aside)
        print(terminal(f"{path}\n  {command('generate.py', setting('checkpoint', path))} prompt=..."))


if __name__ == "__main__":
    sys.exit(main())
