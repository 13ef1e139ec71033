"""A package whose parts are imported when they are asked for; only an entry point installs it, for one package."""

import importlib
import importlib.util
import logging
import sys
from collections.abc import Callable, Mapping
from threading import RLock
from types import ModuleType
from typing import Any

# What Lightning and vidlab take from torchmetrics, and what its own modules take from their package meanwhile.
PARTS: Mapping[str, Callable[[], Any]] = {
    "Metric": lambda: _from("torchmetrics.metric", "Metric"),
    "MetricCollection": lambda: _from("torchmetrics.collections", "MetricCollection"),
    "__version__": lambda: _from("torchmetrics.__about__", "__version__"),
    "_logger": lambda: logging.getLogger("torchmetrics"),
}


def prepare_imports() -> None:
    """Import of torchmetrics only what is used.

    Lightning needs its base class. The package's ``__init__`` imports every metric, and so transformers, scipy and more
    where they are installed: a third of the time from typing ``python train.py`` to the first step
    (benchmarks/first_run.py). Nothing is missing afterwards: any other name imports the whole package as ever.
    """
    import_by_part("torchmetrics", PARTS)


def import_by_part(name: str, parts: Mapping[str, Callable[[], Any]]) -> None:
    """Put a package in place whose ``__init__`` runs at the first use of a name that is not in ``parts``.

    Does nothing for a package that is absent or imported already.

    Args:
        name: of a top-level package.
        parts: what a name of the package is, without its ``__init__``.
    """
    spec = None if name in sys.modules else importlib.util.find_spec(name)
    if spec is None or spec.loader is None:
        return
    module = importlib.util.module_from_spec(spec)
    module.__dict__["__parts__"], module.__dict__["__lock__"] = dict(parts), RLock()
    module.__class__ = PackageByPart
    sys.modules[name] = module


class PackageByPart(ModuleType):
    """A package that has not run its ``__init__`` yet; it then becomes an ordinary module."""

    def __getattr__(self, name: str) -> Any:
        parts = self.__dict__.get("__parts__", {})
        if name in parts:
            return parts[name]()
        with self.__dict__["__lock__"]:
            if self.__dict__.get("__begun__"):  # by this thread, whose imports ask for what is not there yet
                raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
            self._run()
        return getattr(self, name)

    def __dir__(self) -> list[str]:
        with self.__dict__["__lock__"]:
            if not self.__dict__.get("__begun__"):
                self._run()
        return list(ModuleType.__dir__(self))

    def _run(self) -> None:
        if type(self) is ModuleType:  # another thread has
            return
        self.__dict__["__begun__"] = True
        try:
            assert self.__spec__ is not None and self.__spec__.loader is not None
            self.__spec__.loader.exec_module(self)
        finally:
            del self.__dict__["__begun__"]
        self.__class__ = ModuleType  # type: ignore[assignment]


def _from(module: str, name: str) -> Any:
    importlib.import_module("torchmetrics.utilities")  # first: it and torchmetrics.metric import each other
    return getattr(importlib.import_module(module), name)
