"""The address follows the run; boxes are refused where they are drawn; Enter; short work beside long work."""

import time

from browser import await_state, boxes_of, corners, draw, early_ranking, generate
from PIL import Image
from playwright.sync_api import Page, expect

from attribution.scenes.compose import LATTICE


def await_boxes(page: Page, count: int) -> None:
    until = time.monotonic() + 30
    while (found := len(corners(page))) != count:
        assert time.monotonic() < until, f"there are {found} boxes, not {count}"
        page.wait_for_timeout(200)


def test_boxes_are_refused_where_they_are_drawn(page: Page, tmp_path) -> None:
    generate(page)
    draw(page, 0.1, 0.1, 0.16, 0.3)
    expect(page.locator("#marked")).to_contain_text(f"too small: {LATTICE} px a side or more are accepted")
    for x, y in ((0.05, 0.05), (0.55, 0.05), (0.05, 0.55), (0.55, 0.55)):
        before = corners(page)
        draw(page, x, y, x + 0.35, y + 0.35)
        await_boxes(page, len(before) + 1)
        expect(page.locator("#marked")).to_be_empty()
    before = corners(page)
    assert len(before) == 4
    draw(page, 0.4, 0.4, 0.6, 0.6)
    expect(page.locator("#marked")).to_contain_text("one too many")
    assert corners(page) == before
    path = tmp_path / "wide.png"
    Image.linear_gradient("L").resize((200, 100)).save(path)
    page.set_input_files("#asking input[type=file]", path)
    expect(page.locator("#picture-note")).to_contain_text("wide.png")
    expect(page.locator("#marked")).to_be_empty()
    draw(page, -0.45, 0.1, -0.1, 0.5)  # shares of the middle square
    expect(page.locator("#marked")).to_contain_text("outside what the model sees")
    assert corners(page) == []


def test_a_drawn_box_has_a_name_and_keeps_it(page: Page) -> None:
    generate(page)
    for number, x in enumerate((0.05, 0.55), 1):
        draw(page, x, 0.05, x + 0.35, 0.4)
        await_boxes(page, number)
    assert [row[0] for row in boxes_of(page)] == ["box 2", "box 1"]  # the newest is first
    page.get_by_label("Drag boxes").click()
    draw(page, 0.2, 0.2, 0.2, 0.2)
    page.get_by_label("Remove box").click()
    await_boxes(page, 1)
    assert [row[0] for row in boxes_of(page)] == ["box 2"]
    page.get_by_label("Create box").click()
    draw(page, 0.05, 0.55, 0.4, 0.95)
    await_boxes(page, 2)
    assert [row[0] for row in boxes_of(page)] == ["box 1", "box 2"]


def test_enter_generates_but_leaves_an_upload_whose_prompt_it_is(page: Page, tmp_path) -> None:
    page.fill("#prompt textarea", "a flat drawing of a red apple")
    page.press("#prompt textarea", "Enter")
    expect(page.locator("#picture-note")).to_contain_text("Generated from “a flat drawing of a red apple”")
    path = tmp_path / "mine.png"
    Image.linear_gradient("L").save(path)
    page.set_input_files("#asking input[type=file]", path)
    expect(page.locator("#picture-note")).to_contain_text("Write above what it shows")
    expect(page.locator("#prompt textarea")).to_have_value("")
    page.fill("#prompt textarea", "a green frog")
    expect(page.locator("#words")).to_contain_text("frog")
    page.press("#prompt textarea", "Enter")
    expect(page.locator("#picture-note")).to_contain_text("press Attribute")


def test_generate_is_answered_while_an_attribution_is_under_way(page: Page, other: Page) -> None:
    began = time.monotonic()
    generate(other)
    alone = time.monotonic() - began
    generate(page)
    page.click("#attribute")
    early_ranking(page)
    began = time.monotonic()
    generate(other, seed=9)
    assert time.monotonic() - began < alone + 3
    await_state(page, "running")  # it still is
    page.click("#stop")
    await_state(page, "stopped")
