"""The scores as text, with differences and their intervals."""

from collections.abc import Sequence

from vidlab.lab.evaluation.against_truth.scores import PER_CLIP, Scores
from vidlab.metrics.intervals import Interval

DIGITS = {"squared_error": 5, "psnr": 2, "ssim": 4, "lpips": 4, "fvd": 1}
SAID = {
    "squared_error": "squared error, pixels in [-1, 1]",
    "psnr": "PSNR in dB, higher is better",
    "ssim": "SSIM, higher is better",
    "lpips": "LPIPS (AlexNet, at 64 x 64)",
    "fvd": "FVD of whole clips, their given frames too",
}


def table_of(scores: Scores, subject: str, others: Sequence[str], clips: int) -> str:
    """For each metric the score of each way, and how far the subject's lies from the others', with 95 % intervals.

    Args:
        scores: of all of them.
        subject: a way that is compared with each of ``others``.
        others: the other ways, in the order of the table.
        clips: how many were scored.
    """
    frames = scores.counted.nonzero().flatten().tolist()
    lines = [f"{clips} held-out clips, frames {', '.join(map(str, frames))}"]
    width = max(map(len, (subject, *others)))
    for metric in scores.metrics:
        lines.append(SAID[metric])
        for how in (subject, *others):
            lines.append(f"  {how:<{width}}  {_value(scores, metric, how)}{_gain(scores, metric, subject, how)}")
    return "\n".join(lines)


def _value(scores: Scores, metric: str, how: str) -> str:
    value = scores.mean(metric, how).value if metric in PER_CLIP else scores.fvd(how)[0]
    return f"{value:.{DIGITS[metric]}f}"


def _gain(scores: Scores, metric: str, subject: str, other: str) -> str:
    if other == subject:
        return ""
    if metric in PER_CLIP:
        found = scores.gain(metric, subject, other)
        value, interval = found.value, found.interval
    else:
        value, interval = scores.fvd_gain(subject, other)
    digits = DIGITS[metric]
    return f"   {subject}'s minus this {value:+.{digits}f} {_told(interval, digits)}"


def _told(interval: Interval | None, digits: int) -> str:
    return "(too few clips)" if interval is None else f"[{interval.low:+.{digits}f}, {interval.high:+.{digits}f}], 95 %"
