"""Pictures of the page in every state, at every width, light and dark: `python tests/screenshots.py FOLDER`.

A state is reached once, in one browser window, which is then resized; a picture is FOLDER/STATE-WIDTH-THEME.png. The
states whose names begin with `view-` are what is in sight without scrolling, the others the whole page.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from browser import LONG, await_state, early_ranking, generate, launch, served
from playwright.sync_api import Page, expect, sync_playwright

WIDTHS = {390: 844, 820: 1180, 1280: 800, 1920: 1080}  # px, and the height of such a screen
THEMES = ("light", "dark")


def fresh(page: Page, address: str) -> None:
    page.goto(address)
    page.wait_for_selector("#boxes .virtual-row")
    page.wait_for_timeout(1500)


def start(page: Page, address: str) -> None:
    fresh(page, address)


def picture(page: Page, address: str) -> None:
    """Generated, its objects found."""
    fresh(page, address)
    generate(page)
    page.click("#find")
    expect(page.locator("#found")).to_contain_text("Found by")


def running(page: Page, address: str) -> None:
    picture(page, address)
    page.click("#attribute")
    early_ranking(page)


def done(page: Page, address: str) -> None:
    """Two regions answered."""
    picture(page, address)
    page.click("#attribute")
    await_state(page, "done")


def all_methods(page: Page, address: str) -> None:
    """The whole picture, every method that the index has beside unlearning; quick ones and slow ones."""
    fresh(page, address)
    generate(page)
    page.click("#compared input")
    for _ in range(20):
        options = page.locator("#compared [role=option]:not([aria-selected=true])")
        if not options.count():
            break
        options.first.click()
    page.keyboard.press("Escape")
    page.click("#attribute")
    page.wait_for_selector("#run-status .status[data-state=done]", timeout=4 * LONG)


def opened(page: Page, address: str) -> None:
    """An example with one of its training images opened."""
    fresh(page, address)
    page.locator(".examples button").first.click()
    page.wait_for_timeout(1500)
    page.locator(".large:visible .card[data-row] button").nth(1).click()
    expect(page.locator(".opened")).to_be_visible()


def uploaded(page: Page, address: str) -> None:
    fresh(page, address)
    page.locator(".examples button").filter(has_text="An upload").click()
    page.wait_for_timeout(1500)


def forgotten(page: Page, address: str) -> None:
    fresh(page, address)
    generate(page)
    page.click("#check button")
    page.click("#forget")
    await_state(page, "done")


def removed(page: Page, address: str) -> None:
    """An example's picture without the training images of its ranking."""
    fresh(page, address)
    page.click("#check button")
    page.click("#remove")
    await_state(page, "done")
    page.locator("#removal").scroll_into_view_if_needed()


def refused(page: Page, address: str) -> None:
    """Settings open, and a value that is not possible."""
    fresh(page, address)
    generate(page)
    page.click("#settings button")
    page.fill("#top-k input", "0")
    page.click("#attribute")
    await_state(page, "error")


STATES: dict[str, Callable[[Page, str], None]] = {
    "start": start,
    "picture": picture,
    "running": running,
    "done": done,
    "opened": opened,
    "uploaded": uploaded,
    "forgotten": forgotten,
    "removed": removed,
    "refused": refused,
    "all-methods": all_methods,
}


def snap(page: Page, folder: Path, state: str) -> None:
    """The state at every width, in both themes, in sight and whole."""
    for width, height in WIDTHS.items():
        page.set_viewport_size({"width": width, "height": height})
        for theme in THEMES:
            page.evaluate("(dark) => document.body.classList.toggle('dark', dark)", theme == "dark")
            page.wait_for_timeout(400)
            page.screenshot(path=folder / f"view-{state}-{width}-{theme}.png")
            page.screenshot(path=folder / f"{state}-{width}-{theme}.png", full_page=True)
    page.evaluate("document.body.classList.remove('dark')")
    page.set_viewport_size({"width": 1280, "height": 800})


def main() -> None:
    """Reach the states one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("states", nargs="*", choices=[[], *STATES], help="all by default")
    parser.add_argument("--address", help="of a page that is served already")
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as playwright:
        if asked.address:
            shoot(playwright, asked.address, asked.folder, asked.states or list(STATES))
            return
        with served(Path(temporary) / "server.log", Path(temporary)) as address:
            shoot(playwright, address, asked.folder, asked.states or list(STATES))


def shoot(playwright: object, address: str, folder: Path, states: list[str]) -> None:
    """A window of its own for each state."""
    chromium = launch(playwright)  # type: ignore[arg-type]
    for state in states:
        page = chromium.new_page(viewport={"width": 1280, "height": 800})
        page.set_default_timeout(120_000)
        STATES[state](page, address)
        snap(page, folder, state)
        page.close()
        print(state)
    chromium.close()


if __name__ == "__main__":
    main()
