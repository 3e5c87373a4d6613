"""Start the page: `python app.py [--index PATH] [--host H] [--port P] [--share]`."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from attribution.cli.asked import check_folder, opened
from attribution.cli.ending import status_of
from attribution.cli.parsing import bind


def serve(
    index: Path | None = None,
    host: str | None = None,
    port: int | None = None,
    share: bool = False,
    detector: str | None = None,
    runs: Path | None = None,
    mcp: bool = False,
    ask_above: float = 120.0,
) -> None:
    """Serve the page.

    Args:
        index: an index folder; the embedded one by default.
        host: address to listen on; GRADIO_SERVER_NAME, or 127.0.0.1, by default.
        port: GRADIO_SERVER_PORT, or the first free one from 7860 on, by default.
        share: open a public tunnel through gradio.live.
        detector: a GroundingDINO's folder, `.pth` file or hub id; the one beside the index, or the published one.
        runs: folder of finished runs; one in the user's cache by default.
        mcp: serve the API as MCP tools too, under /gradio_api/mcp; needs gradio[mcp].
        ask_above: seconds from which on the page tells how long an answer takes, and begins it when asked once more.
    """
    if runs is not None:
        check_folder("--runs", runs)
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported
    from attribution.ui.zero import on_zero_gpu, prepare

    prepare()
    from starlette.middleware import Middleware

    from attribution.answers.kept import RunFolder, own_folder
    from attribution.ui.page import build_page
    from attribution.ui.previews import Previews
    from attribution.ui.routes import routes
    from attribution.ui.studio import Studio
    from attribution.ui.style import CSS, THEME

    # OpenMP's workers end with the thread that loads, see Studio; what ZeroGPU changes in torch is of this thread alone
    with ThreadPoolExecutor(1) as passing:
        model, served = opened(index) if on_zero_gpu() else passing.submit(opened, index).result()
    studio = Studio(model, served, RunFolder(runs or own_folder()), detector)
    studio.ask_above = ask_above
    studio.measure()
    page = build_page(studio)
    page.launch(
        server_name=host,
        server_port=port,
        share=share,
        allowed_paths=[str(studio.runs.folder.resolve())],  # /report gives files from there, which links give, too
        max_file_size="20mb",  # uploads over 10 MB are refused with a sentence of our own
        state_session_capacity=100,
        run_history=False,
        ssr_mode=False,
        footer_links=["api"],
        theme=THEME,
        css=CSS,
        mcp_server=mcp,
        app_kwargs={"routes": routes(studio), "middleware": [Middleware(Previews, studio=studio)]},
    )


def main() -> int:
    """Serve until interrupted; otherwise an exit status as the command line's."""
    return status_of(lambda: bind(serve, sys.argv[1:], "python app.py")())


if __name__ == "__main__":
    sys.exit(main())
