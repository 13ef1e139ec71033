"""Finding the parts of a published system: in its one folder, in folders of their own, or on the hub."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vidlab.errors import UserError
from vidlab.hub import model_folder

CONFIG = "config.json"


@dataclass(frozen=True)
class Part:
    """A part of a system.

    Args:
        key: the configuration key that names its folder.
        names: what its folder may be called within the system's folder; the first is the usual one.
        holds: what is expected there, for messages.
        patterns: files to fetch from the hub.
    """

    key: str
    names: Sequence[str]
    holds: str
    patterns: Sequence[str] = (CONFIG, "*.safetensors", "*.safetensors.index.json")

    def find(self, own: str | None, path: str | None) -> Path:
        """The part's folder.

        Args:
            own: a folder or hub id of its own.
            path: the folder or hub id of the whole system.

        Raises:
            UserError: neither is set, or the part is not there.
        """
        if own:
            folder = model_folder(str(own), self.key, self.patterns, is_part)
            return self._checked(folder)
        if not path:
            raise UserError(
                f"system.path is not set: give the folder of the release, or {self.key}=<folder with {self.holds}>."
            )
        whole = Path(path).expanduser()
        if not whole.is_dir():
            return self._checked(model_folder(f"{path}/{self.names[0]}", self.key, self.patterns, is_part))
        found = [whole / name for name in self.names if (whole / name).is_dir()]
        if not found:
            present = ", ".join(sorted(folder.name for folder in whole.iterdir() if folder.is_dir())) or "none"
            raise UserError(
                f"system.path={path}: {' or '.join(self.names)} with {self.holds} is not among its folders (there: "
                f"{present}). Put it there, or set {self.key}=<its folder>."
            )
        return self._checked(found[0])

    def _checked(self, folder: Path) -> Path:
        if not is_part(folder):
            raise UserError(
                f"{self.key}: {folder} needs {self.holds} ({CONFIG} and *.safetensors). Fetch it again; pickled "
                "weights are not read."
            )
        return folder


def is_part(folder: Path) -> bool:
    """Whether a folder holds a configuration and safe weights."""
    return (folder / CONFIG).is_file() and any(folder.glob("*.safetensors"))
