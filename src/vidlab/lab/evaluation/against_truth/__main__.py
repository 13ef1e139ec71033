"""``python -m vidlab.lab.evaluation.against_truth <run>``: given frames and made ones, against the truth."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from vidlab.command_line import exit_code
from vidlab.errors import UserError


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m vidlab.lab.evaluation.against_truth",
        description="Give a model the frames of held-out clips that it was trained with (the first ones, each second "
        "one, one view), and compare what it makes with the truth, with repeating frames and with interpolating them.",
    )
    parser.add_argument("run", help="'last', a run folder, a checkpoint file or an MLflow run id")
    parser.add_argument(
        "--against", action="append", default=[], metavar="NAME=RUN", help="another run to compare with"
    )
    parser.add_argument("--name", default="vidlab", help="the experiment in which 'last' looks")
    parser.add_argument("--clips", type=int, default=64, help="held-out clips")
    parser.add_argument(
        "--frames", type=int, help="of a clip; a temporal upsampler takes more than it was trained with"
    )
    parser.add_argument("--metrics", nargs="+", help="squared_error, psnr, ssim, lpips, fvd; without: all that fit")
    parser.add_argument("--steps", type=int, help="of the sampler; without: as trained")
    parser.add_argument("--guidance", help="a choice of conf/guidance; without: as trained")
    parser.add_argument("--sheet", type=Path, help="write a picture of the first clips here")
    return parser


@exit_code
def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    given = _parser().parse_args(arguments)
    from vidlab.lab.evaluation.against_truth.measure import AgainstTruthSettings, measure

    pairs = [pair.partition("=") for pair in given.against]
    if any(not run for _, _, run in pairs):
        raise UserError(f"--against {given.against}: give a name and a run, such as --against t2v=runs/...")
    asked = AgainstTruthSettings(
        given.run, {name: run for name, _, run in pairs}, given.name, given.clips, given.frames,
        given.metrics, given.steps, given.guidance, sheet=given.sheet,
    )  # fmt: skip
    print(measure(asked))


if __name__ == "__main__":
    sys.exit(main())
