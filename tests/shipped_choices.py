"""Hydra reads each of some forty files again for every command: here once, what is shipped, a fifth of composing."""

import copy
from collections.abc import Callable
from pathlib import Path

from hydra._internal.config_repository import ConfigRepository
from hydra.plugins.config_source import ConfigResult

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = {"", "hydra.conf", *(str(ROOT / name) for name in ("conf", "experiments"))}  # where Hydra finds choices


def read_once() -> Callable[[], None]:
    """Keep what Hydra reads of shipped choices, until what is returned is called."""
    load, kept = ConfigRepository.load_config, {}

    def load_once(self: ConfigRepository, config_path: str) -> ConfigResult | None:
        places = tuple(source.path for source in self.sources)
        if not SHIPPED.issuperset(places):
            return load(self, config_path)
        if (places, config_path) not in kept:
            kept[places, config_path] = load(self, config_path)
        return copy.deepcopy(kept[places, config_path])

    ConfigRepository.load_config = load_once
    return lambda: setattr(ConfigRepository, "load_config", load)
