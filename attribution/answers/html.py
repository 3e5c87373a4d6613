"""A run as one HTML file that needs nothing else: pictures are inside it, and there is no script."""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape
from io import BytesIO
from itertools import groupby

from PIL import Image

from attribution.answers.compare import agreement, finders
from attribution.methods.answer import Attribution, Result
from attribution.query.query import Query, region_words

STYLE = """
:root { color-scheme: light dark; font: 15px/1.45 system-ui, sans-serif; }
body { max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
figure { margin: 0; } figcaption { font-size: .8rem; }
.query { position: relative; width: 16rem; } .query img { width: 100%; image-rendering: pixelated; display: block; }
.query svg { position: absolute; inset: 0; width: 100%; height: 100%; }
ol { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); gap: 1rem; padding: 0; }
li { list-style: none; } ol img { width: 100%; image-rendering: pixelated; }
ol.plots { grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr)); gap: 1.5rem; }
.plots figure { display: grid; grid-template-columns: 8rem 1fr; gap: .75rem; align-items: start; }
table { border-collapse: collapse; } th, td { text-align: left; padding: .15rem .8rem .15rem 0; font-size: .9rem; }
"""


def page(
    run_id: str,
    label: str,
    answers: Sequence[Attribution],
    timesteps: Sequence[int],
    picture: bytes,
    thumbnails: Mapping[int, bytes],
) -> str:
    """The file.

    Args:
        run_id: of the run.
        label: what the asker calls the region, or "".
        answers: the main one first.
        timesteps: of the noise bank's columns.
        picture: the query's, a PNG.
        thumbnails: PNGs by row.
    """
    query, main = answers[0].query, answers[0]
    by_method = {answer.settings.method: answer for answer in answers}
    found = finders(by_method)
    region = f"{label}, {region_words(query)}" if label else region_words(query)
    made = "an upload" if query.seed is None else f"seed {query.seed}"
    rankings = "".join(_ranking(answer, timesteps, thumbnails, found) for answer in answers)
    shown = framed(query, picture)
    return (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>Run {run_id}</title><style>{STYLE}</style>"
        f"<h1>Which training images is this picture made of?</h1>{shown}"
        f"<p>“{escape(query.prompt)}”, {made}; {escape(region)}. Run {run_id}, index {main.index_id},"
        f" model {main.model_sha256[:12]}.</p>{_agreements(main, answers[1:])}{rankings}</html>\n"
    )


def loss_plot(losses: Sequence[tuple[float, float]], timesteps: Sequence[int]) -> str:
    """A training image's loss at each timestep before (hollow) and after (filled) unlearning, and its change, as SVG.

    The changes are small beside the losses: bars under them have a scale of their own. The score is the mean change.

    Args:
        losses: (before, after) for each column of the noise bank; a timestep's noises are averaged.
        timesteps: of the columns.
    """
    points = []
    for t, columns in groupby(sorted(zip(timesteps, losses, strict=True)), key=lambda each: each[0]):
        before, after = zip(*(pair for _, pair in columns), strict=True)
        points.append((t, sum(before) / len(before), sum(after) / len(after)))
    most = max(max(point[1:]) for point in points) or 1.0
    largest = max(abs(after - before) for _, before, after in points) or 1.0
    marks = "".join(
        _loss_marks(58 + 262 * number / max(1, len(points) - 1), *point, most, largest)
        for number, point in enumerate(points)
    )
    axes = "".join(
        f"<text x='{x}' y='{y}' text-anchor='{anchor}'>{told}</text>"
        for x, y, anchor, told in (
            (2, 8, "start", "loss: ○ before, ● after"),
            (44, 24, "end", f"{most:.3f}"),
            (44, 84, "end", "0"),
            (2, 102, "start", "change"),
            (44, 117, "end", f"{largest:+.4f}"),
            (44, 145, "end", "0"),
            (189, 199, "middle", "timestep"),
        )
    )
    line = "<line x1='48' x2='330' y1='{0}' y2='{0}' stroke='currentColor' opacity='.3'/>"
    label = "Loss at each timestep, before unlearning (hollow) and after (filled), and the change under it"
    return (
        f"<svg viewBox='0 0 336 202' role='img' aria-label='{label}' font-size='9' fill='currentColor'>"
        f"{line.format(81)}{line.format(142)}{axes}{marks}</svg>"
    )


def _loss_marks(x: float, t: int, before: float, after: float, most: float, largest: float) -> str:
    """One timestep of the plot, at x: losses on y = 81 (none) to 21 (`most`), the change on y = 142 (none) +- 28."""
    y0, y1 = (81 - 60 * value / most for value in (before, after))
    change = 28 * (after - before) / largest
    return (
        f"<g><title>timestep {t}: {before:.4f} before, {after:.4f} after, {after - before:+.4f}</title>"
        f"<line x1='{x:.1f}' x2='{x:.1f}' y1='{y0:.1f}' y2='{y1:.1f}' stroke='currentColor'/>"
        f"<circle cx='{x:.1f}' cy='{y0:.1f}' r='3.5' fill='none' stroke='currentColor'/>"
        f"<circle cx='{x:.1f}' cy='{y1:.1f}' r='3.5' fill='#c2410c'/>"
        f"<rect x='{x - 6:.1f}' y='{142 - max(change, 0):.1f}' width='12' height='{abs(change):.1f}' fill='#c2410c'/>"
        f"<text x='{x:.1f}' y='185' text-anchor='middle'>{t}</text></g>"
    )


def agreed(correlation: float | None) -> str:
    """A rank correlation in words."""
    return "too few in common" if correlation is None else f"{correlation:+.2f}"


def framed(query: Query, picture: bytes) -> str:
    """A query's picture (a PNG of any size) with the query's boxes on it."""
    width, height = query.image.size
    boxes = "".join(
        f"<rect x='{x0:g}' y='{y0:g}' width='{x1 - x0:g}' height='{y1 - y0:g}' fill='none' stroke='#c2410c'"
        " stroke-width='2' vector-effect='non-scaling-stroke'/>"
        for x0, y0, x1, y1 in query.boxes
    )
    svg = f"<svg viewBox='0 0 {width} {height}' preserveAspectRatio='none' aria-hidden='true'>{boxes}</svg>"
    return f"<div class='query'>{_image(picture, 'The picture')}{svg}</div>"


def to_png(image: Image.Image) -> bytes:
    """A picture as the bytes of a PNG."""
    held = BytesIO()
    image.save(held, "PNG")
    return held.getvalue()


def _image(png: bytes, alt: str) -> str:
    return f"<img alt='{escape(alt, quote=True)}' src='data:image/png;base64,{b64encode(png).decode()}'>"


def _agreements(main: Attribution, others: Sequence[Attribution]) -> str:
    if not others:
        return ""
    rows = []
    for other in others:
        each = agreement(main.rows, other.rows, len(main.results))
        rows.append(
            f"<tr><td>{escape(other.settings.method)}</td><td>{each.overlap:.0%}</td>"
            f"<td>{agreed(each.correlation)}</td></tr>"
        )
    head = f"<tr><th>method</th><th>shared with {escape(main.settings.method)}'s top {len(main.results)}</th>"
    return f"<table>{head}<th>rank correlation</th></tr>{''.join(rows)}</table>"


def _ranking(
    answer: Attribution, timesteps: Sequence[int], thumbnails: Mapping[int, bytes], found: Mapping[int, list[str]]
) -> str:
    method, took = answer.settings.method, sum(answer.seconds.values())
    items = "".join(_item(result, method, timesteps, thumbnails[result.row], found) for result in answer.results)
    kind = " class='plots'" if any(result.losses for result in answer.results) else ""
    told = f"<p>{answer.evaluations:,} evaluations in {took:.1f} s</p>"
    return f"<h2>{escape(method)}</h2>{told}<ol{kind}>{items}</ol>"


def _item(
    result: Result, method: str, timesteps: Sequence[int], thumbnail: bytes, found: Mapping[int, list[str]]
) -> str:
    others = [name for name in found[result.row] if name != method]
    also = f"<br>also: {escape(', '.join(others))}" if others else ""
    mirrored = ", mirrored" if result.flip else ""
    plot = loss_plot(result.losses, timesteps) if result.losses else ""
    interval = f" ({result.low:+.5f} to {result.high:+.5f})" if result.low < result.high else ""
    return (
        f"<li><figure>{_image(thumbnail, result.caption)}<figcaption><b>{result.rank}</b> {result.score:+.5f}"
        f"{interval}{mirrored}<br>{escape(result.id)}<br>{escape(result.caption)}{also}"
        f"</figcaption></figure>{plot}</li>"
    )
