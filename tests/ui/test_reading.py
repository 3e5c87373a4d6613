"""What can be done with an answer on the page: examples, the visitor's own runs, marked and opened images."""

import io
import re

import pytest
from browser import PICTURE, await_state, corners, draw, early_ranking, examples, generate, open_example, rows_of
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect

# (selector) -> what of it reaches out of something that cuts it off at the right
CUT_OFF = """(selector) => [...document.querySelectorAll(selector)].filter((each) => {
  for (let around = each.parentElement; around; around = around.parentElement)
    if (getComputedStyle(around).overflowX !== "visible" &&
        each.getBoundingClientRect().right > around.getBoundingClientRect().right + 1) return true;
}).map((each) => each.outerHTML.slice(0, 200))"""


# The picture as before it has come, and its component
UNDONE = ("document.querySelector('#picture canvas').height = 0", "document.querySelector('#picture').remove()")


def height_of(page: Page, selector: str) -> float:
    return float(page.evaluate("(selector) => document.querySelector(selector).offsetHeight", selector))


def shared_card(page: Page) -> Locator:
    """A card of the main ranking that another ranking has too."""
    return page.locator(".large:visible .card:has(.badge)").first


@pytest.mark.parametrize("kind", ["A box", "The word", "An upload"])
def test_an_example_opens_at_once(page: Page, kind: str) -> None:
    run = open_example(page, kind)
    for answer in run["answers"]:
        shown = rows_of(page, answer["method"])
        assert shown
        assert [row for row in answer["rows"][:10] if row in shown] == shown
    assert corners(page) == run["query"]["boxes"]
    expect(page.locator("#prompt textarea")).to_have_value(run["query"]["prompt"])
    grade = {"A box": "Clear source", "The word": "Uncertain", "An upload": "No source found"}[kind]
    expect(page.locator(".verdict strong")).to_have_text(grade)
    expect(page.locator("#maps img")).to_have_count(1 if kind == "The word" else 0)
    expect(page.locator("#acts")).to_be_in_viewport()


def test_the_first_view_is_alive(page: Page) -> None:
    """A finished example is open, what the model is stands in one line, and Attribute is in sight."""
    page.set_viewport_size({"width": 1280, "height": 800})
    expect(page.locator(".kept:visible")).to_have_attribute("data-run", next(iter(examples_in_order())))
    assert len(rows_of(page)) > 5
    expect(page.locator("#intro .about")).to_contain_text("4,096 emoji scenes")
    expect(page.locator(PICTURE)).to_be_visible()
    expect(page.locator("#attribute")).to_be_in_viewport(ratio=1)
    assert "?run=" not in page.url
    for chip in ("frog", "Random prompt"):
        before = page.locator("#prompt textarea").input_value()
        page.locator("#chips").get_by_role("button", name=chip).click()
        expect(page.locator("#prompt textarea")).not_to_have_value(before)
    page.locator("#chips").get_by_role("button", name="frog").click()
    expect(page.locator("#prompt textarea")).to_have_value(re.compile("frog"))
    for undone in UNDONE:  # the place of what has not come yet is kept
        before = height_of(page, "#looking")
        page.evaluate(undone)
        assert height_of(page, "#looking") == pytest.approx(before, abs=3), undone


def test_what_a_quick_hand_does_while_the_page_opens_is_left_alone(chromium: Browser, address: str) -> None:
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.goto(address)
    page.locator(".large:visible .card[data-row] button").nth(1).click()
    draw(page, 0.05, 0.6, 0.3, 0.9)
    expect(page.locator(".opened svg")).to_be_visible()
    page.wait_for_timeout(3000)
    expect(page.locator(".opened svg")).to_be_visible()
    assert len(corners(page)) == 2
    context.close()


def examples_in_order() -> list[str]:
    """Ids of the examples, boxes first, as the page shows them."""
    held = examples()
    return sorted(held, key=lambda each: (not held[each]["query"]["boxes"], held[each]["query"]["word"] is None, each))


def test_a_new_picture_leaves_no_tab_of_the_answer_before(page: Page) -> None:
    expect(page.get_by_role("tab", name="motorcycle")).to_be_visible()
    generate(page, seed=3)
    expect(page.get_by_role("tab", name="motorcycle")).to_be_hidden()


def test_an_example_is_drawn_on(page: Page) -> None:
    run = open_example(page, "A box")
    draw(page, 0.25, 0.05, 0.65, 0.45)
    page.wait_for_function("document.querySelectorAll('#boxes .virtual-row').length === 3")
    assert run["query"]["boxes"][0] in corners(page)


def test_an_image_is_marked_in_every_ranking(page: Page) -> None:
    open_example(page, "A box")
    card = shared_card(page)
    row = card.get_attribute("data-row")
    alike = page.locator(f".card[data-row='{row}']:visible")
    assert alike.count() > 1
    badges = {each.inner_text() for each in alike.locator(".badge").all()}
    assert len(badges) == 1
    card.hover()
    expect(page.locator(".card.marked")).to_have_count(alike.count())
    expect(alike.locator("xpath=self::*[contains(@class, 'marked')]")).to_have_count(alike.count())
    page.hover("#run-status")
    card.locator("button").click()
    expect(page.locator(".opened")).to_be_visible()
    page.hover("#run-status")
    expect(page.locator(".card.chosen")).to_have_count(alike.count())


def test_an_opened_image_closes_and_gives_the_focus_back(page: Page) -> None:
    open_example(page, "A box")
    card = page.locator(".large:visible .card[data-row] button").nth(2)
    card.focus()
    page.keyboard.press("Enter")
    expect(page.locator(".opened")).to_be_focused()
    expect(page.locator("#search")).to_be_in_viewport()
    page.locator("#close").focus()
    page.keyboard.press("Enter")
    expect(page.locator(".opened")).to_have_count(0)
    expect(card).to_be_focused()
    expect(page.locator(".card.chosen")).to_have_count(0)


def test_an_opened_image_is_left_by_escape_and_its_neighbours_are_an_arrow_away(page: Page) -> None:
    shown = rows_of(page)
    page.locator(".large:visible .card[data-row] button").nth(1).click()
    for key, row in (
        ("ArrowRight", shown[2]),
        ("ArrowLeft", shown[1]),
        ("ArrowLeft", shown[0]),
        ("ArrowLeft", shown[0]),
    ):
        page.locator(".opened").focus()
        page.keyboard.press(key)
        expect(page.locator(".opened")).to_contain_text(f"row {row} of")
    page.keyboard.press("Escape")
    expect(page.locator(".opened")).to_have_count(0)


def test_a_link_is_copied(page: Page) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    run = page.locator(".kept:visible").get_attribute("data-run")
    page.get_by_role("button", name="Copy link").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()").endswith(f"/?run={run}")


def test_a_seed_of_ten_digits_is_shown_whole(page: Page) -> None:
    for width in (390, 820, 1280, 1920):
        page.set_viewport_size({"width": width, "height": 800})
        page.fill("#seed input", "2147483647")
        assert page.evaluate(
            "(() => { const i = document.querySelector('#seed input'); return i.scrollWidth <= i.clientWidth; })()"
        ), width
        assert page.evaluate(CUT_OFF, "#seed input") == [], width


def test_settings_are_seen_whole_at_every_width(page: Page) -> None:
    page.click("#settings button")
    expect(page.locator("#folded")).to_be_visible()
    for width in (390, 820, 1280, 1920):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate(CUT_OFF, ":is(#settings, #budget) :is(input, label, label span)") == [], width


def test_boxes_have_colours_of_their_own_and_keep_them(page: Page) -> None:
    colours = "document.querySelectorAll('#boxes .virtual-row').length"
    draw(page, 0.6, 0.1, 0.9, 0.4)
    page.wait_for_function(f"{colours} === 3")
    draw(page, 0.1, 0.1, 0.3, 0.3)
    page.wait_for_function(f"{colours} === 4")
    page.wait_for_timeout(1000)
    drawn = page.locator("#picture canvas").screenshot()
    seen = {colour for _, colour in Image.open(io.BytesIO(drawn)).convert("RGB").getcolors(2**24)}
    assert {(0xC2, 0x41, 0x0C), (0x1D, 0x4E, 0xD8), (0x15, 0x80, 0x3D)} <= seen


def test_while_a_run_is_under_way_images_open_and_stop_stays_in_sight(page: Page) -> None:
    generate(page)
    page.click("#attribute")
    early_ranking(page)
    page.locator(".large:visible .card[data-row] button").first.click()
    expect(page.locator(".opened")).to_contain_text("when the run has ended")
    page.locator("#credits").scroll_into_view_if_needed()
    expect(page.locator("#stop")).to_be_in_viewport()
    page.click("#stop")
    await_state(page, "stopped")


def test_an_example_takes_the_place_of_a_run_that_works(page: Page) -> None:
    generate(page)
    page.click("#attribute")
    early_ranking(page)
    run = open_example(page, "A box")
    expect(page.locator("#attribute")).to_be_enabled()
    expect(page.locator("#run-status")).to_contain_text(f"Opened run {run['id']}")
    shown = rows_of(page)
    assert shown
    assert [row for row in run["answers"][0]["rows"][:10] if row in shown] == shown
    expect(page.locator("#history")).to_be_hidden()
