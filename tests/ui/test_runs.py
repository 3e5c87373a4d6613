"""Runs to their end and those that are stopped, on a page that is served over few training images."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from browser import (
    EDITING,
    IN_TABLE,
    await_state,
    early_ranking,
    generate,
    rows_of,
    served,
    type_box,
    working,
)
from few import build_few
from PIL import Image
from playwright.sync_api import Page, expect

MOST_TABS = 150
PIXELS = "document.querySelector('#picture canvas').toDataURL()"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("few")
    with served(folder / "log.txt", folder / "gradio", build_few(folder)) as url:
        yield url


def attribute_quickly(page: Page) -> None:
    page.click("#settings button")
    page.fill("#top-k input", "3")
    page.click("#attribute")
    await_state(page, "done")


def test_the_address_follows_the_run_and_reload_and_back_keep_the_work(page: Page, address: str) -> None:
    generate(page)
    for word in ("apple", "motorcycle"):
        page.get_by_label(word, exact=True).check()
    attribute_quickly(page)
    page.wait_for_url("**/?run=*")
    link, shown = page.url, rows_of(page)
    assert len(link.partition("run=")[2].split(",")) == 2  # one link for both regions
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    for place in (0, 1):  # which every panel's button copies
        page.get_by_role("tab").nth(place).click()
        page.evaluate("navigator.clipboard.writeText('')")
        page.locator(".kept:visible [data-copy]").click()
        page.wait_for_function("(link) => navigator.clipboard.readText().then((text) => text === link)", arg=link)
    page.get_by_role("tab").nth(0).click()
    first = link.partition("run=")[2].split(",")[0]
    page.reload()
    expect(page.locator(".kept:visible")).to_have_attribute("data-run", first)  # not the example of the first view
    expect(page.locator("#run-status")).to_contain_text("“motorcycle”")
    tabs = page.get_by_role("tab").filter(visible=True)
    expect(tabs).to_have_text(["1 · the word “apple”", "2 · the word “motorcycle”"])
    assert rows_of(page) == shown
    expect(page.locator("#acts")).to_be_in_viewport()  # it opens at the answer
    generate(page, seed=8)
    page.wait_for_url(lambda url: "run=" not in url)
    page.go_back()
    expect(page.locator(".kept:visible")).to_have_attribute("data-run", first)
    assert page.url == link
    assert rows_of(page) == shown
    html = httpx.get(link).text
    assert f'<meta property="og:image" content="{address}/runs/{first}.png">' in html
    assert "Click to try out the app" not in html
    assert httpx.get(f"{address}/runs/{first}.png").headers["content-type"] == "image/png"


def choose_four(page: Page) -> None:
    """Four regions: when the first is answered, there is time for a person to stop the others."""
    for word in ("red", "apple", "motorcycle", "blue"):
        page.get_by_label(word, exact=True).check()
        expect(page.locator("#maps")).to_contain_text(word)


def test_a_visitors_own_runs_are_there_after_a_reload(page: Page) -> None:
    expect(page.locator("#history")).to_be_hidden()
    generate(page)
    page.fill("#labels input, #labels textarea", "motorcycle")
    page.click("#find")
    expect(page.locator("#found")).to_contain_text("Found by")
    page.click("#settings button")
    page.fill("#top-k input", "3")
    page.click("#attribute")
    await_state(page, "done")
    run, shown = page.locator(".kept:visible").get_attribute("data-run"), rows_of(page)
    expect(page.locator("#history")).to_be_visible()
    page.reload()
    page.click("#history input")
    chosen = page.get_by_role("option").first
    expect(chosen).to_contain_text("· motorcycle")
    chosen.click()
    expect(page.locator(".kept:visible")).to_have_attribute("data-run", str(run))
    expect(page.get_by_role("tab", name="1 · motorcycle")).to_be_visible()
    assert rows_of(page) == shown
    expect(page.locator("#seed input")).to_have_value("7")


def test_a_word_is_shown_and_answered(page: Page) -> None:
    generate(page)
    page.get_by_label("motorcycle", exact=True).check()
    expect(page.locator("#maps img")).to_have_count(1)
    expect(page.locator("#maps img")).to_be_visible()
    page.click("#attribute")
    await_state(page, "done")
    expect(page.locator("#run-status")).to_contain_text("“motorcycle”")
    assert len(rows_of(page)) > 5


def test_an_upload(page: Page, tmp_path: Path) -> None:
    path = tmp_path / "wide.png"
    Image.linear_gradient("L").resize((200, 100)).save(path)
    page.set_input_files("#asking input[type=file]", path)
    expect(page.locator("#picture-note")).to_contain_text("wide.png, 200 x 100 px")
    expect(page.locator("#picture-note")).to_contain_text("no influence to find")
    page.fill("#prompt textarea", "")
    page.click("#attribute")
    expect(page.locator("#run-status")).to_contain_text("The prompt is empty")
    page.fill("#prompt textarea", "a red apple")
    type_box(page, 50, 0, 150, 50)
    page.click("#attribute")
    await_state(page, "done")
    assert len(rows_of(page)) > 5


def test_the_answer_of_the_first_region_can_be_read_while_the_second_is_under_way(page: Page) -> None:
    generate(page)
    choose_four(page)
    page.click("#attribute")
    page.wait_for_function("document.querySelector('#run-status')?.innerText.includes('region 2 of 4')")
    page.locator(".large:visible .card[data-row] button").first.click()
    expect(page.locator(".opened svg")).to_be_visible()
    page.click("#stop")
    await_state(page, "stopped")
    expect(page.locator(".kept:visible")).to_contain_text("ZIP")


def test_stop_in_the_middle_and_again(page: Page) -> None:
    generate(page)
    shown = page.evaluate(PIXELS)
    choose_four(page)
    page.click("#attribute")
    early_ranking(page)
    page.click("#stop")
    await_state(page, "stopped")
    expect(page.locator("#attribute")).to_be_enabled()
    generate(page, seed=8)
    page.wait_for_function(f"(shown) => {PIXELS} !== shown", arg=shown)
    generate(page)
    page.wait_for_function(f"(shown) => {PIXELS} === shown", arg=shown)  # so the weights were restored
    page.click("#attribute")
    await_state(page, "done")
    assert len(rows_of(page)) > 5


def tab_to(page: Page, selector: str) -> None:
    """Press Tab until what has the focus is, or is in, the selector."""
    for _ in range(MOST_TABS):
        page.keyboard.press("Tab")
        if page.evaluate("(selector) => Boolean(document.activeElement?.closest(selector))", selector):
            return
    raise AssertionError(f"{MOST_TABS} tabs do not reach {selector}")


def test_the_keyboard_alone(page: Page) -> None:
    """Generate, type a box, attribute, open a training image, by Tab, Enter and digits."""
    tab_to(page, "#generate")
    with working(page):
        page.keyboard.press("Enter")
    expect(page.locator("#picture-note")).to_contain_text("seed 7.")
    page.locator("#generate").focus()
    tab_to(page, "#boxes [role=gridcell]")
    for number in (None, 8, 8, 48, 48):
        if number is not None:
            page.keyboard.press("Enter")
            page.wait_for_function(EDITING)
            page.keyboard.type(str(number))
            page.keyboard.press("Enter")
            page.wait_for_function(IN_TABLE)
        page.keyboard.press("ArrowRight")
    page.locator("#clear").focus()
    tab_to(page, "#attribute")
    page.keyboard.press("Enter")
    await_state(page, "done")
    expect(page.locator("#run-status")).to_contain_text("box 1")
    page.locator("#top-k, #settings button").first.focus()
    tab_to(page, ".large .card[data-row]")
    page.keyboard.press("Enter")
    expect(page.locator(".opened")).to_contain_text(f"row {rows_of(page)[0]} of")
