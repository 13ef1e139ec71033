"""What a comparison knows of one run."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

State = Literal["finished", "failed", "interrupted", "running", "planned"]
COSTS = ("flops", "tokens", "seconds")
PREVIEWS = "previews"


@dataclass(frozen=True)
class Curve:
    """Values of a metric.

    Args:
        steps: of the optimizer, growing.
        values: at these steps.
    """

    steps: np.ndarray
    values: np.ndarray

    @property
    def last(self) -> float:
        """The newest value."""
        return float(self.values[-1])


@dataclass(frozen=True)
class Work:
    """What a training has cost in all; None where it was not recorded.

    Args:
        steps: optimizer steps.
        flops: of the denoiser, forward and backward.
        tokens: of the denoiser.
        seconds: of training.
        image_model_flops: of the training of the image model that it stands on, once for many runs; 0 without one.
    """

    steps: float | None = None
    flops: float | None = None
    tokens: float | None = None
    seconds: float | None = None
    image_model_flops: float = 0.0


@dataclass(frozen=True)
class ComparedRun:
    """One run, or one job that never became a run.

    Args:
        name: what it is called where it stands alone: its job, its folder or its MLflow run.
        state: how it ended.
        message: why it failed, where that is known.
        overrides: its command line, as Hydra keeps it.
        defaults: what it had of settings that its command line does not name.
        folder: of the run; None where it is not on this machine.
        run_id: its MLflow run.
        curves: metrics by name.
        work: what it cost.
        parameters: of its denoiser.
        clip_scores: by metric, then by the clip's key; of the last evaluation.
        captions: by the clip's key.
        videos: by the clip's key, of the last evaluation; or its newest previews.
        data_order, noise: which clips and which noise it saw, as short hashes.
        notes: what of its folder could not be read, for a person.
    """

    name: str
    state: State
    message: str = ""
    overrides: tuple[str, ...] = ()
    defaults: Mapping[str, str] = field(default_factory=dict)
    folder: Path | None = None
    run_id: str | None = None
    curves: Mapping[str, Curve] = field(default_factory=dict)
    work: Work = Work()
    parameters: float | None = None
    clip_scores: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    captions: Mapping[str, str] = field(default_factory=dict)
    videos: Mapping[str, Path] = field(default_factory=dict)
    data_order: str | None = None
    noise: str | None = None
    notes: tuple[str, ...] = ()

    def cost_at(self, kind: str, steps: np.ndarray) -> np.ndarray | None:
        """What the run had cost at some steps: as logged, otherwise the same for every step; None if unknown.

        Args:
            kind: ``flops``, ``tokens`` or ``seconds``.
            steps: (n,).
        """
        logged = self.curves.get(f"cost/{kind}")
        if logged is not None:
            known, values = np.append(0, logged.steps), np.append(0.0, logged.values)
            return np.interp(steps, known, values)
        total, whole = getattr(self.work, kind), self.work.steps
        return np.asarray(steps, dtype=np.float64) * (total / whole) if total is not None and whole else None
