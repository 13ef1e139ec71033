"""Videos for VBench-I2V, named as its own evaluation wants them: ``python -m vidlab.lab.evaluation.vbench_i2v``."""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidlab.command_line import exit_code
from vidlab.errors import DataError, UserError
from vidlab.files import terminal
from vidlab.metrics.vbench.presets import DIMENSIONS

SAMPLES = 5  # of each prompt, as VBench wants
LONGEST_NAME = 255  # bytes, of most file systems


@dataclass(frozen=True)
class Prompt:
    """A picture, and what is to happen in it."""

    picture: Path
    text: str

    def video(self, folder: Path, number: int) -> Path:
        """Where VBench looks for its ``number``-th sample."""
        return folder / f"{self.text}-{number}.mp4"


def read_suite(info: Path, pictures: Path, dimensions: Sequence[str] = ()) -> list[Prompt]:
    """The pairs of ``vbench2_i2v_full_info.json``: a list of ``image_name``, ``prompt_en`` and ``dimension``.

    Args:
        info: that file.
        pictures: the folder of the image suite in one ratio, such as ``crop/16-9``.
        dimensions: of which pairs are wanted; () is all. A pair that several dimensions use is there once.

    Raises:
        UserError: the file or pictures are missing, or no pair is of these dimensions.
        DataError: the file is no such list, or a prompt can be no file's name.
    """
    unknown = [name for name in dimensions if name not in DIMENSIONS]
    if unknown:
        raise UserError(f"--dimensions {' '.join(unknown)}: not a VBench dimension; known are {', '.join(DIMENSIONS)}.")
    found: dict[Prompt, None] = {}
    for entry in _entries(info):
        if dimensions and not set(dimensions) & set(entry["dimension"]):
            continue
        text, name = str(entry["prompt_en"]), Path(str(entry["image_name"])).name
        if "/" in text or "\0" in text or not 0 < len(text.encode()) <= LONGEST_NAME - len("-0.mp4"):
            raise DataError(f"{info}: the prompt {text[:80]!r} can be no file's name.")
        found[Prompt(pictures / name, text)] = None
    missing = [prompt.picture for prompt in found if not prompt.picture.is_file()]
    if missing or not found:
        what = f"{len(missing)} pictures are missing, the first is {missing[0]}" if missing else "no prompt is of these"
        raise UserError(f"{info}: {what}. Give the image suite in one ratio, such as --pictures data/crop/16-9.")
    return list(found)


def _entries(info: Path) -> list[Mapping[str, Any]]:
    try:
        content = json.loads(info.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{info}: no such file; give VBench's vbench2_i2v_full_info.json.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{info}: cannot be read as JSON ({error}).") from error
    keys = ("image_name", "prompt_en", "dimension")
    whole = isinstance(content, list) and all(isinstance(entry, dict) and entry.keys() >= {*keys} for entry in content)
    if not whole or not all(isinstance(entry["dimension"], list) for entry in content):
        raise DataError(f"{info}: not VBench-I2V's list; expected objects with {', '.join(keys)}.")
    return list(content)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m vidlab.lab.evaluation.vbench_i2v",
        description="Make the videos of VBench-I2V with a model that takes a first frame, five of each prompt, named "
        "as VBench's own evaluation wants them. Videos that are there are kept, so an interrupted command goes on.",
    )
    parser.add_argument("run", help="'last', a run folder, a checkpoint file or an MLflow run id")
    parser.add_argument("--info", type=Path, required=True, help="VBench's vbench2_i2v_full_info.json")
    parser.add_argument("--pictures", type=Path, required=True, help="the image suite in one ratio, data/crop/16-9")
    parser.add_argument("--out", type=Path, required=True, help="folder of the videos")
    parser.add_argument("--dimensions", nargs="*", default=[], help="of which prompts are made; without: all")
    parser.add_argument("--samples", type=int, default=SAMPLES, help="of each prompt")
    parser.add_argument("--name", default="vidlab", help="the experiment in which 'last' looks")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fps", type=float, default=8.0)
    parser.add_argument("--device", default=None, help="cpu or cuda; without: the CPU")
    return parser


@exit_code
def main(arguments: Sequence[str] | None = None) -> None:
    """Make the videos that are missing."""
    asked = _parser().parse_args(arguments)
    suite = read_suite(asked.info, asked.pictures, asked.dimensions)
    make_videos(suite, asked)
    print(terminal(f"{len(suite) * asked.samples} videos in {asked.out}"))


def make_videos(suite: Sequence[Prompt], asked: argparse.Namespace) -> None:
    """The videos of the suite that are not there yet.

    Raises:
        UserError: no such run, or one of a model that takes no first frame.
    """
    from vidlab.data.video.contact_sheets import write_playable_mp4
    from vidlab.files import remove_leftovers
    from vidlab.lab.cli.progress import bar
    from vidlab.lab.loading import load

    pipeline = load(asked.run, name=asked.name, device=asked.device)
    asked.out.mkdir(parents=True, exist_ok=True)
    remove_leftovers(asked.out)
    with bar("VBench-I2V", len(suite)) as advance:
        for prompt in suite:
            places = [prompt.video(asked.out, number) for number in range(asked.samples)]
            if not all(place.is_file() for place in places):
                made = pipeline(prompt.text, asked.samples, asked.seed, image=prompt.picture, progress=False)
                for place, video in zip(places, made, strict=True):
                    write_playable_mp4(place, video.frames, asked.fps)
            advance(1)


if __name__ == "__main__":
    sys.exit(main())
