"""Views of objects as clips: the given view first, then six fixed ones; rendered here, or read from renders."""

from vidlab.data.multiview.objaverse import ObjaverseViews
from vidlab.data.multiview.source import MultiviewSolids

__all__ = ["MultiviewSolids", "ObjaverseViews"]
