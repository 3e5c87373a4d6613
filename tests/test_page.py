"""The page in a real browser over the real server, clicked the whole way through."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from browser import ROOT, launch, served
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from attribution.attribute import Result
from attribution.errors import InputError
from attribution.ui import words
from attribution.ui.box import read_box, shown_copy

PROMPT = words.PROMPT
LONG = 300_000  # ms, for an attribution
SIDES = ("x0", "y0", "x1", "y1")

expect.set_options(timeout=60_000)


@pytest.fixture(scope="session")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("served")
    with served(folder / "log.txt", folder / "gradio") as url:
        yield url


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = launch(playwright)
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: Browser, address: str) -> Iterator[Page]:
    yield from visit(chromium, address)


@pytest.fixture
def other(chromium: Browser, address: str) -> Iterator[Page]:
    yield from visit(chromium, address)


def visit(chromium: Browser, address: str, width: int = 1280) -> Iterator[Page]:
    """A visitor of their own; afterwards, nothing may have been asked of another machine."""
    context = chromium.new_context(viewport={"width": width, "height": 900})
    page = context.new_page()
    page.set_default_timeout(120_000)
    hosts: set[str | None] = set()
    page.on("request", lambda request: hosts.add(urlsplit(request.url).hostname))
    page.goto(address)
    expect(page.locator("#box-x0 input")).to_have_value("")
    yield page
    context.close()
    assert hosts <= {"127.0.0.1", None}


def generate(page: Page, prompt: str = PROMPT, seed: int = 7) -> None:
    page.fill("#prompt textarea", prompt)
    page.fill("#seed input", str(seed))
    page.click("#generate")
    expect(page.locator("#picture-note")).to_contain_text(f"seed {seed}.")
    expect(page.locator("#picture canvas")).to_be_visible()


def draw(page: Page, x0: float, y0: float, x1: float, y1: float) -> None:
    """Drag over the picture; corners are shares of its side."""
    canvas = page.locator("#picture canvas")
    canvas.scroll_into_view_if_needed()
    around = canvas.bounding_box()
    assert around is not None
    side = min(around["width"], around["height"])
    left = around["x"] + (around["width"] - side) / 2
    page.mouse.move(left + side * x0, around["y"] + side * y0)
    page.mouse.down()
    page.mouse.move(left + side * (x0 + x1) / 2, around["y"] + side * (y0 + y1) / 2, steps=5)
    page.mouse.move(left + side * x1, around["y"] + side * y1, steps=5)
    page.mouse.up()


def type_box(page: Page, *numbers: float | str) -> None:
    for name, number in zip(SIDES, numbers, strict=True):
        page.fill(f"#box-{name} input", str(number))
        page.press(f"#box-{name} input", "Tab")


def numbers_of(page: Page) -> list[str]:
    return [page.input_value(f"#box-{name} input") for name in SIDES]


def await_state(page: Page, state: str) -> None:
    page.wait_for_selector(f"#run-status .status[data-state={state}]", timeout=LONG)


def early_ranking(page: Page) -> None:
    page.wait_for_function(
        "document.querySelector('#run-status .status[data-state=running]')"
        " && document.querySelectorAll('#influential img').length === 10",
        timeout=LONG,
    )


def captions(page: Page, gallery: str = "influential") -> list[str]:
    return page.locator(f"#{gallery} .caption-label").all_inner_texts()


def toast(page: Page) -> str:
    return page.locator("[data-testid=toast-text]").first.inner_text()


def test_the_whole_way(page: Page) -> None:
    generate(page)
    draw(page, 0.25, 0.25, 0.75, 0.75)
    expect(page.locator("#box-x1 input")).not_to_have_value("")
    numbers = [float(number) for number in numbers_of(page)]
    assert numbers == pytest.approx([16, 16, 48, 48], abs=2)
    page.click("#attribute")
    expect(page.locator("#stop")).to_be_enabled()
    early_ranking(page)
    expect(page.locator("#run-status")).to_contain_text("evaluations")
    await_state(page, "done")
    expect(page.locator("#run-status")).to_contain_text("the box " + ", ".join(f"{side:g}" for side in numbers))
    for gallery in ("influential", "similar"):
        expect(page.locator(f"#{gallery} img")).to_have_count(10)
        for rank, caption in enumerate(captions(page, gallery), 1):
            assert re.match(rf"{rank} · [+-]\d\.\d{{4}}\n(\(mirrored\) )?an? .+", caption), caption
    scores = [float(caption.split()[2]) for caption in captions(page)]
    assert scores == sorted(scores, reverse=True)
    expect(page.locator("#attribute")).to_be_enabled()
    expect(page.locator("#stop")).to_be_disabled()
    page.wait_for_function("[...document.querySelectorAll('#similar img')].some((img) => img.naturalWidth === 64)")
    before, influential = captions(page, "similar"), captions(page)
    compare_with(page, "random")
    expect(page.locator("#answers h2").last).to_have_text("Compared with random")
    page.wait_for_function(
        "caption => document.querySelector('#similar .caption-label')?.innerText !== caption", arg=before[0]
    )
    expect(page.locator("#similar img")).to_have_count(10)
    assert captions(page) == influential  # what was computed stays


def compare_with(page: Page, method: str) -> None:
    page.click("#compared input")
    page.get_by_role("option", name=method, exact=True).click()


def test_the_drawn_and_the_typed_box_stay_in_step(page: Page) -> None:
    generate(page)
    draw(page, 0.2, 0.2, 0.6, 0.6)
    expect(page.locator("#box-x0 input")).not_to_have_value("")
    page.click("#clear-box")
    for name in SIDES:
        expect(page.locator(f"#box-{name} input")).to_have_value("")
    type_box(page, 8, 8, 40.5, 40)
    assert numbers_of(page) == ["8", "8", "40.5", "40"]
    draw(page, 0.3, 0.3, 0.6, 0.6)  # replaces the typed box
    expect(page.locator("#box-x0 input")).not_to_have_value("8")
    assert [float(number) for number in numbers_of(page)] == pytest.approx([19, 19, 38, 38], abs=2)
    draw(page, 0.4, 0.4, 0.5, 0.5)  # drags the drawn one by a tenth
    expect(page.locator("#box-x0 input")).not_to_have_value("19")
    assert [float(number) for number in numbers_of(page)] == pytest.approx([25.4, 25.4, 44.4, 44.4], abs=2)
    page.click("#picture [aria-label='Remove box']")
    expect(page.locator("#box-x1 input")).to_have_value("")
    draw(page, 0.5, 0.5, 0.9, 0.9)
    expect(page.locator("#box-x1 input")).not_to_have_value("")


def test_stop_in_the_middle_and_again(page: Page) -> None:
    generate(page)
    type_box(page, 0, 0, 32, 32)
    page.click("#attribute")
    await_state(page, "done")
    settled = captions(page)
    page.click("#attribute")
    early_ranking(page)
    page.click("#stop")
    await_state(page, "stopped")
    expect(page.locator("#attribute")).to_be_enabled()
    assert numbers_of(page) == ["0", "0", "32", "32"]
    page.click("#attribute")
    await_state(page, "done")
    assert captions(page) == settled  # so the weights were restored


def test_a_closed_tab_frees_the_device(page: Page, other: Page) -> None:
    generate(page)
    page.click("#settings button")
    page.check("#exhaustive input")
    page.click("#attribute")
    await_state(page, "running")
    generating = other.locator("#generate")
    generating.click()
    page.close()
    expect(other.locator("#picture-note")).to_contain_text("Generated", timeout=60_000)


def test_visitors_do_not_see_each_other(page: Page, other: Page) -> None:
    generate(page)
    other.click("#attribute")
    assert "There is no picture yet" in toast(other)
    expect(other.locator("#picture canvas")).to_have_count(0)


@pytest.mark.parametrize(
    ("box", "said"),
    [
        ((0, 0, 90, 32), "0, 0, 90, 32 reaches outside the picture"),
        ((40, 0, 8, 32), "40, 0, 8, 32 is empty, reversed or too small"),
        ((0, 0, 3, 32), "each side 8 px or more"),
        ((0, 0, 32, ""), "The box has no y1"),
    ],
)
def test_a_bad_box(page: Page, box: tuple[float | str, ...], said: str) -> None:
    generate(page)
    type_box(page, *box)
    page.click("#attribute")
    await_state(page, "error")
    assert said in toast(page)
    expect(page.locator("#run-status")).to_contain_text(said)
    assert numbers_of(page) == [str(number) for number in box]
    expect(page.locator("#prompt textarea")).to_have_value(PROMPT)
    expect(page.locator("#attribute")).to_be_enabled()


def test_an_empty_prompt_and_bad_seeds(page: Page) -> None:
    generate(page)
    page.fill("#prompt textarea", "  ")
    page.click("#generate")
    expect(page.locator("#picture-note")).to_contain_text("The prompt is empty")
    assert "The prompt is empty" in toast(page)
    page.fill("#prompt textarea", PROMPT)
    for seed, said in (("-1", "Seed -1"), ("1.5", "Seed is 1.5"), ("", "Seed is empty")):
        page.fill("#seed input", seed)
        page.click("#generate")
        expect(page.locator("#picture-note")).to_contain_text(said)
        expect(page.locator("#seed input")).to_have_value(seed)
    expect(page.locator("#prompt textarea")).to_have_value(PROMPT)
    page.click("#dice")
    expect(page.locator("#seed input")).not_to_have_value("")


def test_a_bad_k(page: Page) -> None:
    generate(page)
    page.click("#settings button")
    page.fill("#top-k input", "0")
    page.click("#attribute")
    expect(page.locator("#run-status")).to_contain_text("K = 0 is not possible; accepted are 1 to")
    expect(page.locator("#top-k input")).to_have_value("0")


def test_a_prompt_over_the_limit(page: Page) -> None:
    prompt = PROMPT + " and a banana" * 40
    page.fill("#prompt textarea", prompt)
    expect(page.locator("#tokens .warning")).to_contain_text("the model reads")
    expect(page.locator("#tokens .warning")).to_contain_text("a flat drawing of a red apple")
    generate(page, prompt)
    expect(page.locator("#prompt textarea")).to_have_value(prompt)
    expect(page.locator("#tokens .warning")).to_be_visible()


def test_bad_uploads(page: Page, tmp_path: Path) -> None:
    text, vast = tmp_path / "notes.png", tmp_path / "vast.png"
    text.write_text("not a picture")
    Image.new("1", (5000, 40)).save(vast)
    for path, said in ((text, "is not an image that can be read"), (vast, "is 5000 x 40 px")):
        page.set_input_files("#asking input[type=file]", path)
        expect(page.locator("#picture-note")).to_contain_text(f"{path.name[:1].upper()}{path.name[1:]} {said}")
        expect(page.locator("#picture-note")).to_contain_text("accepted are PNG, JPEG and WebP")
    expect(page.locator("#prompt textarea")).to_have_value(PROMPT)


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
    expect(page.locator("#influential img")).to_have_count(10)


def test_a_phone_needs_no_sideways_scroll(chromium: Browser, address: str) -> None:
    for page in visit(chromium, address, width=390):
        generate(page)
        page.click("#attribute")
        early_ranking(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        await_state(page, "done")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_nothing_moves_when_results_arrive(page: Page) -> None:
    generate(page)
    before = page.locator("#credits").bounding_box()
    page.click("#attribute")
    await_state(page, "done")
    after = page.locator("#credits").bounding_box()
    assert before is not None
    assert after is not None
    assert after["y"] == pytest.approx(before["y"], abs=2)


def test_every_field_has_a_name(page: Page) -> None:
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("input, textarea, button")]
        .filter((field) => field.checkVisibility() && !field.labels?.length)
        .filter((field) => !(field.getAttribute("aria-label") || field.title || field.textContent.trim()))
        .map((field) => field.outerHTML.slice(0, 200))"""
    )
    assert nameless == []


def test_a_missing_index_is_one_line_and_exit_2(tmp_path: Path) -> None:
    command = [sys.executable, "app.py", "--index", str(tmp_path / "nowhere")]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1
    assert "nowhere" in ended.stderr


def test_api(address: str) -> None:
    from gradio_client import Client

    client = Client(address, verbose=False)
    try:
        picture, frame, note = client.predict(PROMPT, 7, api_name="/generate")
        assert picture["boxes"] == []
        assert frame == {"width": 64, "height": 64, "factor": 8}
        assert "seed 7" in note
        status, influential, similar = client.predict(PROMPT, 0, 0, 32, 32, 5, False, api_name="/attribute")
        assert "data-state='done'" in status
        assert [item["caption"][:1] for item in influential] == list("12345")
        assert len(similar) == 5
    finally:
        client.close()


def test_small_pictures_are_enlarged_without_smoothing() -> None:
    image = Image.effect_noise((64, 64), 90).convert("RGB")
    copy, frame = shown_copy(image)
    assert frame == {"width": 64, "height": 64, "factor": 8}
    assert copy.resize((64, 64), Image.Resampling.NEAREST).tobytes() == image.tobytes()
    large, frame = shown_copy(Image.new("RGB", (4000, 3000)))
    assert large.size == (1024, 768)
    assert frame["factor"] == pytest.approx(0.256)


def test_read_box() -> None:
    assert read_box((None, None, None, None)) == ()
    assert read_box((0, 1, 8.5, 9)) == ((0.0, 1.0, 8.5, 9.0),)
    with pytest.raises(InputError, match="no x1 and no y1"):
        read_box((0, 1, None, None))


def test_words_escape_what_people_type() -> None:
    assert "<script>" not in words.note("<script>")
    assert "<script>" not in words.status("error", "", "<script>")
    result = Result(3, 12, "00012.png", 0.01234, 0.0, 0.0, "a red apple", True)
    assert words.caption(result) == "3 · +0.0123\n(mirrored) a red apple"
