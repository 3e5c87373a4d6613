"""A browser and a served page for the tests: Chromium is found or installed, and app.py runs as it is."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Error, Playwright

from attribution.index import EMBEDDED

ROOT = Path(__file__).parent.parent
PATIENCE = 180  # seconds for the server to answer
FLAGS = [
    "--no-sandbox",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--disable-gpu",
]


def index_folder() -> Path:
    return Path(os.environ.get("ATTRIBUTION_TEST_INDEX") or EMBEDDED)


def launch(playwright: Playwright) -> Browser:
    """Chromium of the machine, of Debian's packages or of Playwright; none is a skip, and a failure in CI."""
    path = _installed() or _from_debian()
    try:
        if path is None:
            _quiet(sys.executable, "-m", "playwright", "install", "chromium")
        return playwright.chromium.launch(executable_path=path, args=FLAGS)
    except (Error, subprocess.SubprocessError, OSError) as error:
        reason = f"no Chromium could be found or installed ({str(error).splitlines()[0]})"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)


def _installed() -> str | None:
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def _from_debian() -> str | None:
    if not shutil.which("apt-get") or os.geteuid() != 0:
        return None
    try:
        _quiet("apt-get", "update", "-qq")
        _quiet("apt-get", "install", "-y", "-qq", "--no-install-recommends", "chromium")
    except subprocess.SubprocessError:
        return None
    return _installed()


def _quiet(*command: str) -> None:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(command, check=True, capture_output=True, timeout=600, env=environment)


@contextmanager
def served(log: Path, temporary: Path) -> Iterator[str]:
    """The page's address while app.py serves it on a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "app.py", "--index", str(index_folder()), "--port", str(port)]
    environment = {**os.environ, "GRADIO_TEMP_DIR": str(temporary), "PYTHONUNBUFFERED": "1"}
    address = f"http://127.0.0.1:{port}"
    with log.open("w") as output:
        server = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            _await(address, server, log)
            yield address
        finally:
            server.terminate()
            server.wait(30)


def _await(address: str, server: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        if server.poll() is not None:
            pytest.fail(f"app.py ended with {server.returncode}: {log.read_text()}")
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    pytest.fail(f"app.py did not answer within {PATIENCE} s: {log.read_text()}")
