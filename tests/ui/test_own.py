"""The page of an index of one's own: a tiny model and a folder of pictures of unequal sizes, and a tiny SDXL."""

import json
import re

import pytest
from browser import await_state, served, visit
from conftest import build_all, random_picture, save_tiny_pipeline
from playwright.sync_api import Browser, Page, expect
from sdxl import save_tiny_xl

from attribution.diffusion.noise import NoiseSettings
from attribution.diffusion.pipeline import Model
from attribution.index.data import DataSettings
from attribution.index.work import BuildSettings
from attribution.unlearning.fisher import FisherSettings

SIZES = ((64, 48), (40, 90), (32, 32))
THINGS = ("brown dog", "old boat", "red bicycle")
MODELS = {"tiny-sd": lambda folder: save_tiny_pipeline(folder, "epsilon"), "tiny-xl": save_tiny_xl}
FOREIGN = ("emoji", "motorcycle", "flat drawing", "guitar", "openmoji", "1,024 training images", "d-trak's top ten")


@pytest.fixture(scope="module", params=MODELS)
def own(request, tmp_path_factory):
    """The folder of a model, its training pictures, and its index, each by what it is called; and the address."""
    folder = tmp_path_factory.mktemp("own")
    MODELS[request.param](folder / request.param)
    pictures = folder / "holiday-photos"
    pictures.mkdir()
    rows = [{"file_name": f"{n}.jpg", "text": f"a photo of a {THINGS[n % 3]} on a beach"} for n in range(12)]
    for number, row in enumerate(rows):
        random_picture(number, SIZES[number % 3]).save(pictures / row["file_name"])
    (pictures / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = BuildSettings(
        DataSettings(train_data_dir=pictures), NoiseSettings(3, 1, 5), FisherSettings(samples=8, timesteps=7)
    )
    index = build_all(folder / "index", Model.load(folder / request.param), settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")  # the published detector is not asked for
        with served(folder / "log.txt", folder / "gradio", index, ask_above=0) as address:
            yield folder, request.param, address


@pytest.fixture
def page(own, chromium: Browser):
    yield from visit(chromium, own[2])


def test_nothing_of_another_world_is_on_it(own, page: Page) -> None:
    folder, model, _ = own
    expect(page.locator("#intro .about")).to_have_text(
        f"It shows {model}, which makes pictures of 32 px, and the 12 training images of holiday-photos."
    )
    expect(page.locator("#prompt textarea")).to_have_value("a photo of a brown dog on a beach")
    expect(page.locator("#chips button")).to_have_text(["beach", *THINGS, "Random prompt"])
    expect(page.locator("#labels :is(input, textarea)")).to_have_attribute("placeholder", "beach . brown dog")
    for part in ("#proof", "#examples button"):
        expect(page.locator(part)).to_have_count(0)
    whole = page.content().lower()
    for word in (*FOREIGN, str(folder).lower()):
        assert word not in whole, word


def test_a_chip_makes_a_prompt_of_its_captions(page: Page) -> None:
    page.locator("#chips").get_by_role("button", name="old boat").click()
    expect(page.locator("#prompt textarea")).to_have_value(re.compile(r"a photo of .*old boat"))


def test_objects_are_found_by_words_where_no_detector_can_be_had(page: Page) -> None:
    page.click("#generate")
    expect(page.locator("#picture-note")).to_contain_text("seed 7.")
    page.click("#find")
    expect(page.locator("#found")).to_contain_text("Found by cross-attention to the prompt's words")
    expect(page.locator("#found")).to_contain_text("brown dog")


def test_an_answer_is_begun_when_its_time_was_told_and_shows_crisp_training_images_by_name(own, page: Page) -> None:
    folder, _, _ = own
    page.click("#generate")
    expect(page.locator("#picture-note")).to_contain_text("seed 7.")
    page.click("#attribute")
    await_state(page, "asked")
    expect(page.locator("#run-status")).to_contain_text("This takes about")
    page.get_by_role("button", name="Begin").click()
    await_state(page, "done")
    expect(page.locator("#attribute")).to_have_text("Attribute")
    assert page.evaluate("[...document.querySelectorAll('.large img')].every((image) => image.naturalWidth === 32)")
    page.locator(".large:visible .card[data-row] button").first.click()
    expect(page.locator(".opened .note").first).to_contain_text("of 12 of holiday-photos.")
    page.click("#settings button")
    expect(page.locator("#missing")).to_contain_text("clip --features clip")
    assert str(folder) not in page.content()
    run = page.locator(".kept:visible").get_attribute("data-run")
    for kind in ("json", "html", "csv"):
        assert str(folder) not in page.request.get(f"{own[2]}/runs/{run}.{kind}").text(), kind
