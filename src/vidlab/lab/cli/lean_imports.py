"""Lazy imports of a few packages, whose parts are imported when asked for; only an entry point installs them."""

import functools
import importlib
import importlib.util
import inspect
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from threading import RLock
from types import ModuleType
from typing import Any

from typing_extensions import override

# What Lightning and vidlab take from torchmetrics, and what its own modules take from their package meanwhile.
PARTS: Mapping[str, Callable[[], Any]] = {
    "Metric": lambda: _from("torchmetrics.metric", "Metric"),
    "MetricCollection": lambda: _from("torchmetrics.collections", "MetricCollection"),
    "__version__": lambda: _from("torchmetrics.__about__", "__version__"),
    "_logger": lambda: logging.getLogger("torchmetrics"),
}
# The same of modules inside packages: torch's compiler, and what draws metrics.
NESTED: Mapping[str, Mapping[str, Callable[[], Any]]] = {
    "torch._dynamo": {
        "OptimizedModule": lambda: class_later("torch._dynamo", "OptimizedModule"),
        "disable": lambda: _disable,
        "graph_break": lambda: _break_no_graph,
    },
    "torchmetrics.utilities.plot": {
        "_AX_TYPE": lambda: class_later("torchmetrics.utilities.plot", "_AX_TYPE"),
        "_PLOT_OUT_TYPE": lambda: tuple,
        "plot_single_or_multi_val": lambda: _plot,
    },
}


def prepare_imports() -> None:
    """Import of torchmetrics and of torch's compiler only what is used.

    Lightning needs the base class of metrics. The package's ``__init__`` imports every metric, and so transformers,
    scipy and more where they are installed: a third of the time from typing ``python train.py`` to the first step
    (benchmarks/first_run.py); its base class imports matplotlib. Lightning asks whether a module is a compiled one, and
    torch's optimizers tell the compiler what to leave alone, for which both import it whole, with sympy: a tenth of
    that time. Nothing is missing afterwards: any other name imports the whole module as ever.
    """
    import_by_part("torchmetrics", PARTS)
    if not any(isinstance(finder, NestedFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, NestedFinder(NESTED))


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
    _divide(module, parts)
    sys.modules[name] = module


def _divide(module: ModuleType, parts: Mapping[str, Callable[[], Any]]) -> None:
    module.__dict__["__parts__"], module.__dict__["__lock__"] = dict(parts), RLock()
    module.__class__ = PackageByPart


class PackageByPart(ModuleType):
    """A package that has not run its ``__init__`` yet; it then becomes an ordinary module."""

    def __getattr__(self, name: str) -> Any:
        parts = self.__dict__.get("__parts__", {})
        if name in parts and not self.__dict__.get("__begun__"):
            return parts[name]()
        if name == "__path__":  # a module that is no package, which every import from it asks for
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        with self.__dict__["__lock__"]:
            if self.__dict__.get("__begun__"):  # by this thread, whose imports ask for what is not there yet
                raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
            self._run()
        return getattr(self, name)

    def __dir__(self) -> list[str]:
        self.run_whole()
        return list(ModuleType.__dir__(self))

    def run_whole(self) -> None:
        """Run its code, unless this thread is about to."""
        with self.__dict__["__lock__"]:
            if not self.__dict__.get("__begun__"):
                self._run()

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


class NestedFinder(MetaPathFinder):
    """Finds modules inside packages as ``import_by_part`` puts packages in place, when they are first imported.

    Args:
        modules: the parts of each module by its full name.
    """

    def __init__(self, modules: Mapping[str, Mapping[str, Callable[[], Any]]]) -> None:
        self.modules = modules

    @override
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname in self.modules:
            spec = PathFinder.find_spec(fullname, path)
            if spec is not None and spec.loader is not None:
                spec.loader = _ByPart(spec.loader, self.modules[fullname])
            return spec
        package = sys.modules.get(fullname.rpartition(".")[0])
        if not isinstance(package, PackageByPart) or package.__name__ not in self.modules:
            return None
        package.run_whole()  # its modules expect that it has, and it may import this one
        found = sys.modules.get(fullname)
        if found is None:
            return None
        # importlib takes the spec of a module that has come meanwhile, and would run its code again
        found.__spec__ = ModuleSpec(fullname, _Imported(found))
        return found.__spec__


class _ByPart(Loader):
    """Leaves the code of a module to its first use."""

    def __init__(self, loader: Loader, parts: Mapping[str, Callable[[], Any]]) -> None:
        self.loader, self.parts = loader, parts

    @override
    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__loader__ = module.__spec__.loader = self.loader
        _divide(module, self.parts)


class _Imported(Loader):
    """Gives a module that was imported between the search for it and its import."""

    def __init__(self, module: ModuleType) -> None:
        self.module, self.spec = module, module.__spec__

    @override
    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self.module

    @override
    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.spec


def class_later(module: str, name: str) -> type:
    """A class for questions whether something is an instance of that of a ``PackageByPart``, which has none before."""

    class Later(type):
        def __instancecheck__(cls, instance: object) -> bool:
            found = sys.modules.get(module)
            return found is not None and type(found) is ModuleType and isinstance(instance, getattr(found, name))

    return Later(name, (), {})


def _disable(fn: Any = None, recursive: bool = True, **settings: Any) -> Any:
    """As ``torch._dynamo.disable``: a function that the compiler leaves alone, which has to be there to do that."""
    if not inspect.isroutine(fn):
        return _whole("torch._dynamo").disable(fn, recursive, **settings)
    disabled: Callable[..., Any] | None = None

    @functools.wraps(fn)
    def run(*args: Any, **kwargs: Any) -> Any:
        nonlocal disabled
        if isinstance(sys.modules["torch._dynamo"], PackageByPart):
            return fn(*args, **kwargs)
        disabled = disabled or _whole("torch._dynamo").disable(fn, recursive, **settings)
        return disabled(*args, **kwargs)

    return run


def _break_no_graph(*_: Any, **__: Any) -> None:
    """Where nothing is compiled there is no graph to break."""


def _plot(*args: Any, **kwargs: Any) -> Any:
    return _whole("torchmetrics.utilities.plot").plot_single_or_multi_val(*args, **kwargs)


def _whole(name: str) -> Any:
    module = importlib.import_module(name)
    if isinstance(module, PackageByPart):
        module.run_whole()
    return module
