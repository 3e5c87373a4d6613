"""What other sites show of a link to the page: a title, a sentence and a picture in its head, of the run it names."""

import re
from html import escape
from urllib.parse import parse_qs

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from attribution.errors import AttributionError
from attribution.ui.studio import Studio, run_ids

TITLE = "Which training images is this picture made of?"
TOLD = "Generate a picture, mark a part of it, and see the training images whose loss rises when the model unlearns it."
GRADIOS = re.compile(rb'<meta\s+(?:property="og:|name="twitter:)[^>]*>\s*')


class Previews:
    """Puts them in place of Gradio's own, into the page alone; all else passes as it is."""

    def __init__(self, app: ASGIApp, studio: Studio) -> None:
        self.app, self.studio = app, studio

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request; see ASGI."""
        if scope["type"] != "http" or scope["path"] != "/" or scope["method"] != "GET":
            await self.app(scope, receive, send)
            return
        held: list[Message] = []

        async def hold(message: Message) -> None:
            held.append(message)
            if message["type"] == "http.response.body" and not message.get("more_body"):
                for each in self._told(scope, held):
                    await send(each)

        await self.app(scope, receive, hold)

    def _told(self, scope: Scope, held: list[Message]) -> list[Message]:
        """The whole answer, with our head."""
        start, *parts = held
        body = b"".join(part.get("body", b"") for part in parts)
        if b"</head>" in body:
            body = GRADIOS.sub(b"", body).replace(b"</head>", self._head(scope).encode() + b"</head>", 1)
        others = [(name, value) for name, value in start["headers"] if name.lower() != b"content-length"]
        headers = [*others, (b"content-length", str(len(body)).encode())]
        return [{**start, "headers": headers}, {"type": "http.response.body", "body": body}]

    def _head(self, scope: Scope) -> str:
        base = _base(scope)
        asked = parse_qs(scope["query_string"].decode("latin-1")).get("run", [""])[0]
        title, told, shown = self._of_runs(run_ids(asked))
        picture = f"{base}/runs/{shown}.png" if shown else ""
        address = f"{base}/?run={','.join(run_ids(asked))}" if run_ids(asked) else f"{base}/"
        tags = {"og:type": "website", "og:title": title, "og:description": told, "og:url": address, "og:image": picture}
        tags |= {
            "twitter:card": "summary",
            "twitter:title": title,
            "twitter:description": told,
            "twitter:image": picture,
        }
        described = f'<meta name="description" content="{escape(told)}">'
        return described + "".join(_meta(name, value) for name, value in tags.items() if value)

    def _of_runs(self, ids: list[str]) -> tuple[str, str, str]:
        """Title, sentence, and the run whose picture is shown; of the page where there are none."""
        try:
            runs = [self.studio.read_run(each) for each in ids]
        except AttributionError:
            runs = []
        if not runs:
            shipped = self.studio.shipped
            return TITLE, TOLD, shipped[0].id if shipped else ""
        regions = ", ".join(run.region for run in runs)
        return TITLE, f"“{runs[0].query.prompt[:160]}”: the training images behind {regions}.", runs[0].id


def _meta(name: str, value: str) -> str:
    kind = "property" if name.startswith("og:") else "name"
    return f'<meta {kind}="{name}" content="{escape(value)}">'


def _base(scope: Scope) -> str:
    """The server's address as the visitor wrote it."""
    headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
    scheme = headers.get("x-forwarded-proto", str(scope.get("scheme", "http"))).split(",")[0].strip()
    host = headers.get("x-forwarded-host", headers.get("host", "")).split(",")[0].strip()
    return f"{scheme}://{host}{scope.get('root_path', '')}"
