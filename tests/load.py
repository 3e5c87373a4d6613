"""Visitors at once: `python tests/load.py --visitors 8 --minutes 5` serves the page here and sends browsers to it.

Each visitor, over and over, generates a picture of their own prompt and seed, attributes it, and compares what they see
with what they asked. Prints, as JSON: runs, the most that used the device at once, runs out of their order, answers of
somebody else, resident memory after a minute and at the end, and whether the weights are as they were.
"""

import hashlib
import itertools
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

import httpx
import psutil
import tyro
from playwright.sync_api import Error, Page, sync_playwright

sys.path.insert(0, str(Path(__file__).parent.parent))

from browser import free_port, launch

from attribution.answers.kept import RunFolder
from attribution.diffusion.pipeline import Model
from attribution.scenes.names import OBJECTS
from attribution.scenes.world import open_world
from attribution.ui.jobs import Job, Steps
from attribution.ui.page import build_page
from attribution.ui.routes import routes
from attribution.ui.studio import Studio, Waiting

ANSWER = 20 * 60_000  # ms that a visitor waits


class WatchedStudio(Studio):
    """A studio that writes down who came when to each of its lines, and who was at work."""

    def __init__(self, *given: Any) -> None:
        self.came = itertools.count()
        self.began: dict[bool, list[int]] = {False: [], True: []}  # of long jobs, and of short ones
        self.at_once = self.most_at_once = self.longest_line = 0
        super().__init__(*given)

    def alone(self, job: Job, stop: Event) -> Steps:
        """As the studio does, watched."""
        number, begun = next(self.came), False
        for step in super().alone(job, stop):
            self.longest_line = max(self.longest_line, self.waiting)
            if not begun and not isinstance(step, Waiting):
                begun = True
                self.began[job.short].append(number)
            yield step

    def _on_device(self, work: Callable[..., Any], *given: Any) -> Any:
        def watched(*inside: Any) -> Any:
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            try:
                return work(*inside)
            finally:
                self.at_once -= 1

        return super()._on_device(watched, *given)

    def out_of_order(self) -> int:
        """Runs that began before one that came earlier and began later, in the same line."""
        return sum(later < earlier for began in self.began.values() for earlier, later in itertools.pairwise(began))


@dataclass
class Told:
    """What the visitors saw."""

    runs: int = 0
    foreign: int = 0
    failures: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


def weights_sha256(model: Model) -> str:
    """A hash of the U-Net's weights as they are in memory."""
    digest = hashlib.sha256()
    for name, value in sorted(model.unet.state_dict().items()):
        digest.update(name.encode() + value.cpu().numpy().tobytes())
    return digest.hexdigest()


def visit(address: str, browser: str, number: int, until: float, told: Told) -> None:
    """One visitor: cookies and storage of their own, in a browser that all share."""
    try:
        with sync_playwright() as playwright:
            context = playwright.chromium.connect_over_cdp(browser).new_context(viewport={"width": 1000, "height": 800})
            page = context.new_page()
            page.set_default_timeout(ANSWER)
            page.goto(address)
            page.wait_for_selector("#boxes .virtual-row")
            page.click("#settings button")
            page.fill("#top-k input", "5")
            turn = 0
            while time.monotonic() < until:
                ask(page, address, 1000 * number + turn, list(OBJECTS)[number], told)
                turn += 1
            context.close()
    except Error as error:
        told.failures.append(f"visitor {number}: {str(error).splitlines()[0]}")


def ask(page: Page, address: str, seed: int, name: str, told: Told) -> None:
    """Generate and attribute, and compare the answer with the question."""
    prompt = f"a flat drawing of a {name}"
    page.fill("#prompt textarea", prompt)
    page.fill("#seed input", str(seed))
    page.click("#generate")
    page.wait_for_function("(s) => document.querySelector('#picture-note').innerText.includes(s)", arg=f"seed {seed}.")
    page.click("#attribute")
    page.wait_for_selector("#run-status .status[data-state=waiting], #run-status .status[data-state=running]")
    page.wait_for_selector("#run-status .status[data-state=done]")
    run_id = page.locator(".kept:visible").get_attribute("data-run")
    query = httpx.get(f"{address}/runs/{run_id}.json", timeout=60).json()["query"]
    note = page.locator("#picture-note").inner_text()
    with told.lock:
        told.runs += 1
        told.foreign += (query["prompt"], query["seed"]) != (prompt, seed) or prompt not in note


def main(visitors: int = 8, minutes: float = 5.0) -> None:
    """Serve, visit, and print what happened.

    Args:
        visitors: browsers at once.
        minutes: in which visitors ask again; what they asked last is waited for.
    """
    model, index = open_world()
    before = weights_sha256(model)
    studio = WatchedStudio(model, index, RunFolder(Path(tempfile.mkdtemp())))
    ours = {"routes": routes(studio)}
    _, local, _ = build_page(studio).launch(prevent_thread_lock=True, quiet=True, ssr_mode=False, app_kwargs=ours)
    told, rss, port = Told(), [], free_port()
    with sync_playwright() as playwright, launch(playwright, f"--remote-debugging-port={port}"):
        began = time.monotonic()
        asked = (local.rstrip("/"), f"http://127.0.0.1:{port}")
        threads = [
            threading.Thread(target=visit, args=(*asked, number, began + 60 * minutes, told))
            for number in range(visitors)
        ]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            time.sleep(5)
            took, size = time.monotonic() - began, psutil.Process().memory_info().rss
            rss.append((took, size))
            print(f"{took:.0f} s, {told.runs} runs, line of {studio.waiting}, {size / 1e6:.0f} MB", flush=True)
    first = max(size for seconds, size in rss if seconds <= 65)
    summary = {
        "visitors": visitors,
        "minutes": round((time.monotonic() - began) / 60, 1),
        "attributions": told.runs,
        "turns at the device": sum(map(len, studio.began.values())),
        "most at once": studio.most_at_once,
        "longest line": studio.longest_line,
        "out of order": studio.out_of_order(),
        "answers of somebody else": told.foreign,
        "failures": told.failures,
        "MB after a minute": round(first / 1e6),
        "MB at the end": round(rss[-1][1] / 1e6),
        "growth": round(rss[-1][1] / first - 1, 3),
        "weights as before": weights_sha256(model) == before,
    }
    print(json.dumps(summary, indent=1))


if __name__ == "__main__":
    tyro.cli(main)
