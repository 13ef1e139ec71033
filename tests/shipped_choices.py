"""Hydra reads each of some forty files again for every command: here once, what is shipped, half of composing."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra._internal import defaults_list
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra.plugins.config_source import ConfigResult

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = {"", "hydra.conf", *(str(ROOT / name) for name in ("conf", "experiments"))}  # where Hydra finds choices


def read_once() -> Callable[[], None]:
    """Keep what Hydra reads of shipped choices, until what is returned is called."""
    load, kept = ConfigRepository.load_config, {}
    place, name_choices = ConfigLoaderImpl._embed_result_config, defaults_list._create_interpolation_map

    def load_once(self: ConfigRepository, config_path: str) -> ConfigResult | None:
        places = tuple(source.path for source in self.sources)
        if not SHIPPED.issuperset(places):
            return load(self, config_path)
        if (places, config_path) not in kept:
            kept[places, config_path] = load(self, config_path)
        return copy.copy(kept[places, config_path])

    def place_a_copy(found: ConfigResult, package: str | None) -> ConfigResult:
        placed = place(found, package)
        # what has a package was copied into it; the rest is merged as it is, and the merged one is written to
        return placed if placed is not found else copy.deepcopy(found)

    def name_choices_if_read(overrides: Any, defaults: list[Any], self_added: bool) -> Any:
        """A quarter of composing goes into names that a list of defaults may refer to, which shipped ones do not."""
        referring = any(default.is_interpolation() for default in defaults)
        return name_choices(overrides, defaults, self_added) if referring else None

    def read_anew() -> None:
        ConfigRepository.load_config = load
        ConfigLoaderImpl._embed_result_config = staticmethod(place)
        defaults_list._create_interpolation_map = name_choices

    ConfigRepository.load_config = load_once
    ConfigLoaderImpl._embed_result_config = staticmethod(place_a_copy)
    defaults_list._create_interpolation_map = name_choices_if_read
    return read_anew
