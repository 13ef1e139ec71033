"""The report of a curation: one HTML page that needs nothing else."""

import base64
import html
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vidlab.curation.curate import Curated
from vidlab.curation.engine.records import Clip
from vidlab.curation.engine.video_file import VideoFile, reduced_size
from vidlab.curation.engine.work import sources_of
from vidlab.curation.output.funnel import HEADER, Funnel
from vidlab.curation.output.samples import KEPT, Samples
from vidlab.data.names import shown
from vidlab.errors import CorruptClipError
from vidlab.files import write_text

FRAMES, SIDE = 4, 96  # of each clip on a contact sheet, and pixels of the shorter side
SIZES = 10
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0 } td, th { padding: .2rem .8rem; border-bottom: 1px solid #ddd }
td + td, th + th { text-align: right } .text { text-align: left } tr.absent { color: #999 }
figure { display: inline-block; margin: .5rem 1rem .5rem 0; max-width: 34rem } figcaption { font-size: 12px }
img { max-width: 100% } .bar { background: #4477aa; height: .7rem } .bars td { width: 16rem }
"""


def write_report(done: Curated, path: Path) -> Path:
    """Write the page: the funnel, why clips are out, distributions, and clips to look at for every reason.

    Raises:
        OSError: it cannot be written.
    """
    samples = Samples.of(done.tables())
    parts = [
        f"<h1>{_text(done.recipe.name)}</h1>",
        f"<p>{len(done.partitions)} partitions, {done.funnel.kept} clips kept, "
        f"{done.funnel.kept_seconds / 3600:.3f} hours. Shares are of the duration.</p>",
        _funnel(done.funnel),
        _left_out(done),
        _reasons(done.funnel),
        "<h2>Distributions</h2>",
        *(_plot(name, *values) for name, values in sorted(samples.values.items())),
        _sizes(samples),
        *_sheets(done, samples),
    ]
    body = "\n".join(parts)
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">\n"
        f"<title>Curation: {_text(done.recipe.name)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}\n"
        "</body>\n</html>\n"
    )
    return write_text(path, page)


def _text(value: object) -> str:
    """Text of anybody as HTML shows it."""
    return html.escape(shown(value))


def _funnel(funnel: Funnel) -> str:
    head = "".join(f"<th>{cell}</th>" for cell in HEADER)
    rows = [f'<tr>{head}<th class="text">in the paper</th><th></th></tr>']
    for row in funnel.rows():
        bar = f'<div class="bar" style="width:{row.remaining:.1f}%"></div>' if row.ran else ""
        cells = "".join(f"<td>{_text(cell)}</td>" for cell in row.cells)
        name = f'<td class="text">{_text(row.published_name)}</td>'
        rows.append(f'<tr class="{"bars" if row.ran else "absent"}">{cells}{name}<td>{bar}</td></tr>')
    return f"<h2>Funnel</h2>\n<table>{''.join(rows)}</table>"


def _left_out(done: Curated) -> str:
    names = ", ".join(map(_text, done.recipe.left_out))
    return f"<p><b>Did not run: {names}.</b> What they would have rejected is in.</p>" if names else ""


def _reasons(funnel: Funnel) -> str:
    rows = "".join(
        f'<tr><td>{_text(step)}</td><td class="text">{_text(reason)}</td><td>{count}</td></tr>'
        for step, reason, count in funnel.most_common_reasons()
    )
    head = '<tr><th>step</th><th class="text">reason</th><th>clips</th></tr>'
    return f"<h2>Rejected</h2>\n<table>{head}{rows}</table>" if rows else "<p>Nothing was rejected.</p>"


def _plot(name: str, everything: Sequence[float], kept: Sequence[float]) -> str:
    """A histogram of all clips that have a number, and of those kept."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 2.6), layout="constrained")
    axes: Any = figure.subplots()
    bins: Any = np.histogram_bin_edges(np.array(everything), bins=30)
    axes.hist(everything, bins, color="#cccccc", label=f"measured ({len(everything)})")
    axes.hist(kept, bins, color="#4477aa", label=f"kept ({len(kept)})")
    axes.set_xlabel(name)
    axes.set_ylabel("clips")
    axes.legend(frameon=False, fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return f'<img alt="{_text(name)}" src="{_data(buffer.getvalue(), "png")}">'


def _sizes(samples: Samples) -> str:
    rows = "".join(
        f"<tr><td>{width} x {height}</td><td>{count}</td></tr>"
        for (width, height), count in samples.sizes.most_common(SIZES)
    )
    return f"<h3>Most frequent sizes of kept clips</h3><table>{rows}</table>" if rows else ""


def _sheets(done: Curated, samples: Samples) -> Iterator[str]:
    sources = sources_of(done.partitions)
    order = {step.name: place for place, step in enumerate(done.recipe.steps)}
    for step, reason in sorted(samples.examples, key=lambda one: (order.get(one[0], -1), one[1])):
        title = "Kept" if (step, reason) == KEPT else f"{step}: {reason}"
        clips = samples.examples[step, reason]
        figures = "".join(
            _figure(clip, VideoFile(sources[clip.source]), clip.source in samples.deadly) for clip in clips
        )
        yield f"<h2>{_text(title)}</h2>\n{figures}"


def _figure(clip: Clip, video: VideoFile, deadly: bool) -> str:
    scores = ", ".join(f"{name} {value:.3g}" for name, value in sorted(clip.scores.items()))
    caption = f"{clip.source}, frames {clip.start} to {clip.end}. {scores}"
    try:
        if deadly:
            raise CorruptClipError("it is not read again for a picture")
        picture = f'<img alt="" src="{_data(_strip(clip, video), "jpeg")}">'
    except CorruptClipError as error:
        picture = f"<p>{_text(error)}</p>"
    return f"<figure>{picture}<figcaption>{_text(caption)}</figcaption></figure>"


def _strip(clip: Clip, video: VideoFile) -> bytes:
    """Frames of a clip side by side as JPEG.

    Raises:
        CorruptClipError: they cannot be read.
    """
    from PIL import Image

    if not clip.frames:
        raise CorruptClipError("no frame of it can be read")
    wanted = sorted({round(place) for place in np.linspace(0, clip.frames - 1, FRAMES)})
    frames = video.frames(clip, wanted)
    _, height, width, _ = frames.shape
    height, width = reduced_size(height, width, SIDE)
    small = [np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BOX)) for frame in frames]
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate(small, axis=1)).save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def _data(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def funnel_metrics(funnel: Funnel) -> Mapping[str, float]:
    """The funnel as named numbers, for a tracking store."""
    rows = [row for row in funnel.rows() if row.ran]
    return {
        "curation/kept_clips": float(funnel.kept),
        "curation/kept_hours": funnel.kept_seconds / 3600,
        **{f"curation/remaining/{row.step}": row.remaining for row in rows},
        **{f"curation/rejected/{row.step}": float(row.rejected) for row in rows},
    }
