"""The page for everyone: axe-core in every state, light and dark; the keyboard alone; a phone; no one's own machine."""

import pytest
from axe_playwright_python.sync_playwright import Axe
from browser import (
    await_state,
    corners,
    draw_by_finger,
    early_ranking,
    generate,
    visit,
)
from playwright.sync_api import Browser, Page, expect

from attribution.scenes.compose import SIZE

SEVERE = ("serious", "critical")
# Gradio's own, by rule and by the target that axe names
GRADIOS: dict[str, tuple[str, ...]] = {"nested-interactive": (".toast-header",)}


def violations(page: Page) -> list[tuple[str, str]]:
    """Serious and critical violations that are not Gradio's: (rule, target)."""
    page.wait_for_timeout(500)  # a button that fades in has the contrast of neither state
    found = Axe().run(page).response["violations"]
    return [
        (rule["id"], target)
        for rule in found
        if rule["impact"] in SEVERE
        for node in rule["nodes"]
        for target in [" ".join(map(str, node["target"]))]
        if not any(known in target for known in GRADIOS.get(rule["id"], ()))
    ]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_severe(chromium: Browser, address: str, theme: str) -> None:
    for page in visit(chromium, f"{address}/?__theme={theme}"):
        dark = page.evaluate("document.body.classList.contains('dark')")
        assert dark == (theme == "dark")
        assert violations(page) == []  # with an answer, the example's
        page.locator(".large .card[data-row] button").first.click()
        expect(page.locator(".opened")).to_be_visible()
        assert violations(page) == []
        page.click("#sampling button")
        page.click("#settings button")
        generate(page)
        page.get_by_label("motorcycle", exact=True).check()
        expect(page.locator("#maps img")).to_have_count(1)
        assert violations(page) == []
        page.click("#attribute")
        early_ranking(page)
        assert violations(page) == []
        page.click("#stop")
        await_state(page, "stopped")
        page.fill("#top-k input", "0")
        page.click("#attribute")
        await_state(page, "error")
        expect(page.locator("#attribute")).to_be_enabled()
        assert violations(page) == []


def test_a_phone_needs_no_sideways_scroll(chromium: Browser, address: str) -> None:
    for page in visit(chromium, address, width=390):
        page.locator(".large .card[data-row] button").first.click()  # of the example
        expect(page.locator(".opened")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        generate(page)
        page.click("#attribute")
        early_ranking(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_a_finger_draws_a_box(chromium: Browser, address: str) -> None:
    for page in visit(chromium, address, width=390, touch=True):
        generate(page)
        draw_by_finger(page, 0.2, 0.5, 0.7, 0.9)
        page.wait_for_function("document.querySelectorAll('#boxes .virtual-row').length === 2")
        assert corners(page)[0] == pytest.approx([side * SIZE for side in (0.2, 0.5, 0.7, 0.9)], abs=SIZE / 16)


def test_the_page_is_light(chromium: Browser, address: str) -> None:
    """Under 5 MB before the first run."""
    context = chromium.new_context()
    page = context.new_page()
    sizes: list[int] = []
    page.on("requestfinished", lambda request: sizes.append(request.sizes()["responseBodySize"]))
    page.goto(address)
    page.wait_for_selector("#boxes .virtual-row")
    page.wait_for_timeout(3000)  # fonts, workers and what else comes late
    context.close()
    assert 0 < sum(sizes) < 5_000_000
