"""What the server answers beside the page: its health, thumbnails, pictures of the proof, and kept runs."""

import itertools
import zipfile
from typing import Any

from fastapi import APIRouter, HTTPException
from fastapi.responses import FileResponse, Response
from PIL import ImageDraw
from starlette.routing import BaseRoute

from attribution.answers.html import to_png
from attribution.answers.report import HTML, RUN, TABLE
from attribution.errors import InputError, NotKept
from attribution.index.pictures import kind_of
from attribution.query.query import Query
from attribution.ui.regions import shown_copy
from attribution.ui.studio import Studio
from attribution.ui.style import COLOURS

PARTS = {"json": (RUN, "application/json"), "csv": (TABLE, "text/csv; charset=utf-8"), "html": (HTML, "text/html")}
LONG = {"Cache-Control": "public, max-age=86400"}


def routes(studio: Studio) -> list[BaseRoute]:
    """For `launch(app_kwargs={"routes": ...})`: they come before Gradio's own, which take any path."""
    router = APIRouter()

    @router.get("/healthz")
    def health() -> dict[str, Any]:
        """Alive, and how many runs wait or work."""
        return {"status": "ok", "waiting": studio.waiting, "index": studio.index.id}

    @router.get("/thumbnails/{index_id}/{row}.png")
    def thumbnail(index_id: str, row: int) -> Response:
        """The picture of a training image of the index that is served; browsers keep it under the index's id."""
        if index_id != studio.index.id:
            raise HTTPException(404, f"there is no index {index_id[:40]!r} here; this page serves {studio.index.id}")
        if not 0 <= row < len(studio.index):
            raise HTTPException(404, f"there is no row {row}; accepted are 0 to {len(studio.index) - 1}")
        content = studio.index.thumbnail(row)
        return Response(content, media_type=f"image/{kind_of(content)}", headers=LONG)

    @router.get("/proof/{name}")
    def proof(name: str) -> FileResponse:
        """A picture of the proof."""
        if studio.proven is None or studio.proof is None or name not in studio.proof.files:
            raise HTTPException(404, f"there is no {name[:40]!r} in the proof")
        return FileResponse(studio.proven / name, media_type="image/png")

    @router.get("/runs/{run_id}.{kind}")
    def run(run_id: str, kind: str) -> Response:
        """A kept run: the ZIP, or the JSON, CSV or HTML page in it, or its picture for previews of links."""
        try:
            path = studio.run_file(run_id)
        except InputError as error:
            raise HTTPException(404, str(error)) from error
        except NotKept as error:  # an example, which is made whole first
            raise HTTPException(503, str(error)) from error
        if kind == "png":
            return Response(preview(studio.read_run(run_id).query), media_type="image/png", headers=LONG)
        name = f"attribution-{run_id}.{kind}"
        disposition = {"Content-Disposition": f'attachment; filename="{name}"'}
        if kind == "zip":
            return FileResponse(path, media_type="application/zip", filename=name)
        if kind not in PARTS:
            raise HTTPException(404, f"there is no {kind!r} of a run; accepted are zip, png, {', '.join(PARTS)}")
        entry, media_type = PARTS[kind]
        with zipfile.ZipFile(path) as archive:
            return Response(archive.read(entry), media_type=media_type, headers=disposition)

    return router.routes


def preview(query: Query) -> bytes:
    """A query's picture, as large as previews want it, with its boxes; a PNG."""
    copy, frame = shown_copy(query.image)
    draw = ImageDraw.Draw(copy)
    for box, colour in zip(query.boxes, itertools.cycle(COLOURS), strict=False):
        draw.rectangle([frame["factor"] * side for side in box], outline=colour, width=4)
    return to_png(copy)
