"""vidlab: a laboratory for text- and image-conditioned video diffusion."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vidlab.lab.loading import load as load
    from vidlab.pipelines.video_pipeline import VideoPipeline as VideoPipeline

__version__ = "0.1.0"
__all__ = ["VideoPipeline", "__version__", "load"]

# What is imported when it is asked for: importing vidlab costs nothing.
PUBLIC = {"load": "vidlab.lab.loading", "VideoPipeline": "vidlab.pipelines.video_pipeline"}


def __getattr__(name: str) -> Any:
    if name not in PUBLIC:
        raise AttributeError(f"module 'vidlab' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(PUBLIC[name]), name)
