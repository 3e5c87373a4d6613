"""A browser, a served page, and what a person does there: Chromium is found or installed, app.py runs as it is."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from few import PROMPT
from filelock import FileLock
from playwright.sync_api import Browser, BrowserContext, Error, Page, Playwright, expect

from attribution.diffusion.pipeline import Model
from attribution.query.query import Box
from attribution.scenes.truth import locate
from attribution.scenes.world import EMBEDDED

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


def launch(playwright: Playwright, *flags: str) -> Browser:
    """Chromium of the machine, of Debian's packages or of Playwright; none is a skip, and a failure in CI."""
    try:
        with FileLock(Path(tempfile.gettempdir()) / "chromium-of-tests.lock"):  # one worker installs it
            path = _installed() or _from_debian()
            if path is None:
                _quiet(sys.executable, "-m", "playwright", "install", "chromium")
        return playwright.chromium.launch(executable_path=path, args=[*FLAGS, *flags])
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
def served(log: Path, temporary: Path, index: Path | None = None, ask_above: float = 1e6) -> Iterator[str]:
    """The page's address while app.py serves it on a free port; by default nothing is asked, however slow all is."""
    port = free_port()
    command = [sys.executable, "app.py", "--index", str(index or index_folder()), "--port", str(port)]
    command += ["--ask_above", str(ask_above)]
    environment = {**os.environ, "GRADIO_TEMP_DIR": str(temporary), "PYTHONUNBUFFERED": "1"}
    temporary.mkdir(parents=True, exist_ok=True)
    environment["TMPDIR"] = str(temporary)  # Gradio gives files from there, where finished runs usually are not
    address = f"http://127.0.0.1:{port}"
    with log.open("w") as output:
        server = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            _await(address, server, log)
            yield address
        finally:
            server.terminate()
            server.wait(30)


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


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


# --- what a person does ---

LONG = 300_000  # ms, for an attribution
EDITING = "document.activeElement?.matches('#boxes :is(input, textarea)')"  # a cell of the table
PICTURE = "#picture canvas:not([height='0'])"  # there is nothing to draw on before the picture has come
IN_TABLE = "document.activeElement?.matches('#boxes [role=gridcell]')"  # a cell that is not being edited

expect.set_options(timeout=60_000)


def visit(chromium: Browser, address: str, width: int = 1280, touch: bool = False) -> Iterator[Page]:
    """A visitor of their own; afterwards, nothing may have been asked of another machine."""
    context = chromium.new_context(viewport={"width": width, "height": 900}, has_touch=touch, is_mobile=touch)
    yield from _look(context.new_page(), address)
    context.close()


def visit_in(context: BrowserContext, address: str) -> Iterator[Page]:
    """A visitor whose browser has the page's scripts already, and nothing else of who came before; as `visit`."""
    page = context.new_page()
    context.clear_cookies()
    context.clear_permissions()
    about = {"origin": address, "storageTypes": "all"}
    context.new_cdp_session(page).send("Storage.clearDataForOrigin", about)
    yield from _look(page, address)


def _look(page: Page, address: str) -> Iterator[Page]:
    page.set_default_timeout(120_000)
    hosts: set[str | None] = set()
    page.on("request", lambda request: hosts.add(urlsplit(request.url).hostname))
    page.goto(address)
    page.wait_for_selector("#boxes .virtual-row")
    yield page
    page.close()
    assert hosts <= {"127.0.0.1", None}


WATCH = """() => {
  clearInterval(window.watch);
  window.worked = false;
  const generate = () => document.querySelector("#generate");
  window.watch = setInterval(() => { window.worked ||= generate()?.disabled; }, 5);
}"""


@contextmanager
def working(page: Page) -> Iterator[None]:
    """What is pressed inside begins a run; it is waited for, also where the page says the same before and after."""
    page.evaluate(WATCH)
    yield
    page.wait_for_function("window.worked && !document.querySelector('#generate').disabled")


def generate(page: Page, prompt: str = PROMPT, seed: int = 7) -> None:
    page.fill("#prompt textarea", prompt)
    page.fill("#seed input", str(seed))
    with working(page):
        page.click("#generate")
    expect(page.locator("#picture-note")).to_contain_text(f"seed {seed}.")
    expect(page.locator(PICTURE)).to_be_visible()


def examples() -> dict[str, dict]:
    """Runs that ship with the index, by id."""
    runs = {}
    for path in (index_folder().parent / "examples").glob("*.zip"):
        with zipfile.ZipFile(path) as archive:
            runs[path.stem] = json.loads(archive.read("run.json"))
    return runs


def open_example(page: Page, kind: str) -> dict:
    """Click the example whose title begins so; returns its run."""
    button = page.locator(".examples button").filter(has_text=kind)
    run = examples()[button.get_attribute("data-run") or ""]
    button.click()
    expect(page.locator("#run-status")).to_contain_text(f"Opened run {run['id']}")
    return run


def objects_there() -> dict[str, Box]:
    """Where the objects of PROMPT are in its picture of seed 7, by their sprites."""
    picture = Model.load(EMBEDDED.parent / "model").generate(PROMPT, 7)
    found = {name: locate(picture, name, "flat") for name in ("motorcycle", "red apple")}
    assert None not in found.values(), "choose another prompt or seed, for the page and its examples too"
    return {name: box for name, box in found.items() if box}


def draw(page: Page, x0: float, y0: float, x1: float, y1: float) -> None:
    """Drag over the picture; corners are shares of its side."""
    (left, top), *between, (right, bottom) = _drag(page, x0, y0, x1, y1)
    page.mouse.move(left, top)
    page.mouse.down()
    for x, y in between:
        page.mouse.move(x, y)
    page.mouse.move(right, bottom)
    page.mouse.up()


def draw_by_finger(page: Page, x0: float, y0: float, x1: float, y1: float) -> None:
    """The same on a touch screen."""
    send = page.context.new_cdp_session(page).send
    kind = "touchStart"
    for x, y in _drag(page, x0, y0, x1, y1):
        send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y}]})
        kind = "touchMove"
        page.wait_for_timeout(30)
    send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})


def _drag(page: Page, x0: float, y0: float, x1: float, y1: float) -> list[tuple[float, float]]:
    """Points on the screen, from one corner to the other."""
    canvas = page.locator(PICTURE)
    expect(canvas).to_be_visible()
    canvas.scroll_into_view_if_needed()
    around = canvas.bounding_box()
    assert around is not None
    side = min(around["width"], around["height"])
    left = around["x"] + (around["width"] - side) / 2
    shares = [step / 10 for step in range(11)]
    return [(left + side * (x0 + t * (x1 - x0)), around["y"] + side * (y0 + t * (y1 - y0))) for t in shares]


def type_box(page: Page, *numbers: float | str, row: int = 0) -> None:
    """Type into the table as a person with a keyboard does."""
    cells = page.locator("#boxes .virtual-row").nth(row).locator("[role=gridcell]")
    for place, number in enumerate(numbers, 1):
        cells.nth(place).dblclick()
        page.wait_for_function(EDITING)
        page.keyboard.press("Control+A")
        page.keyboard.type(str(number))
        page.keyboard.press("Enter")
        page.wait_for_function(IN_TABLE)


def boxes_of(page: Page) -> list[list[str]]:
    """Rows of the table that are not empty: label, x0, y0, x1, y1."""
    rows = page.locator("#boxes .virtual-row").all()
    texts = [[cell.inner_text().strip("\n \u22ee") for cell in row.locator("[role=gridcell]").all()] for row in rows]
    return [row for row in texts if any(row)]


def corners(page: Page) -> list[list[float]]:
    return [[float(side) for side in row[1:]] for row in boxes_of(page)]


def await_state(page: Page, state: str) -> None:
    page.wait_for_selector(f"#run-status .status[data-state={state}]", timeout=LONG)


def early_ranking(page: Page) -> None:
    page.wait_for_function(
        "document.querySelector('#run-status .status[data-state=running]')"
        " && document.querySelectorAll('.large .card[data-row] img').length > 5",
        timeout=LONG,
    )


def rows_of(page: Page, method: str = "") -> list[int]:
    """Training images of a ranking that is shown, best first; the main one where no method is named."""
    ranking = f".ranking[data-method='{method}']" if method else ".large"
    cards = page.locator(f"{ranking}:visible .card[data-row]")
    return [int(card.get_attribute("data-row") or -1) for card in cards.all()]


def toast(page: Page) -> str:
    return page.locator("[data-testid=toast-text]").first.inner_text()
