"""Start the page: `python app.py [--index PATH] [--host H] [--port P] [--share]`."""

import os
import sys
from pathlib import Path

import tyro

from attribution.errors import AttributionError


def serve(index: Path | None = None, host: str | None = None, port: int | None = None, share: bool = False) -> None:
    """Serve the page.

    Args:
        index: an index folder; the embedded one by default.
        host: address to listen on; GRADIO_SERVER_NAME, or 127.0.0.1, by default.
        port: GRADIO_SERVER_PORT, or the first free one from 7860 on, by default.
        share: open a public tunnel through gradio.live.
    """
    from attribution.attribute import open_index

    model, opened = open_index(index)
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported
    from attribution.ui.page import build_page
    from attribution.ui.studio import Studio
    from attribution.ui.style import CSS, THEME

    build_page(Studio(model, opened)).launch(
        server_name=host,
        server_port=port,
        share=share,
        allowed_paths=[str(opened.thumbnails)],
        max_file_size="20mb",  # uploads over 10 MB are refused with a sentence of our own
        state_session_capacity=100,
        run_history=False,
        ssr_mode=False,
        footer_links=["api"],
        theme=THEME,
        css=CSS,
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
