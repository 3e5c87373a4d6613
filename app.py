"""Start the page: `python app.py [--index PATH] [--host H] [--port P] [--share]`."""

import os
import sys
import tempfile
from pathlib import Path

import tyro

from attribution.errors import AttributionError


def serve(
    index: Path | None = None,
    host: str | None = None,
    port: int | None = None,
    share: bool = False,
    detector: str | None = None,
    runs: Path | None = None,
    mcp: bool = False,
) -> None:
    """Serve the page.

    Args:
        index: an index folder; the embedded one by default.
        host: address to listen on; GRADIO_SERVER_NAME, or 127.0.0.1, by default.
        port: GRADIO_SERVER_PORT, or the first free one from 7860 on, by default.
        share: open a public tunnel through gradio.live.
        detector: a GroundingDINO's folder, `.pth` file or hub id; the one beside the index, or the published one.
        runs: folder of finished runs; one among the temporary files by default.
        mcp: serve the API as MCP tools too, under /gradio_api/mcp; needs gradio[mcp].
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported
    from attribution.ui.zero import prepare

    prepare()
    from attribution.answers.report import RunFolder
    from attribution.scenes.world import open_world_or
    from attribution.ui.page import build_page
    from attribution.ui.routes import routes
    from attribution.ui.studio import Studio
    from attribution.ui.style import CSS, THEME

    model, opened = open_world_or(index)
    studio = Studio(model, opened, RunFolder(runs or Path(tempfile.gettempdir()) / "attribution-runs"), detector)
    page = build_page(studio)
    page.launch(
        server_name=host,
        server_port=port,
        share=share,
        max_file_size="20mb",  # uploads over 10 MB are refused with a sentence of our own
        state_session_capacity=100,
        run_history=False,
        ssr_mode=False,
        footer_links=["api"],
        theme=THEME,
        css=CSS,
        mcp_server=mcp,
        app_kwargs={"routes": routes(studio)},
    )


def main() -> int:
    """Serve until interrupted; 2, and one line on standard error, for what a person can mend."""
    try:
        tyro.cli(serve)
    except (AttributionError, OSError) as error:  # OSError: the port is taken
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
