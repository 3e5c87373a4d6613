"""The page in a real browser over the real server, clicked the whole way through."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import httpx
import pytest
from browser import (
    LONG,
    PROMPT,
    ROOT,
    await_state,
    boxes_of,
    corners,
    draw,
    early_ranking,
    generate,
    objects_there,
    open_example,
    rows_of,
    toast,
    type_box,
    visit,
)
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from attribution.answers.forget import Regenerated
from attribution.errors import InputError
from attribution.scenes.compose import LATTICE, SIZE, make_scenes
from attribution.ui import again, words
from attribution.ui.regions import Region, read_regions, shown_copy


def test_the_whole_way(page: Page, chromium: Browser, address: str) -> None:
    """Two boxes, each answered in its tab, and nothing moves when they are; one training image opened; files; the link
    in another browser."""
    generate(page)
    there = objects_there()
    for box in there.values():
        draw(page, *(side / SIZE for side in box))
    page.wait_for_function("document.querySelectorAll('#boxes .virtual-row').length === 3")
    assert len(corners(page)) == 2
    page.click("#attribute")
    expect(page.locator("#stop")).to_be_enabled()
    early_ranking(page)
    expect(page.locator("#run-status")).to_contain_text("evaluations")
    before = page.locator("#credits").bounding_box()
    await_state(page, "done")
    after = page.locator("#credits").bounding_box()
    assert before is not None
    assert after is not None
    assert after["y"] == pytest.approx(before["y"], abs=60)  # the line of links appears
    expect(page.locator("#attribute")).to_be_enabled()
    expect(page.locator("#stop")).to_be_disabled()
    tabs = page.get_by_role("tab")
    assert [tab.inner_text() for tab in tabs.all() if tab.is_visible()] == ["1 · box 2", "2 · box 1"]
    assert [row[0] for row in boxes_of(page)] == ["box 2", "box 1"]  # the newest is first
    scenes = make_scenes("train", 4096)
    for place, name in enumerate(reversed(there)):
        tabs.nth(place).click()
        rows = rows_of(page)
        hits = [name in {placed.name for placed in scenes[row].objects} for row in rows]
        assert sum(hits) >= len(hits) / 2, (name, hits)
        for method in ("influence+", "dino", "clip"):
            assert len(rows_of(page, method)) > 5
    tabs.nth(0).click()
    run_id = page.locator(".kept:visible").get_attribute("data-run")
    with page.expect_download() as download:
        page.locator(".kept:visible a", has_text="JSON").click()
    told = json.loads(Path(download.value.path()).read_text())
    assert told["id"] == run_id
    assert told["query"]["prompt"] == PROMPT
    assert told["query"]["boxes"] == [corners(page)[0]]
    shown = rows_of(page)
    assert [row for row in told["answers"][0]["rows"][:10] if row in shown] == shown  # but for folded duplicates
    with page.expect_download() as download:
        page.locator(".kept:visible a", has_text="ZIP").click()
    with zipfile.ZipFile(download.value.path()) as archive:
        assert json.loads(archive.read("run.json")) == told
        assert Image.open(archive.open("picture.png")).size == (SIZE, SIZE)
    page.locator(".large:visible .card[data-row] button").nth(1).click()
    opened = page.locator(".opened")
    expect(opened).to_contain_text(f"row {shown[1]} of 4,096")
    expect(opened).to_contain_text("2 of 16")
    assert opened.locator("svg g").count() == 10
    for other in visit(chromium, f"{address}/?run={run_id}"):
        other.wait_for_selector(f".kept[data-run='{run_id}']")  # at first there is an example
        assert rows_of(other) == shown
        assert corners(other) == [corners(page)[0]]
        expect(other.locator("#run-status")).to_contain_text(f"run {run_id}")


def test_boxes_and_their_table_stay_in_step(page: Page) -> None:
    generate(page)
    draw(page, 0.2, 0.2, 0.6, 0.6)
    page.wait_for_function("document.querySelectorAll('#boxes .virtual-row').length === 2")
    assert corners(page)[0] == pytest.approx([0.2 * SIZE] * 2 + [0.6 * SIZE] * 2, abs=SIZE / 32)
    assert boxes_of(page)[0][0] == "box 1"
    page.click("#clear")
    page.wait_for_function("document.querySelectorAll('#boxes .virtual-row').length === 1")
    assert boxes_of(page) == []
    page.wait_for_timeout(1000)  # the annotator's own news of it
    type_box(page, 8, 8, 40.5, 40)
    page.wait_for_function("document.querySelectorAll('#boxes .virtual-row').length === 2")
    type_box(page, 20, 20, 60, 60, row=1)
    page.wait_for_function("document.querySelectorAll('#boxes .virtual-row').length === 3")
    typed = [["", "8", "8", "40.5", "40"], ["", "20", "20", "60", "60"]]
    assert boxes_of(page) == typed
    draw(page, 0.05, 0.8, 0.25, 0.95)  # on a picture that shows the others, or they would be gone
    page.wait_for_function("document.querySelectorAll('#boxes .virtual-row').length === 4")
    assert [box for box in boxes_of(page) if box in typed] == typed


def test_a_word_of_the_example_that_is_open_at_first_can_be_picked(page: Page) -> None:
    page.get_by_label("motorcycle", exact=True).check()
    expect(page.locator("#maps img")).to_have_count(1)


def test_objects_are_found(page: Page) -> None:
    generate(page)
    expect(page.locator("#labels input, #labels textarea")).to_have_value("red apple . motorcycle")
    page.click("#find")
    expect(page.locator("#found")).to_contain_text("Found by")
    assert {row[0] for row in boxes_of(page)} <= {"red apple", "motorcycle"}
    assert boxes_of(page)
    page.fill("#labels input, #labels textarea", "motorcycle . green motorcycle")
    page.click("#find")
    expect(page.locator("#found")).to_contain_text("Not found: “green motorcycle”")


def test_generating_is_stopped_and_the_picture_before_is_kept(page: Page) -> None:
    generate(page)
    type_box(page, 8, 8, 40, 40)
    page.click("#sampling button")
    page.fill("#steps input[type=number]", "100")
    page.press("#steps input[type=number]", "Tab")
    page.fill("#seed input", "8")
    page.locator("#generate").click()
    page.evaluate(
        "() => new Promise(done => { (function stop() { const button = document.querySelector('#stop');"
        " button.disabled ? setTimeout(stop, 5) : done(button.click()) })() })"
    )  # at once: a picture takes no long
    expect(page.locator("#picture-note")).to_contain_text("Stopped; the picture before is kept")
    expect(page.locator("#generate")).to_be_enabled()
    expect(page.locator("#stop")).to_be_disabled()
    assert corners(page) == [[8, 8, 40, 40]]


def test_generating_again_without_it(page: Page) -> None:
    generate(page)
    page.click("#check button")
    page.click("#forget")
    expect(page.locator(".forgotten figure")).to_have_count(3, timeout=LONG)
    await_state(page, "done")


def test_generating_again_without_training_images(page: Page) -> None:
    """Of the example that is open: the picture without the named ones, without random ones, and two controls."""
    page.click("#check button")
    page.click("#named input")
    page.locator("#named [role=option]").filter(has_text="d-trak").click()
    page.click("#remove")
    expect(page.locator("#removed figure")).to_have_count(4, timeout=LONG)
    await_state(page, "done")
    expect(page.locator("#run-status")).to_contain_text("without the 10 of d-trak")
    expect(page.locator("#removed .told")).to_contain_text("The named images matter more to this picture")
    expect(page.locator("#remove")).to_be_enabled()
    generate(page)  # another picture: nothing of it can be taken away yet
    expect(page.locator("#removal")).to_be_hidden()
    expect(page.locator("#removed figure")).to_have_count(0)


def test_searching_from_a_training_image(page: Page) -> None:
    page.locator(".large .card[data-row] button").first.click()  # of the example
    page.click("#search")
    expect(page.locator("#picture-note")).to_contain_text("taken as the picture")
    expect(page.locator(".card")).to_have_count(0)


def test_a_closed_tab_frees_the_device(page: Page, other: Page) -> None:
    generate(page)
    page.get_by_label("Every image").check()
    page.click("#attribute")
    await_state(page, "running")
    generating = other.locator("#generate")
    generating.click()
    page.close()
    expect(other.locator("#picture-note")).to_contain_text("Generated", timeout=60_000)


def test_visitors_do_not_see_each_other(page: Page, other: Page) -> None:
    note = other.locator("#picture-note p")
    told = note.inner_text()
    assert "seed 7." in told  # the example that is open at first
    generate(page, seed=3)
    expect(note).to_have_text(told)
    other.reload()
    expect(note).to_have_text(told)


@pytest.mark.parametrize(
    ("box", "said"),
    [
        ((0, 0, SIZE + 26, 32), f"0, 0, {SIZE + 26}, 32 reaches outside the picture"),
        ((40, 0, 8, 32), "40, 0, 8, 32 is empty, reversed or too small"),
        ((0, 0, 3, 32), f"each side {LATTICE} px or more"),
        ((0, 0, 32), "Y1 of box 1 is empty"),
    ],
)
def test_a_bad_box(page: Page, box: tuple[float, ...], said: str) -> None:
    """Refused where it is typed as soon as it is whole, and by Attribute; it stays, to be mended."""
    prompt = open_example(page, "An upload")["query"]["prompt"]
    type_box(page, *box)
    if len(box) == 4:
        expect(page.locator("#marked")).to_contain_text(said)
    page.click("#attribute")
    await_state(page, "error")
    assert said in toast(page)
    expect(page.locator("#run-status")).to_contain_text(said)
    assert [cell for cell in boxes_of(page)[0] if cell] == [str(number) for number in box]
    expect(page.locator("#prompt textarea")).to_have_value(prompt)
    expect(page.locator("#attribute")).to_be_enabled()


def test_an_empty_prompt_and_bad_seeds(page: Page) -> None:
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
    page.click("#settings button")
    page.wait_for_timeout(1000)  # Gradio mounts what an accordion hides when it opens
    page.fill("#top-k input", "0")
    page.press("#top-k input", "Tab")
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


def test_api(address: str, tmp_path: Path) -> None:
    client = Client(address, verbose=False, download_files=str(tmp_path))
    try:
        picture = client.predict(PROMPT, 7, 25, 3, api_name="/generate")
        with Image.open(picture) as image:
            assert image.size == (SIZE, SIZE)
        found = client.predict(handle_file(picture), "motorcycle", PROMPT, 0.2, api_name="/detect")
        assert {each["label"] for each in found} == {"motorcycle"}
        asked = (handle_file(picture), PROMPT, 7, [[0, 0, 32, 32]], "", "d-trak", 5, False)
        answer = client.predict(*asked, api_name="/attribute")
        assert answer["method"] == "d-trak"
        assert [result["rank"] for result in answer["results"]] == [1, 2, 3, 4, 5]
        with zipfile.ZipFile(client.predict(answer["run"], api_name="/report")) as archive:
            assert json.loads(archive.read("run.json"))["id"] == answer["run"]
        again = client.predict(prompt=PROMPT, seed=7, method="d-trak", top_k=5, api_name="/attribute")  # no picture
        assert again["query"]["image_sha256"] == answer["query"]["image_sha256"]
        for changed, said in (({6: 0}, "Top_k = 0"), ({3: "x"}, "Boxes"), ({5: "magic"}, "There is no method")):
            wrong = [changed.get(place, value) for place, value in enumerate(asked)]
            with pytest.raises(AppError, match=said):
                client.predict(*wrong, api_name="/attribute")
        endpoints = client.view_api(return_format="dict")["named_endpoints"]
        assert sorted(endpoints) == ["/attribute", "/detect", "/generate", "/report"]
        for endpoint in endpoints.values():  # MCP refuses a tool whose schema it cannot read
            assert all(each["type"].get("type") or each["type"].get("anyOf") for each in endpoint["parameters"])
    finally:
        client.close()


def test_what_the_server_answers_beside_the_page(address: str) -> None:
    assert httpx.get(f"{address}/healthz").json()["status"] == "ok"
    index = httpx.get(f"{address}/healthz").json()["index"]
    thumbnail = httpx.get(f"{address}/thumbnails/{index}/12.png")
    assert thumbnail.headers["content-type"] == "image/png"
    others = ("thumbnails/12.png", f"thumbnails/{'0' * len(index)}/12.png")  # browsers keep them by their address
    for wrong in (
        *others,
        f"thumbnails/{index}/4096.png",
        f"thumbnails/{index}/-1.png",
        "runs/000000000000.zip",
        "runs/..%2f..%2fapp.py",
    ):
        assert httpx.get(f"{address}/{wrong}").status_code in (404, 422), wrong


def test_tiny_pictures_are_enlarged_without_smoothing() -> None:
    image = Image.effect_noise((64, 64), 90).convert("RGB")
    copy, frame = shown_copy(image)
    assert frame == {"width": 64, "height": 64, "factor": 8}
    assert copy.resize((64, 64), Image.Resampling.NEAREST).tobytes() == image.tobytes()


def test_other_pictures_are_enlarged_smoothly() -> None:
    image = Image.new("RGB", (128, 128), "white")
    image.paste("black", (64, 0, 128, 128))
    copy, frame = shown_copy(image)
    assert frame == {"width": 128, "height": 128, "factor": 4}
    assert copy.getpixel((250, 256))[0] > 200 > 50 > copy.getpixel((262, 256))[0]
    assert 50 < copy.getpixel((255, 256))[0] < 200  # between the two
    large, frame = shown_copy(Image.new("RGB", (4000, 3000)))
    assert large.size == (1024, 768)
    assert frame["factor"] == pytest.approx(0.256)


def test_regions_are_the_tables_boxes_then_the_words() -> None:
    assert read_regions([], []) == [Region("whole picture")]
    assert read_regions([["", None, None, None, None], ["", "", "", "", ""]], []) == [Region("whole picture")]
    assert read_regions([["cat", 0, "1", 8.5, 9]], ["dog"]) == [
        Region("cat", ((0.0, 1.0, 8.5, 9.0),), label="cat"),
        Region("“dog”", word="dog"),
    ]
    rows = [[label, 0, 0, 9, 9] for label in ("", "box 1", " box 3", None)]
    assert [region.name for region in read_regions(rows, [])] == ["box 2", "box 1", "box 3", "box 4"]
    assert [region.label for region in read_regions(rows, [])] == ["box 2", "box 1", "box 3", "box 4"]
    for row, said in (
        (["", 0, 1, None, 5], "x1 of box 1 is empty"),
        (["", 0, "x", 1, 5], "y0 of box 1 is 'x'"),
        (["", 0, float("nan"), 1, 5], "y0 of box 1 is nan"),
        (["", 0, 1], "box 1 has 2 numbers"),
    ):
        with pytest.raises(InputError, match=said):
            read_regions([row], [])
    with pytest.raises(InputError, match="5 regions are marked; accepted are up to 4"):
        read_regions([["", 0, 0, 9, 9]] * 3, ["a", "b"])


def test_words_escape_what_people_type() -> None:
    assert "<script>" not in words.note("<script>")
    assert "<script>" not in words.status("error", "", "<script>")
    assert "<script>" not in words.word_figure("<script>", "data:")
    pictures = Image.new("RGB", (2, 2)), Image.new("RGB", (2, 2), (255, 0, 0))
    told = again.forgotten([(Regenerated("<script>", *pictures, strength=1, inside=1 / 3), "data:", "data:")])
    assert "<script>" not in told
    assert "changed by 33%" in told
