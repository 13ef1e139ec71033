"""Clips of colored shapes, rendered procedurally, whose every factor is known."""

from vidlab.data.moving_shapes.source import MovingShapes, RenderedClip

__all__ = ["MovingShapes", "RenderedClip"]
