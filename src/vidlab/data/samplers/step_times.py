"""Measured times of training steps by bucket, from which batches get sizes that take equally long."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vidlab.data.samplers.assignment import Bucket
from vidlab.errors import UserError
from vidlab.files import write_json

KEY = "data.bucketing.step_times"
LARGEST = 2**22
MEASURE = "python -m vidlab step_times"


@dataclass(frozen=True)
class StepTime:
    """Seconds of a training step on clips of one bucket: ``fixed + per_clip * clips``.

    Args:
        fixed: of a step, however many clips it has; not negative.
        per_clip: of each clip; positive.
    """

    fixed: float
    per_clip: float

    @classmethod
    def through(cls, fewer: tuple[int, float], more: tuple[int, float]) -> "StepTime":
        """The line through two measurements, each (clips, seconds), or from the origin where they give none."""
        (few, short), (many, long) = fewer, more
        slope = (long - short) / (many - few) if many > few else 0.0
        if slope <= 0 or (fixed := long - slope * many) < 0:
            return cls(0.0, long / many)
        return cls(fixed, slope)

    def seconds(self, clips: int) -> float:
        """Of a step of so many clips."""
        return self.fixed + self.per_clip * clips

    def clips(self, seconds: float) -> int:
        """As many as a step may have to take at most so long; at least 1."""
        return max(1, math.floor((seconds - self.fixed) / self.per_clip * (1 + 1e-9)))


@dataclass(frozen=True)
class StepTimes:
    """The table of a model on a machine.

    Args:
        buckets: by the name of the bucket, such as ``8x32x32``.
    """

    buckets: Mapping[str, StepTime]

    def of(self, bucket: Bucket) -> StepTime:
        """The times of a bucket.

        Raises:
            UserError: it was not measured.
        """
        if str(bucket) not in self.buckets:
            raise UserError(
                f"{KEY}: bucket {bucket} (frames x height x width) is not in the table, which has {len(self.buckets)}. "
                f"Measure again with these settings: {MEASURE}"
            )
        return self.buckets[str(bucket)]

    def batch_sizes(self, buckets: Sequence[Bucket], slowest: Bucket, clips: int) -> list[int]:
        """Clips of a batch of each bucket, so that none takes longer than ``clips`` of the bucket ``slowest``."""
        limit = self.of(slowest).seconds(clips)
        return [clips if bucket == slowest else self.of(bucket).clips(limit) for bucket in buckets]


def write_step_times(path: Path, times: StepTimes, about: Mapping[str, Any]) -> None:
    """Write a table; ``about`` says what was measured, for people."""
    write_json(path, {"about": dict(about), "buckets": {name: asdict(one) for name, one in times.buckets.items()}})


def read_step_times(path: Path) -> StepTimes:
    """Read a table.

    Raises:
        UserError: there is none, or it is damaged.
    """
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError(f"it is larger than {LARGEST} bytes")
        content = json.loads(path.read_text("utf-8"))["buckets"]
        found = {str(name): StepTime(float(one["fixed"]), float(one["per_clip"])) for name, one in content.items()}
        for name, one in found.items():
            if not (0 <= one.fixed < math.inf and 0 < one.per_clip < math.inf):
                raise ValueError(f"bucket {name}: {one} are no seconds")
    except OSError as error:
        raise UserError(
            f"{KEY}={path}: it cannot be read ({error.strerror}). Measure it once: {MEASURE} SETTINGS of train.py"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{KEY}={path}: this is no table of step times ({type(error).__name__}: {error}).") from None
    return StepTimes(found)
