"""A graph as a picture: an SVG file that needs nothing else, a box for each stage with its scores."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from vidlab.lab.stages.graph import Graph

WIDTH, HEIGHT, GAP_X, GAP_Y, MARGIN = 216, 92, 84, 26, 20
COLORS = {"finished": "#2e7d32", "running": "#1565c0", "failed": "#c62828", "interrupted": "#ef6c00"}
PARTS = {
    "all": "all", "all_but_temporal_attention": "all but temporal", "temporal_attention": "temporal",
    "all_but_discriminator": "autoencoder", "image_model": "image model",
}  # fmt: skip
STYLE = "font-family:sans-serif;font-size:12px;fill:#222"


@dataclass(frozen=True)
class StageView:
    """What a box shows: the state of a stage, and lines such as its scores."""

    state: str
    lines: Sequence[str] = ()


def columns_of(graph: Graph) -> dict[str, int]:
    """For each stage how many stand before it on the longest way."""
    found: dict[str, int] = {}
    for name, stage in graph.stages.items():
        found[name] = 1 + max((found[parent] for parent in stage.after), default=-1)
    return found


def draw(graph: Graph, views: Mapping[str, StageView]) -> str:
    """The picture, from left to right; an arrow says which part of the weights goes along it."""
    columns = columns_of(graph)
    rows: dict[int, int] = {}
    places = {}
    for name, column in columns.items():
        row = rows.get(column, 0)
        rows[column] = row + 1
        places[name] = (MARGIN + column * (WIDTH + GAP_X), MARGIN + 20 + row * (HEIGHT + GAP_Y))
    width = 2 * MARGIN + len(rows) * (WIDTH + GAP_X) - GAP_X
    height = 2 * MARGIN + 20 + max(rows.values()) * (HEIGHT + GAP_Y) - GAP_Y
    arrows = [
        _arrow(places[parent], places[name], PARTS[part])
        for name, stage in graph.stages.items()
        for parent, part in stage.parents.items()
    ]
    boxes = [_box(name, places[name], views[name]) for name in graph.stages]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
            f'height="{height}">',
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
            '<path d="M0 0L8 4L0 8z" fill="#777"/></marker></defs>',
            f'<rect width="{width}" height="{height}" fill="#fff"/>',
            _text(MARGIN, MARGIN + 2, " ".join(filter(None, [graph.name, graph.says])), "font-weight:bold"),
            *arrows,
            *boxes,
            "</svg>\n",
        ]
    )


def _box(name: str, place: tuple[int, int], view: StageView) -> str:
    x, y = place
    color = COLORS.get(view.state, "#9e9e9e")
    lines = [_text(x + 12, y + 36 + 15 * n, line, "") for n, line in enumerate(view.lines[:4])]
    return "\n".join(
        [
            f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="6" fill="#fafafa" stroke="{color}" '
            'stroke-width="2"/>',
            _text(x + 12, y + 19, name, "font-weight:bold"),
            f'<text x="{x + WIDTH - 10}" y="{y + 19}" text-anchor="end" style="{STYLE};fill:{color}">'
            f"{view.state}</text>",
            *lines,
        ]
    )


def _arrow(start: tuple[int, int], end: tuple[int, int], label: str) -> str:
    x0, y0, x1, y1 = start[0] + WIDTH, start[1] + HEIGHT // 2, end[0] - 2, end[1] + HEIGHT // 2
    bend = (x1 - x0) // 2
    beside = (16 * y0 + 84 * y1) // 100 - 6  # near its end, apart from other arrows to the same box
    line = f'<path d="M{x0} {y0}C{x0 + bend} {y0} {x1 - bend} {y1} {x1} {y1}" fill="none" stroke="#777" '
    return line + 'marker-end="url(#tip)"/>' + _text(x1 - 76, beside, label, "font-size:9px;fill:#555")


def _text(x: int, y: int, text: str, style: str) -> str:
    return f'<text x="{x}" y="{y}" style="{STYLE};{style}">{escape(text[:120])}</text>'
