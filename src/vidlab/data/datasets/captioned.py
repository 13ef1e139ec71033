"""A data set whose captions were written by ``curate.py stage=caption``: ``data=captioned``."""

from dataclasses import dataclass
from pathlib import Path

from vidlab.data.storage.clip_row import INDEX_NAME
from vidlab.errors import UserError


@dataclass(frozen=True)
class CaptionedClips:
    """The clips of another data set, read where they are, with the captions that are in this folder.

    Args:
        path: the folder that ``stage=caption`` wrote.
        name: of the data set in logs.

    Raises:
        UserError: ``path`` is not set, or is no such folder.
    """

    path: str | None
    name: str = "captioned"

    def prepare(self) -> Path:
        """The folder itself."""
        if not self.path:
            raise UserError(
                "data.path is not set: give the folder that curate.py stage=caption wrote, data.path=captions/..."
            )
        folder = Path(self.path).expanduser().absolute()
        if not (folder / INDEX_NAME).is_file():
            raise UserError(f"data.path={self.path}: there is no {INDEX_NAME} in {folder}. Run stage=caption first.")
        return folder
