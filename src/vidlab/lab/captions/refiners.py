"""Finding a prompt refiner: the newest one, or by folder."""

from pathlib import Path

from vidlab.command_line import command
from vidlab.errors import UserError
from vidlab.text.refiner.language_model import RECORD

REFINERS = Path("refiners")


def resolve_refiner(reference: str | None) -> str:
    """What ``PromptRefiner.load`` takes: ``last`` becomes the newest folder that ``stage=refiner`` wrote here.

    Raises:
        UserError: ``last``, and there is none.
    """
    if reference and reference != "last":
        return str(reference)
    found = sorted(REFINERS.glob(f"*/{RECORD}"), key=lambda file: (file.stat().st_mtime_ns, str(file)))
    if not found:
        make = command("curate.py", "stage=refiner")
        raise UserError(
            f"refiner=last: there is none in {REFINERS.absolute()}. Make one with {make}, or give the folder of a "
            "language model: refiner=FOLDER, refiner=asset:smollm2."
        )
    return str(found[-1].parent)
