"""Plots as SVG that takes its colors from the page, so that it is readable on light and on dark paper.

Names of configurations are not drawn: the page has one legend for all plots, whose colors and dashes they share.
"""

import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from vidlab.lab.compare.comparison import Comparison, ConfigurationRow
from vidlab.lab.compare.measures import Measure
from vidlab.lab.compare.reading.runs import COSTS
from vidlab.lab.compare.scaling import SIZES, SizeFit, size_fits
from vidlab.metrics.statistics.profiles import performance_profile

AXES = {"steps": "steps", "flops": "FLOPs", "tokens": "tokens", "seconds": "seconds of training"}
# Okabe and Ito's eight colors without black, told apart with every kind of color blindness; then again, dashed.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#b3a500")
DASHES = ("-", "--", ":", "-.")
INK, FAINT = "#123456", "#654321"  # stand for what the page calls --ink and --faint
POINTS = 200  # of a curve
MOST_CURVES = 8  # metrics
SIZE = (4.6, 3.0)


@dataclass(frozen=True)
class Plot:
    """A picture for the page.

    Args:
        section: ``curves``, ``pareto``, ``profiles`` or ``scaling``.
        title: above it.
        axis: which choice of the page's selector shows it.
        svg: the picture, an ``svg`` element.
    """

    section: str
    title: str
    axis: str
    svg: str


def style_of(place: int) -> tuple[str, str]:
    """The color and the dash of a configuration by its place."""
    return COLORS[place % len(COLORS)], DASHES[place // len(COLORS) % len(DASHES)]


def all_plots(comparison: Comparison) -> list[Plot]:
    """Every plot for which there is data."""
    whole = [one for one in (*comparison.main, *comparison.others) if "/" not in one.label.removeprefix("val/")]
    measures = [one for one in whole if _has_curves(comparison.rows, one)]
    found = [
        plot
        for measure in measures[:MOST_CURVES]
        for axis in AXES
        if (plot := curves(comparison.rows, measure, axis)) is not None
    ]
    for measure in comparison.main:
        for axis in (*COSTS, "parameters"):
            found += [pareto(comparison.rows, measure, axis)] if _has_costs(comparison.rows, measure, axis) else []
        found += [plot] if (plot := profiles(comparison.rows, measure)) else []
        found += scaling(comparison.rows, measure)
    return [Plot(p.section, p.title, p.axis, _own_ids(p.svg, number)) for number, p in enumerate(found)]


def curves(rows: Sequence[ConfigurationRow], measure: Measure, axis: str) -> Plot | None:
    """A metric against steps or a cost: a thin line per run, a thick one for the mean of the seeds."""
    drawn = 0
    with _figure(AXES[axis], measure.label) as (axes, figure):
        for place, row in enumerate(rows):
            lines = [line for run in row.runs.values() if (line := _line(run, measure.key, axis)) is not None]
            color, dash = style_of(place)
            for x, y in lines:
                drawn += 1
                alone = len(lines) == 1
                axes.plot(x, y, dash, color=color, lw=1.8 if alone else 0.7, alpha=1 if alone else 0.5)
                axes.plot(x[-1:], y[-1:], "o", color=color, ms=3)
            if len(lines) > 1:
                axes.plot(*_mean(lines), dash, color=color, lw=2)
        if measure.key.startswith("val/loss"):
            axes.set_yscale("log")
    return Plot("curves", measure.label, axis, figure.svg) if drawn else None


def _has_curves(rows: Sequence[ConfigurationRow], measure: Measure) -> bool:
    """Whether some run was measured more than once."""
    return any(len(run.curves[measure.key].steps) > 1 for row in rows for run in row.runs.values()
               if measure.key in run.curves)  # fmt: skip


def _line(run: Any, key: str, axis: str) -> tuple[np.ndarray, np.ndarray] | None:
    curve = run.curves.get(key)
    if curve is None:
        return None
    x = curve.steps.astype(np.float64) if axis == "steps" else run.cost_at(axis, curve.steps)
    if x is None:
        return None
    kept = np.unique(np.linspace(0, len(x) - 1, min(len(x), POINTS)).round().astype(int))
    return x[kept], curve.values[kept]


def _mean(lines: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """The mean of curves where all of them have values."""
    low, high = max(x[0] for x, _ in lines), min(x[-1] for x, _ in lines)
    inside = [value for x, _ in lines for value in x if low <= value <= high]
    grid = np.unique(np.array(inside, dtype=np.float64))
    return grid, np.mean([np.interp(grid, x, y) for x, y in lines], axis=0) if len(grid) else grid


def _cost(row: ConfigurationRow, axis: str) -> float | None:
    return row.parameters if axis == "parameters" else row.costs.get(axis)


def _has_costs(rows: Sequence[ConfigurationRow], measure: Measure, axis: str) -> bool:
    return len([row for row in rows if _cost(row, axis) and row.is_finite(measure.key)]) > 1


def pareto(rows: Sequence[ConfigurationRow], measure: Measure, axis: str) -> Plot:
    """Quality against cost, a point per configuration with its interval over seeds, and the front of the best."""
    points = []
    with _figure(AXES.get(axis, axis), f"{measure.label} ({measure.direction})") as (axes, figure):
        for place, row in enumerate(rows):
            cost, mean = _cost(row, axis), row.means.get(measure.key)
            if cost and mean and math.isfinite(mean.value):
                color, _ = style_of(place)
                if mean.interval:
                    axes.plot([cost] * 2, [mean.interval.low, mean.interval.high], color=color, lw=1.2, alpha=0.6)
                axes.plot(cost, mean.value, "o", color=color, ms=6)
                points.append((cost, mean.value))
        if measure.higher_is_better is not None:
            front = pareto_front(points, measure.higher_is_better)
            axes.step(*zip(*front, strict=True), where="post", color=FAINT, lw=1, ls="--", zorder=0)
        _wide(axes, [cost for cost, _ in points])
    return Plot("pareto", measure.label, axis, figure.svg)


def pareto_front(points: Sequence[tuple[float, float]], higher_is_better: bool) -> list[tuple[float, float]]:
    """The points that no cheaper point beats, by growing cost; what is not finite beats none."""
    front: list[tuple[float, float]] = []
    known = [point for point in points if math.isfinite(point[1])]
    for cost, value in sorted(known, key=lambda point: (point[0], -point[1] if higher_is_better else point[1])):
        if not front or (value > front[-1][1] if higher_is_better else value < front[-1][1]):
            front.append((cost, value))
    return front


def profiles(rows: Sequence[ConfigurationRow], measure: Measure) -> Plot | None:
    """The share of clips (otherwise of runs, from 3 seeds on) that are better than each threshold."""
    scores = {place: row.clip_means.get(measure.key, ()) for place, row in enumerate(rows)}
    unit, rising = "clips", measure.higher_is_better is not False
    if not any(scores.values()):
        unit = "runs"
        scores = {place: tuple(row.values(measure.key).values()) for place, row in enumerate(rows)}
        if min(map(len, scores.values())) < 3:
            return None
    values = np.concatenate([np.array(one) for one in scores.values() if one])
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    worst = -math.inf if rising else math.inf  # stands for what is no number: it is better than no threshold
    thresholds = np.linspace(values.min(), values.max(), 60)
    with _figure(measure.label, f"share of {unit} {'above' if rising else 'below'}") as (axes, figure):
        for place, one in scores.items():
            if one:
                known, (color, dash) = [worst if math.isnan(value) else value for value in one], style_of(place)
                found = performance_profile(known, thresholds.tolist())
                low, above, high = ([one if rising else 1 - one for one in part]
                                    for part in (found.low, found.above, found.high))  # fmt: skip
                axes.fill_between(found.thresholds, low, high, color=color, alpha=0.12, lw=0)
                axes.plot(found.thresholds, above, dash, color=color, lw=1.8)
        axes.set_ylim(-0.02, 1.02)
    return Plot("profiles", measure.label, "", figure.svg)


def scaling(rows: Sequence[ConfigurationRow], measure: Measure) -> list[Plot]:
    """A metric against FLOPs or size, both logarithmic, with a fitted line and its band for each family of sizes."""
    fits = size_fits(rows, measure)
    return [
        _scaling(rows, measure, axis, found) for axis in SIZES if (found := [one for one in fits if one.axis == axis])
    ]


def _scaling(rows: Sequence[ConfigurationRow], measure: Measure, axis: str, fits: Sequence[SizeFit]) -> Plot:
    places = {row.name: place for place, row in enumerate(rows)}
    with _figure(SIZES[axis], measure.label) as (axes, figure):
        for fit in fits:
            law, (color, _) = fit.law, style_of(places[fit.first.name])
            x = np.geomspace(min(c for c, _ in law.points), max(c for c, _ in law.points), 60)
            band = law.band(x)
            if band:
                axes.fill_between(x, *band, color=color, alpha=0.12, lw=0)
            axes.plot(x, law.at(x), color=color, lw=1.6)
            axes.plot(*zip(*law.points, strict=True), "o", color=color, ms=4)
        axes.set_xscale("log")
        axes.set_yscale("log")
    return Plot("scaling", measure.label, axis, figure.svg)


def _wide(axes: Any, values: Sequence[float]) -> None:
    """A logarithmic axis where costs differ by more than a factor of three."""
    if values and max(values) > 3 * min(values):
        axes.set_xscale("log")


@dataclass
class _Drawn:
    svg: str = ""


@contextmanager
def _figure(x_label: str, y_label: str) -> Iterator[tuple[Any, _Drawn]]:
    """Axes to draw on; the picture is there when the block has ended."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    quiet: Any = {
        "svg.fonttype": "none", "svg.hashsalt": "vidlab", "font.size": 9, "text.color": INK, "axes.labelcolor": INK,
        "xtick.color": FAINT, "ytick.color": FAINT, "axes.edgecolor": FAINT, "axes.spines.top": False,
        "axes.spines.right": False, "text.parse_math": False, "axes.formatter.limits": (-3, 4),
        "axes.formatter.use_mathtext": False, "xtick.labelcolor": INK, "ytick.labelcolor": INK,
    }  # fmt: skip
    drawn = _Drawn()
    with mpl.rc_context(quiet):
        figure = Figure(figsize=SIZE, layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.grid(color=FAINT, alpha=0.18, lw=0.6)
        yield axes, drawn
        _plain_logarithms(axes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        drawn.svg = _for_pages(buffer.getvalue())


def _plain_logarithms(axes: Any) -> None:
    """Powers of ten without mathematical markup, which is drawn as glyphs."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    for axis in (axes.xaxis, axes.yaxis):
        if axis.get_scale() == "log":
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
            low, high = sorted(axis.get_view_interval())
            # side by side, labels need more room than between 6 and 10; one above another they have it
            largest = 9 if axis is axes.yaxis or high < 2 * low else 5
            short = FuncFormatter(partial(_minor_label, largest)) if high < 12 * low else NullFormatter()
            axis.set_minor_formatter(short)


def _minor_label(largest: int, value: float, _: object) -> str:
    """A tick between powers of ten, named where its digit is at most ``largest``."""
    digit = round(value / 10 ** math.floor(math.log10(value) + 1e-9))
    return f"{value:.2g}" if digit <= largest else ""


def _for_pages(svg: str) -> str:
    """Only the element, its size left to the page, and its colors the page's."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r' (?:width|height)="[\d.]+pt"', "", body, count=2)
    body = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font: \1 system-ui, sans-serif", body)
    return body.replace(INK, "var(--ink, #222)").replace(FAINT, "var(--faint, #777)").strip()


def _own_ids(svg: str, number: int) -> str:
    """Ids that no other picture of the page has."""
    svg = re.sub(r'\bid="', f'id="p{number}-', svg)
    return re.sub(r'(url\(|href=")#', rf"\1#p{number}-", svg)
