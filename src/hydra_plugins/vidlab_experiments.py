"""Hydra finds the tables of ``experiments/`` as choices: ``experiment=open_sora_plan/attention``.

Hydra looks for its plugins in this package. A key ``hydra.searchpath`` could not do it: Hydra reads it in a primary
configuration alone, and those of other programs begin from that of train.py.
"""

from pathlib import Path

from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.plugins.search_path_plugin import SearchPathPlugin
from typing_extensions import override

# of a checkout: src/hydra_plugins is two folders below its root
BESIDE_SOURCES = Path(__file__).resolve().parents[2] / "experiments"
CONF = BESIDE_SOURCES.parent / "conf"
TABLE = "sweep.yaml"


class ExperimentsPath(SearchPathPlugin):
    """Adds ``experiments/`` of a checkout to the search path of vidlab's own configurations, and of nothing else."""

    @override
    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        main = [str(part.path).removeprefix("file://") for part in search_path.get_path() if part.provider == "main"]
        if BESIDE_SOURCES.is_dir() and any(Path(path).resolve() == CONF for path in main):
            search_path.append("vidlab-experiments", f"{ExperimentsSource.scheme()}://")


class ExperimentsSource(FileConfigSource):
    """Folders of published tables as configurations.

    ``experiment/PAPER/TABLE`` is ``experiments/PAPER/TABLE/sweep.yaml``, and ``row/PAPER/TABLE/NAME`` is
    ``experiments/PAPER/TABLE/rows/NAME.yaml``. Where the folder is not there, as in an installed package, this source
    has nothing and says nothing.

    Args:
        provider: who asks, for messages.
        path: ``experiments://FOLDER``; without a folder, that of the checkout.
    """

    def __init__(self, provider: str, path: str) -> None:
        super().__init__(provider, path)
        self.path: str = path.partition("://")[2] or str(BESIDE_SOURCES)

    @staticmethod
    @override
    def scheme() -> str:
        return "experiments"

    @override
    def available(self) -> bool:
        return True

    @override
    def is_group(self, config_path: str) -> bool:
        return config_path == "" or self._folder(config_path) is not None

    @override
    def is_config(self, config_path: str) -> bool:
        return (Path(self.path) / self._normalize_file_name(config_path)).is_file()

    @override
    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        folder = self._folder(config_path)
        if folder is None:
            return []
        names = [entry.name.removesuffix(".yaml") for entry in folder.iterdir()]
        kinds = {ObjectType.CONFIG: self.is_config, ObjectType.GROUP: self.is_group}
        wanted = [kinds[results_filter]] if results_filter else [*kinds.values()]
        return sorted(name for name in names if any(kind(f"{config_path}/{name}") for kind in wanted))

    def _folder(self, config_path: str) -> Path | None:
        """The folder behind a group; None for what is none, such as a table without rows."""
        kind, *parts = config_path.strip("/").split("/")
        if kind not in ("experiment", "row"):
            return None
        at = Path(self.path, *parts)
        if kind == "row" and len(parts) == 2:
            at /= "rows"
        is_table = (Path(self.path, *parts) / TABLE).is_file() and kind == "experiment"
        return at if at.is_dir() and not is_table else None

    @staticmethod
    @override
    def _normalize_file_name(filename: str) -> str:
        kind, *parts = filename.strip("/").removesuffix(".yaml").split("/")
        if kind == "experiment" and parts:
            return "/".join([*parts, TABLE])
        if kind == "row" and len(parts) == 3:
            return "/".join([*parts[:2], "rows", f"{parts[2]}.yaml"])
        return ".none"
