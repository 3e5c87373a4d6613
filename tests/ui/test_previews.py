"""What other sites show of a link."""

import re
from html import unescape
from io import BytesIO

import pytest
from near import awaited
from PIL import Image

from attribution.answers.run import Run
from attribution.ui.previews import TITLE, Previews
from attribution.ui.routes import preview

GRADIOS = b"""<html><head><meta property="og:title" content="Gradio" />
<meta
  name="twitter:image"
  content="https://gradio.app/x.png" /><meta name="viewport" content="a"></head><body>og:</body></html>"""


async def page(scope, receive, send):
    start = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(GRADIOS))]}
    await send(start)
    await send({"type": "http.response.body", "body": GRADIOS[:50], "more_body": True})
    await send({"type": "http.response.body", "body": GRADIOS[50:]})


def asked(studio, path="/", query=""):
    """Headers and text of an answer."""
    sent = []

    async def send(message):
        sent.append(message)

    headers = [(b"host", b"pictures.example"), (b"x-forwarded-proto", b"https")]
    scope = {"type": "http", "method": "GET", "path": path, "query_string": query.encode(), "headers": headers}
    awaited(Previews(page, studio)(scope, None, send))
    body = b"".join(message.get("body", b"") for message in sent)
    assert dict(sent[0]["headers"])[b"content-length"] == b"%d" % len(body)
    return body.decode()


def tags(html):
    return {
        name: unescape(value)
        for name, value in re.findall(r'<meta (?:name|property)="([^"]*)" content="([^"]*)"', html)
    }


def test_a_link_to_a_run_tells_what_it_is_of(studio, answers):
    run = Run(tuple(answers.values()))
    studio.runs.keep(run, studio.index, studio.model)
    html = asked(studio, query=f"run={run.id}")
    told = tags(html)
    assert told["og:image"] == told["twitter:image"] == f"https://pictures.example/runs/{run.id}.png"
    assert told["og:url"] == f"https://pictures.example/?run={run.id}"
    assert "a <b>red</b> bird" in told["og:description"]
    assert "<b>" not in html  # it is escaped
    assert "Gradio" not in html
    assert told["viewport"] == "a"


@pytest.mark.parametrize("query", ["", "run=", "run=000000000000", "run=<script>", "run=" + "," * 9999])
def test_the_page_itself_tells_what_it_does(studio, query):
    html = asked(studio, query=query)
    assert tags(html)["og:title"] == TITLE
    assert tags(html)["og:url"].startswith("https://pictures.example/")
    assert "<script" not in html


def test_all_else_passes_as_it_is(studio):
    assert asked(studio, "/config") == GRADIOS.decode()


def test_a_preview_is_the_picture_with_its_boxes(answers):
    query = answers["unlearning"].query
    image = Image.open(BytesIO(preview(query)))
    assert image.size == (512, 512)
    assert image.getpixel((256, 256)) == query.image.getpixel((16, 16))
