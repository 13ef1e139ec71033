"""What clips must be before they are scored; every message says what was found and what to do."""

from collections.abc import Sequence

from jaxtyping import Shaped
from torch import Tensor

from vidlab.errors import DataError

_SLACK = 1e-3  # float16 and bfloat16 decoders end a little outside
# So many clips without one dark pixel are rather in [0, 1] than bright.
SUSPICIOUS_CLIPS = 8


def check_videos(videos: Shaped[Tensor, "..."], role: str, frames: int, names: Sequence[str] = ()) -> None:
    """Refuse what is no batch of clips (B, 3, T, H, W) of finite numbers in [-1, 1].

    Args:
        videos: what was given.
        role: what to call it in messages, such as ``reference``.
        frames: the least number of frames.
        names: the clips' names, for messages; numbers otherwise.

    Raises:
        DataError: naming the first clip at fault.
    """
    if videos.ndim != 5 or videos.shape[1] != 3:
        raise DataError(f"{role}: clips must be (B, 3, T, H, W), these are {tuple(videos.shape)}.")
    if not videos.is_floating_point():
        raise DataError(
            f"{role}: clips must be floats in [-1, 1], these are {videos.dtype}; map 0-255 by x / 127.5 - 1."
        )
    if len(videos) == 0:
        raise DataError(f"{role}: the batch is empty.")
    if videos.shape[2] < frames:
        raise DataError(f"{role}: clips have {videos.shape[2]} frame(s), this metric needs at least {frames}.")
    per_frame = videos.detach().transpose(1, 2).flatten(2)
    bad = ~per_frame.isfinite().all(2)
    if bad.any():
        clip, frame = bad.nonzero()[0].tolist()
        raise DataError(f"{role}: {_name(names, clip)} has NaN or infinite pixels in frame {frame}; leave it out.")
    low, high = per_frame.amin((1, 2)), per_frame.amax((1, 2))
    outside = (low < -1 - _SLACK) | (high > 1 + _SLACK)
    if outside.any():
        clip = int(outside.nonzero()[0])
        told = f"{_name(names, clip)} has pixels from {low[clip]:.3g} to {high[clip]:.3g}, expected [-1, 1]"
        raise DataError(f"{role}: {told}; map 0-255 by x / 127.5 - 1.")


def check_pairs(videos: Tensor, reference: Tensor) -> None:
    """Refuse a reference that is not one clip of the same size for each clip.

    Raises:
        DataError: naming both shapes.
    """
    if videos.shape != reference.shape:
        raise DataError(
            f"this metric compares each clip with its own reference, but the clips are {tuple(videos.shape)} and the "
            f"references {tuple(reference.shape)}."
        )


def check_darkness(lowest: float, clips: int, role: str) -> None:
    """Refuse a set of clips that never goes below 0: it lies in [0, 1] rather than in [-1, 1].

    Raises:
        DataError: from ``SUSPICIOUS_CLIPS`` clips on, so that a few bright clips can be scored.
    """
    if clips >= SUSPICIOUS_CLIPS and lowest >= 0:
        raise DataError(
            f"{role}: {clips} clips without one pixel below 0. They seem to be in [0, 1]; map them by 2 x - 1."
        )


def _name(names: Sequence[str], clip: int) -> str:
    return f"clip {names[clip]}" if names else f"clip {clip} of the batch"
