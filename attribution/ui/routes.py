"""What the server answers beside the page: its health, thumbnails, and kept runs."""

import zipfile
from typing import Any

from fastapi import APIRouter, HTTPException
from fastapi.responses import FileResponse, Response
from starlette.routing import BaseRoute

from attribution.answers.report import HTML, RUN, TABLE
from attribution.errors import InputError
from attribution.ui.studio import Studio

PARTS = {"json": (RUN, "application/json"), "csv": (TABLE, "text/csv; charset=utf-8"), "html": (HTML, "text/html")}
LONG = {"Cache-Control": "public, max-age=86400"}


def routes(studio: Studio) -> list[BaseRoute]:
    """For `launch(app_kwargs={"routes": ...})`: they come before Gradio's own, which take any path."""
    router = APIRouter()

    @router.get("/healthz")
    def health() -> dict[str, Any]:
        """Alive, and how many runs wait or work."""
        return {"status": "ok", "waiting": studio.waiting, "index": studio.index.id}

    @router.get("/thumbnails/{row}.png")
    def thumbnail(row: int) -> FileResponse:
        """The picture of a training image."""
        if not 0 <= row < len(studio.index):
            raise HTTPException(404, f"there is no row {row}; accepted are 0 to {len(studio.index) - 1}")
        return FileResponse(studio.index.thumbnail(row), media_type="image/png", headers=LONG)

    @router.get("/runs/{run_id}.{kind}")
    def run(run_id: str, kind: str) -> Response:
        """A kept run: the ZIP, or the JSON, CSV or HTML page in it."""
        try:
            path = studio.run_file(run_id)
        except InputError as error:
            raise HTTPException(404, str(error)) from error
        name = f"attribution-{run_id}.{kind}"
        disposition = {"Content-Disposition": f'attachment; filename="{name}"'}
        if kind == "zip":
            return FileResponse(path, media_type="application/zip", filename=name)
        if kind not in PARTS:
            raise HTTPException(404, f"there is no {kind!r} of a run; accepted are zip, {', '.join(PARTS)}")
        entry, media_type = PARTS[kind]
        with zipfile.ZipFile(path) as archive:
            return Response(archive.read(entry), media_type=media_type, headers=disposition)

    return router.routes
