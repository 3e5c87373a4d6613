"""HTML by templates that escape what they are given, and a run as one HTML file that needs nothing else."""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from PIL import Image

from attribution.answers.plot import loss_marks
from attribution.answers.ranking import agreements, alone, rankings
from attribution.answers.verdict import MANY, verdict_of
from attribution.index.index import Index
from attribution.index.pictures import kind_of
from attribution.methods.answer import Attribution
from attribution.query.query import Box, Query, region_words

STYLE = """
:root { color-scheme: light dark; font: 15px/1.45 system-ui, sans-serif; }
body { margin: 0; } main { max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .25rem; }
figure { margin: 0; } figcaption { font-size: .8rem; overflow-wrap: anywhere; }
.note { font-size: .85rem; opacity: .8; }
.asked { display: grid; grid-template-columns: minmax(8rem, 16rem) minmax(0, 1fr); gap: 1.5rem; align-items: start; }
.query { position: relative; } .query img { width: 100%; display: block; }
.query svg { position: absolute; inset: 0; width: 100%; height: 100%; }
.verdict { margin: 0; } .verdict strong { display: block; font-size: 1.2rem; }
dl { display: grid; grid-template-columns: auto minmax(0, 1fr); gap: .15rem 1rem; font-size: .85rem; margin: 0; }
dt { opacity: .7; } dd { margin: 0; overflow-wrap: anywhere; }
ol { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); gap: 1rem; padding: 0; }
li { list-style: none; } ol img { width: 100%; }
.weak { opacity: .5; } .score { font-weight: 700; } .rank::after { content: "."; }
ol.plots { grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)); gap: 1.5rem; }
.plots figure { display: grid; grid-template-columns: 8rem 1fr; gap: .75rem; align-items: start; }
table { border-collapse: collapse; margin-top: 1.5rem; } caption { text-align: left; font-size: .85rem; opacity: .8; }
th, td { text-align: left; padding: .15rem .8rem .15rem 0; font-size: .9rem; font-weight: 400; }
"""


def environment(*packages: str) -> Environment:
    """Templates of some packages, the first that has one; what they are given is escaped, and nothing may lack."""
    loaders = [PackageLoader(package) for package in packages]
    return Environment(
        loader=ChoiceLoader(loaders), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


TEMPLATES = environment("attribution.answers")


@dataclass(frozen=True)
class Framed:
    """A picture's address, its size in pixels, and the boxes on it."""

    source: str
    width: int
    height: int
    boxes: tuple[Box, ...]


def framed(query: Query, picture: bytes) -> Framed:
    """A query's picture, given as a PNG of any size, with the query's boxes."""
    return Framed(data_uri(picture), *query.image.size, query.boxes)


def page(
    told: Mapping[str, Any],
    answers: Sequence[Attribution],
    index: Index,
    label: str,
    picture: bytes,
    thumbnails: Mapping[int, bytes],
) -> str:
    """The file.

    Args:
        told: of the run, as `report.run_json` has it.
        answers: the main one first.
        index: of the training set.
        label: what the asker calls the region, or "".
        picture: the query's, a PNG.
        thumbnails: PNGs or JPEGs by row.
    """
    query, by_method = answers[0].query, {answer.settings.method: answer for answer in answers}
    losses = {
        (answer.settings.method, result.row): result.losses
        for answer in answers
        for result in answer.results
        if result.losses
    }
    return TEMPLATES.get_template("report.html").render(
        told=told,
        graded=verdict_of(answers[0], index),
        many=MANY,
        style=STYLE,
        query=query,
        shown=framed(query, picture),
        made="an upload" if query.seed is None else f"seed {query.seed}",
        region=f"{label}, {region_words(query)}" if label else region_words(query),
        rankings=rankings(by_method, index, answers[0].settings.k, folded=False),
        agreements=agreements(by_method),
        alone=alone(by_method),
        sources={row: data_uri(content) for row, content in thumbnails.items()},
        plots={of: loss_marks(pairs, told["timesteps"]) for of, pairs in losses.items()},
        plotted={method for method, _ in losses},
    )


def to_png(image: Image.Image) -> bytes:
    """A picture as the bytes of a PNG."""
    held = BytesIO()
    image.save(held, "PNG")
    return held.getvalue()


def data_uri(picture: bytes) -> str:
    """A PNG or JPEG inside a page."""
    return f"data:image/{kind_of(picture)};base64,{b64encode(picture).decode()}"
