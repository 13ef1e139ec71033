"""The page as one HTML file: nothing is fetched, and no text of a run is read as HTML or as a script."""

import base64
import hashlib
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

from vidlab.files import write_text
from vidlab.lab.compare.comparison import Comparison, ConfigurationRow
from vidlab.lab.compare.documents import EXPLAINED, HEAD, REST, numbers
from vidlab.lab.compare.measures import Measure
from vidlab.lab.compare.media import FPS, Gallery
from vidlab.lab.compare.page.plots import AXES, Plot, style_of
from vidlab.lab.compare.robust import ROBUST_EXPLAINED, ROBUST_HEAD, Robust, robust_cells, robust_rows
from vidlab.lab.compare.words import headline, ranking, sentences, warnings

HERE = Path(__file__).parent
WIDE = 124  # of the drawn intervals, in pixels
TITLES = {
    "pareto": ("Quality against cost", "The dashed line joins the configurations that no cheaper one beats. Bars are "
               "intervals over seeds."),
    "profiles": ("Performance profiles", "The share that is better than each value, with a 95 % band at each value on "
                 "its own. A curve that lies above another everywhere is better at every threshold."),
    "scaling": ("Loss against size", "Every point is a run; lines are power laws fitted to them, with the 95 % band of "
                "the line."),
}  # fmt: skip


def write_page(path: Path, comparison: Comparison, plots: Sequence[Plot], gallery: Gallery, sheet: Path | None) -> Path:
    """Write the page.

    Args:
        path: of the file.
        comparison: what it says.
        plots: by section.
        gallery: the videos.
        sheet: the contact sheet, where there is one.
    """
    script = (HERE / "behavior.js").read_text("utf-8")
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data:; script-src 'sha256-{allowed}'"
    )
    title = escape(comparison.selection.title)
    body = [
        _front(comparison), *(_table(comparison, one) for one in comparison.main), _explained(comparison),
        _videos(comparison.rows, gallery), _sheet(sheet), _legend(comparison.rows) if plots else "", _curves(plots),
        *(_section(plots, name, comparison) for name in TITLES), _others(comparison),
    ]  # fmt: skip
    return write_text(
        path,
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{title}: comparison</title>\n'
        f"<style>\n{(HERE / 'style.css').read_text('utf-8')}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in body if part)
        + f"\n</main>\n<script>{script}</script>\n</body>\n</html>\n",
    )


def _front(comparison: Comparison) -> str:
    count = sum(len(row.runs) for row in comparison.rows)
    told = f"{count} finished runs in {len(comparison.rows)} configurations"
    command = f"<p><code>{escape(comparison.command)}</code></p>" if comparison.command else ""
    return (
        f"<header><h1>{escape(comparison.selection.title)} · {told}</h1>"
        f'<p class="verdict">{escape(headline(comparison))}</p>{command}'
        f'<div class="cols"><div>{_list(sentences(comparison)[:12])}</div>'
        f'<div class="warn">{_list(warnings(comparison))}</div></div></header>'
    )


def _list(lines: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>" if lines else ""


def _chip(place: int) -> str:
    """A configuration's color and dash, as its curves have them."""
    color, dash = style_of(place)
    pattern = {
        "-": "",
        "--": ' stroke-dasharray="6 3"',
        ":": ' stroke-dasharray="2 2"',
        "-.": ' stroke-dasharray="7 2 2 2"',
    }
    line = f'<line x1="0" y1="4" x2="22" y2="4" stroke="{color}" stroke-width="4"{pattern[dash]}/>'
    return f'<svg class="chip" viewBox="0 0 22 8" aria-hidden="true">{line}</svg>'


def _legend(rows: Sequence[ConfigurationRow]) -> str:
    names = "".join(f"<span>{_chip(place)}{escape(row.name)}</span>" for place, row in enumerate(rows))
    return f'<h2>Plots</h2><div class="legend">{names}</div>'


def _table(comparison: Comparison, measure: Measure) -> str:
    """Best first; the configuration that others are tested against says so."""
    places = {row.name: place for place, row in enumerate(comparison.rows)}
    reach = _reach(comparison.rows, measure)
    head = "".join(f"<th>{name}</th>" for name in (*HEAD[:3], "interval", *HEAD[3:]))
    lines = []
    ranked = ranking(comparison, measure)
    for row in [*ranked, *(row for row in comparison.rows if row not in ranked)]:
        place, (seeds, mean, *rest) = places[row.name], numbers(comparison, row, measure)
        verdict = comparison.verdicts.get((measure.key, row.name))
        outcome = f"{verdict.outcome} " if verdict else ""
        base = ' <span class="note">(compared with)</span>' if place == 0 and len(comparison.rows) > 1 else ""
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in rest)
        kind = outcome.strip() if outcome.strip() in ("better", "worse") else ""
        lines.append(
            f'<tr><td>{_chip(place)}{escape(row.name)}{base}</td><td>{seeds}</td><td class="mean {kind}">{mean}</td>'
            f"<td>{_whisker(row, measure, reach, place)}</td>{cells}</tr>"
        )
    series = f'<p class="note">{escape(measure.series)}</p>' if measure.series else ""
    return (
        f'<h2>{escape(measure.label)} <span class="note">{measure.direction}</span></h2>{series}'
        f'<div class="card scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'
    )


def _reach(rows: Sequence[ConfigurationRow], measure: Measure) -> tuple[float, float]:
    """What the drawn intervals span: values of single runs, and intervals over clips."""
    values = [value for row in rows for value in row.values(measure.key).values()]
    values += [end for row in rows if (one := row.over_clips.get(measure.key)) for end in (one.low, one.high)]
    values = [value for value in values if math.isfinite(value)] or [0.0]
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def _whisker(row: ConfigurationRow, measure: Measure, reach: tuple[float, float], place: int) -> str:
    """The mean as a point, its interval over seeds as a line cut at the edges, and each run as a tick."""
    mean = row.means.get(measure.key)
    if mean is None or not math.isfinite(mean.value):
        return ""
    low, high = reach

    def x(value: float) -> float:
        return min(max((value - low) / (high - low), -0.04), 1.04) * (WIDE - 16) + 8

    color, _ = style_of(place)
    line = ""
    if mean.interval:
        ends = f'x1="{x(mean.interval.low):.1f}" x2="{x(mean.interval.high):.1f}"'
        line = f'<line {ends} y1="9" y2="9" stroke="{color}" stroke-width="2" opacity=".5"/>'
    ticks = "".join(
        f'<line x1="{x(value):.1f}" x2="{x(value):.1f}" y1="5" y2="13" stroke="{color}" stroke-width="1.5"/>'
        for value in row.values(measure.key).values()
    )
    dot = f'<circle cx="{x(mean.value):.1f}" cy="9" r="4" fill="{color}"/>'
    return f'<svg class="whisker" viewBox="0 0 {WIDE} 18" aria-hidden="true">{line}{ticks}{dot}</svg>'


def _explained(comparison: Comparison) -> str:
    return f'<p class="note">{escape(EXPLAINED.replace("*", ""))}</p>' if comparison.main else ""


def _videos(rows: Sequence[ConfigurationRow], gallery: Gallery) -> str:
    """All configurations side by side, prompt by prompt; without scripts all prompts stand below each other."""
    if not gallery.clips:
        return '<h2>Videos</h2><p class="note">No run has left videos of its evaluation or previews.</p>'
    choices = "".join(f'<option value="{n}">{escape(text)}</option>' for n, text in enumerate(gallery.prompts))
    select = f'<select aria-label="prompt">{choices}</select>' if len(gallery.prompts) > 1 else ""
    player = (
        f'<div class="player" id="player" data-fps="{FPS:g}" hidden><button type="button">Play all</button>{select}'
        '<input type="range" min="0" max="1000" value="0" aria-label="time"><span class="clock"></span></div>'
    )
    panels = []
    for prompt, text in enumerate(gallery.prompts):
        clips = gallery.of(prompt)
        cells = []
        for place, row in enumerate(rows):
            seed = "" if gallery.seeds[place] is None else f' <span class="note">seed {gallery.seeds[place]}</span>'
            name = f"<figcaption>{_chip(place)}{escape(row.name)}{seed}</figcaption>"
            if place in clips:
                video = f'<video src="{clips[place].data_uri}" muted loop playsinline controls preload="auto"></video>'
                cells.append(f"<figure>{video}{name}</figure>")
            else:
                cells.append(f'<figure class="missing"><div>no video</div>{name}</figure>')
        panels.append(
            f'<div data-prompt="{prompt}"><h3>{escape(text)}</h3><div class="videos">{"".join(cells)}</div></div>'
        )
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in gallery.notes)
    return f"<h2>Videos</h2>{player}{''.join(panels)}{notes}"


def _sheet(sheet: Path | None) -> str:
    if sheet is None:
        return ""
    data = base64.b64encode(sheet.read_bytes()).decode()
    note = "One row per configuration, the same prompts and noise in each column: first, middle and last frame."
    return (
        f'<details><summary>Contact sheet</summary><p class="note">{note}</p>'
        f'<img class="sheet" alt="frames of every configuration" src="data:image/png;base64,{data}"></details>'
    )


def _figures(plots: Sequence[Plot]) -> str:
    return "".join(
        f'<figure class="card" data-axis="{plot.axis}"><h3>{escape(plot.title)}</h3>{plot.svg}</figure>'
        for plot in plots
    )


def _curves(plots: Sequence[Plot]) -> str:
    """Against steps, or what the selector says; it needs no script."""
    return _chosen([plot for plot in plots if plot.section == "curves"], "curves", AXES)


def _chosen(plots: Sequence[Plot], name: str, labels: dict[str, str]) -> str:
    axes = [axis for axis in labels if any(plot.axis == axis for plot in plots)]
    if not axes:
        return ""
    buttons = "".join(
        f'<label><input type="radio" name="{name}" value="{axis}"{_first(axis, axes)}>{labels[axis]}</label>'
        for axis in axes
    )
    rules = "".join(
        f'#{name}:has([value="{axis}"]:checked) figure:not([data-axis="{axis}"]) {{ display: none }}\n' for axis in axes
    )
    return (
        f'<style>{rules}</style><section id="{name}"><div class="choice" role="radiogroup" aria-label="against">'
        f'{buttons}</div><div class="plots">{_figures(plots)}</div></section>'
    )


def _first(axis: str, axes: Sequence[str]) -> str:
    return " checked" if axis == axes[0] else ""


def _section(plots: Sequence[Plot], name: str, comparison: Comparison) -> str:
    mine = [plot for plot in plots if plot.section == name]
    if not mine:
        return ""
    title, note = TITLES[name]
    kinds = {key: label for key, label in AXES.items() if key != "steps"} | {"parameters": "parameters"}
    inside = _chosen(mine, name, kinds) if name == "pareto" else f'<div class="plots">{_figures(mine)}</div>'
    return f'<h2>{title}</h2><p class="note">{escape(note)}</p>{inside}'


def _others(comparison: Comparison) -> str:
    """Everything that was measured and not tested."""
    rows = robust_rows(comparison)
    if not comparison.others and not rows:
        return ""
    lines = []
    for measure in comparison.others:
        for row in comparison.rows:
            if measure.key in row.means:
                cells = "".join(f"<td>{escape(cell)}</td>" for cell in numbers(comparison, row, measure)[:4])
                lines.append(f"<tr><td>{escape(measure.label)}</td><td>{escape(row.name)}</td>{cells}</tr>")
    others = _folded(
        f"Not tested: every further test costs the others power. {len(comparison.others)} metrics",
        ("metric", *HEAD[:5]), lines,
    )  # fmt: skip
    return f"<h2>{REST}</h2>{others}{_robust(rows)}"


def _robust(rows: Sequence[Robust]) -> str:
    lines = [f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in robust_cells(one))}</tr>" for one in rows]
    note = f'<p class="note">{escape(ROBUST_EXPLAINED.replace("*", ""))}</p>'
    return _folded("Interquartile means over seeds and clips", ROBUST_HEAD, lines, note)


def _folded(summary: str, head: Sequence[str], lines: Sequence[str], note: str = "") -> str:
    """A table that opens with a click; nothing where it has no rows."""
    if not lines:
        return ""
    names = "".join(f"<th>{name}</th>" for name in head)
    return (
        f'<details><summary>{summary}</summary>{note}<div class="card scroll"><table><thead><tr>{names}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div></details>"
    )
