"""vidlab: a laboratory for text- and image-conditioned video diffusion."""

import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vidlab.lab.cli.composed import compose as compose
    from vidlab.lab.loading import load as load
    from vidlab.pipelines.video_pipeline import VideoPipeline as VideoPipeline

__version__ = "0.1.0"
__all__ = ["VideoPipeline", "__version__", "compose", "load"]

# What is imported when it is asked for: importing vidlab costs nothing.
PUBLIC = {
    "compose": "vidlab.lab.cli.composed",
    "load": "vidlab.lab.loading",
    "VideoPipeline": "vidlab.pipelines.video_pipeline",
}


def __getattr__(name: str) -> Any:
    if name not in PUBLIC:
        raise AttributeError(f"module 'vidlab' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(PUBLIC[name]), name)


class MovedModules(MetaPathFinder, Loader):
    """Imports of modules by the names of earlier versions, with a warning; asked only for what is not found."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """For a module of vidlab that has moved."""
        if not fullname.startswith("vidlab."):
            return None
        from vidlab.lab.earlier_names import MODULES

        moved = MODULES.get(fullname.removeprefix("vidlab."))
        return None if moved is None else ModuleSpec(fullname, self, origin=f"vidlab.{moved}")

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """The module where it is now."""
        import importlib
        import warnings

        warnings.warn(f"{spec.name} is {spec.origin} now", DeprecationWarning, stacklevel=2)
        assert spec.origin is not None
        module = importlib.import_module(spec.origin)
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """It has run; the import has put its own specification in place of the module's."""
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state


sys.meta_path.append(MovedModules())
