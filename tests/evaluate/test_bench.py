"""The bench: the published recipe is our exhaustive way, figures are what was measured, sizes are told apart."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import random_picture

from attribution.cli import main
from attribution.diffusion.pipeline import Model
from attribution.errors import WorkFailed
from attribution.evaluate import bench as bench_module
from attribution.evaluate import growth, machine, recipe, twice
from attribution.evaluate.bench import BenchSettings, bench
from attribution.evaluate.figures import ESTIMATE, EXHAUSTIVE, GENERATE, RECIPE, Taken, known_lds, summary, table
from attribution.evaluate.findings import Findings
from attribution.evaluate.growth import ANSWER, STAGES, Grown, Growth, GrowthSettings, apart, exponent, grow
from attribution.evaluate.machine import Meter, Spent, peak_memory
from attribution.evaluate.recipe import RecipeSettings, Run, fraction, measure
from attribution.evaluate.stretched import stretch
from attribution.index.index import Index
from attribution.index.manifest import Manifest
from attribution.methods import METHODS, attribute
from attribution.methods.answer import AttributeSettings
from attribution.methods.candidates import sources
from attribution.query.encoded import encode
from attribution.query.query import Query
from attribution.unlearning.step import UnlearnSettings, query_bank

QUICK = UnlearnSettings(timesteps=3, noises=1, step_size=0.3)
PLAIN = UnlearnSettings()
BOXED = Query("a red bird and a blue key", random_picture(99), None, ((0.0, 0.0, 16.0, 32.0),))
KEYS = {"machine", "images", "median_seconds", "evaluations", "rss_mb", "queries"}  # of earlier versions


# The published recipe


def test_the_recipe_is_the_exhaustive_way_with_the_same_samples_and_noises(model, index):
    rows, asked = [5, 0, 3], encode(model, BOXED)
    settings = AttributeSettings(top_k=8, exhaustive=True, unlearn=QUICK)
    *_, ours = attribute(model, index, BOXED, settings)
    expected = {result.row: result.score for result in ours.results}
    samples, noises = query_bank(model, QUICK), index.bank(model)
    *parts, scores = recipe.recipe(model, index, asked, rows, samples, noises, QUICK)
    assert parts == [recipe.BEFORE] * 3 + [recipe.GRADIENT] + [recipe.AFTER] * 3
    np.testing.assert_allclose(scores.numpy(), [expected[row] for row in rows], rtol=1e-4)
    assert Model.sha256.func(model) == model.sha256


def test_what_a_fraction_takes_is_scaled_to_all_of_it(model32, index32):
    settings = RecipeSettings(images=3, gradients=90)
    with Meter(model32) as meter:
        *steps, run = measure(meter, model32, index32, encode(model32, BOXED), settings)
    assert len(steps) == 3 + 2 + 3
    assert isinstance(run, Run)
    assert sorted(run.rows) == [0, 2, 5]
    assert run.whole.predictions == pytest.approx(50_000 + 8 * 2 * 20)
    assert "on 3 of 8 training images at 20 timesteps" in fraction(index32, settings).sentence
    assert fraction(index32, settings).told["scaled_by"] == {"images": 8 / 3, "gradients": 50_000 / 90}


# What is measured with


def test_a_meter_counts_predictions_while_it_is_open(model32):
    latents, text = torch.zeros(3, *model32.latent_shape), model32.encode_text(["a", "b", "c"])
    with Meter(model32) as meter, torch.inference_mode():
        began = meter.read()
        model32.predict(latents, torch.ones(3), text)
        spent = meter.read() - began
        assert spent.predictions == 3
        assert spent.seconds > 0
    model32.predict(latents, torch.ones(3), text)
    assert (meter.read() - began).predictions == 3
    assert 2 * Spent(1, 2, 3) - Spent(1, 1, 1) == Spent(1, 3, 5)


def test_the_peak_of_memory_is_this_programs_own(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "STATUS", tmp_path / "status")
    assert peak_memory() > 10
    (tmp_path / "status").write_text("Name:\tpython\nVmHWM:\t   2000 kB\n")
    assert peak_memory() == 2.048


# Figures


def taken(seconds, predictions, rows=()):
    return Taken(Spent(seconds, 2 * seconds, predictions), tuple(rows))


@pytest.mark.parametrize(("estimate", "lds"), [("d-trak", 0.2), ("influence+", 0.25), ("", None)])
def test_a_line_holds_medians_ratios_and_means(estimate, lds):
    best, other = list(range(60)), [*range(5), *range(60, 115)]
    takes = {
        GENERATE: {number: taken(2.0, 50) for number in range(3)},
        ESTIMATE: {0: taken(1.0, 10, other[:10])},
        "unlearning+": {number: taken(seconds, 400, best) for number, seconds in enumerate((4.0, 5.0, 9.0))},
        RECIPE: {0: taken(500.0, 40_000, range(54, -1, -1))},
        EXHAUSTIVE: {0: taken(50.0, 4_000, best)},
    }
    again = {"unlearning+": {1: taken(1.0, 1, [*range(8), 70, 71])}}
    own = {"unlearning+": {2: taken(1.0, 1, [*range(9), 150])}}
    known = {"unlearning+": 0.3, "d-trak": 0.2, "influence+": 0.25}
    lines = {line.way: line for line in summary(takes, again, own, "unlearning+", estimate, known, 200)}
    settled, first = lines["unlearning+"], lines[ESTIMATE]
    assert (settled.queries, settled.evaluations, settled.seconds, settled.cpu_seconds) == (3, 400, 5.0, 10.0)
    assert (settled.fewer, settled.faster, settled.pictures) == (100, 100, 2.5)
    assert (settled.overlap, settled.correlation, settled.steadiness) == ({10: 1.0, 50: 1.0}, pytest.approx(1), 0.8)
    assert (settled.found, first.found) == (0.9, None)
    assert (settled.lds, first.lds, lines[EXHAUSTIVE].lds, lines[RECIPE].lds) == (0.3, lds, 0.3, None)
    assert (first.overlap, first.correlation, first.steadiness) == ({10: 0.5}, None, None)  # ten are too few
    assert (lines[RECIPE].correlation, lines[RECIPE].overlap) == (pytest.approx(-1), {})  # it ranks a few images
    assert table([first]).splitlines()[-1].startswith(f"| {ESTIMATE} | 1 | 10 | 1 | 2 | 4,000 | 500 | 0.5 | 0.50 |  |")


def test_ways_without_an_exhaustive_ranking_or_a_recipe_have_no_comparison():
    only = {GENERATE: {0: taken(2.0, 50)}, "clip": {0: taken(1.0, 0, range(9))}}
    line = summary(only, {}, {}, "unlearning+", "d-trak", {}, 9)[1]
    assert (line.fewer, line.faster, line.overlap, line.correlation, line.lds) == (None, None, {}, None, None)


def test_lds_is_that_of_the_committed_results():
    found = known_lds()
    assert found["ensemble"] == max(found.values())
    assert (round(found["ensemble"], 3), round(found["unlearning+"], 3)) == (0.284, 0.264)


# Growth


def test_an_exponent_is_the_slope_of_logarithms():
    assert exponent({4000: 2.0, 16_000: 4.0, 64_000: 8.0}) == pytest.approx(0.5)
    assert exponent({1000: 1.0, 10_000: 1.0, 100_000: 100.0}) == pytest.approx(1.0)
    assert exponent({4000: 2.0}) is None


def test_growth_is_told_from_the_large_sizes_alone():
    def grown(images, seconds, peak):
        return Grown(images, dict.fromkeys(STAGES, Spent(seconds, 2 * seconds)), peak)

    sizes = (grown(1000, 99.0, 1.0), grown(4000, 1.0, 900.0), grown(64_000, 2.0, 1100.0))
    found = Growth(512, sizes)
    assert found.exponents("cpu")[ANSWER] == pytest.approx(0.25)
    assert "as N^0.25, within the bar of N^0.3; memory by 200 MB, within the bar" in found.sentences[1]
    assert "beyond the bar of N^0.3" in Growth(512, (*sizes[:2], grown(64_000, 4.0, 1100.0))).sentences[1]
    assert len(Growth(512, sizes[:2]).sentences) == 1
    assert len(found.table.splitlines()) == 2 + 3 + 2


@pytest.fixture
def quick(monkeypatch):
    """Methods are asked with few noises: how many there are is not what is tested."""

    def few(method, **more):
        return replace(AttributeSettings(method, **more), unlearn=QUICK if METHODS[method].curvature else PLAIN)

    for module in (bench_module, growth, twice):
        monkeypatch.setattr(module, "AttributeSettings", few)
    monkeypatch.setattr(growth, "apart", lambda work, *arguments: work(*arguments))


@pytest.mark.usefixtures("quick")
def test_a_search_is_measured_at_every_size(model32, full_index):
    *steps, found = grow(full_index, GrowthSettings((24, 10), 10, 1), BOXED, "cpu")
    assert [each for each in steps if isinstance(each, str)][-1] == "growth: a search among 24 images"
    assert [each.images for each in found.sizes] == [10, 24]
    for each in found.sizes:
        assert each.peak > 0
        assert set(each.spent) == set(STAGES)
        parts = STAGES[2:-1]
        assert sum(each.spent[stage].seconds for stage in parts) == pytest.approx(each.spent[ANSWER].seconds)
        assert all(each.spent[stage].predictions for stage in parts)
    assert found.sizes[0].spent["unlearning"].predictions == found.sizes[1].spent["unlearning"].predictions


@pytest.mark.parametrize("named", [["d-trak"], ["influence+"], ["influence+", "d-trak"]])
def test_a_stretched_index_begins_with_its_own_images_and_goes_on_with_others_near(
    full_folder, model32, query, tmp_path, named
):
    folder = Path(shutil.copytree(full_folder, full_folder.parent / f"of-{tmp_path.name}"))
    for source in {"d-trak", "influence+"} - set(named):
        Manifest.read(folder).lacking(f"gradients/{source}").write(folder)
    full_index = Index.open(folder)
    assert list(stretch(full_index, tmp_path, 20)) == ["latents", "base_losses", *(f"gradients/{n}" for n in named)]
    index = Index.open(tmp_path)
    index.check(model32)
    assert len(index) == 20
    assert sources(index) == named
    assert (index.captions[17], index.ids[17]) == (full_index.captions[1], "17")
    np.testing.assert_array_equal(index.base_losses[8:16], full_index.base_losses)
    pairs = [(index.latents, full_index.latents)]
    pairs += [tuple(each.array(f"gradients/{name}")[0] for each in (index, full_index)) for name in named]
    for new, old in pairs:
        np.testing.assert_array_equal(new[:8], old)
        assert not np.array_equal(new[8:12], new[16:20])
        if old.dtype == np.uint8:
            assert new.dtype == np.uint8
            turned = np.unpackbits(new[8:16] ^ old, axis=-1)
            assert 0.04 < turned.mean() < 0.06  # of a thousand bits in each of sixteen rows
            assert (np.abs(turned.mean((0, 1)) - 0.05) < 0.3).all()
        else:
            apart_by = np.abs(np.float32(new[8:16]) - np.float32(old))
            assert 0 < apart_by.max() < old.astype(np.float32).std()
    for name in named:
        *_, answer = attribute(model32, index, query, AttributeSettings(name, top_k=20))
        *_, own = attribute(model32, full_index, query, AttributeSettings(name, top_k=8))
        assert answer.settings.method == name
        if name == "influence+":
            theirs = {result.row: result.score for result in own.results}
            assert {each.row: each.score for each in answer.results if each.row < 8} == theirs
    shutil.rmtree(folder)


def test_work_apart_has_a_process_of_its_own_and_its_end_is_told():
    assert apart(os.getpid) != os.getpid()
    with pytest.raises(WorkFailed, match="a process that measured was ended"):
        apart(os._exit, 1)


# The command


@pytest.mark.usefixtures("quick")
def test_the_command_tells_every_way_and_keeps_earlier_keys(full_folder, tmp_path, capsys):
    out = tmp_path / "bench.json"
    less = ("--recipe_images", "2", "--recipe_gradients", "3", "--steady", "1", "--methods", "ensemble", "clip")
    assert main(["bench", "--index", str(full_folder), "--queries", "2", "--out", str(out), *less]) == 0
    told, lines = json.loads(out.read_text()), capsys.readouterr().out.splitlines()
    assert set(told) > KEYS
    assert set(told["median_seconds"]) == {"generate", "first_top_k", "attribute"}
    assert [len(each["boxes"]) for each in told["queries"]] == [0, 1]
    assert all(
        {"generate", "first_top_k", "attribute", "evaluations", "rss_mb"} < set(each) for each in told["queries"]
    )
    ways = told["ways"]
    assert set(ways) == {
        *("generating the picture", "encoding the query", "first estimate", "ensemble", "clip"),
        *("published recipe", "all images, all noises"),
    }
    assert ways["generating the picture"]["evaluations"] == 50
    assert ways["published recipe"]["fewer"] == ways["generating the picture"]["pictures"] == 1
    assert ways["all images, all noises"]["overlap"] == {"10": 1.0, "50": 1.0}
    assert ways["ensemble"]["steadiness"] == 1.0  # of eight images, all are among the first ten
    assert ways["ensemble"]["evaluations"] == told["evaluations"] > ways["first estimate"]["evaluations"]
    assert told["peak_memory_mb"] >= max(told["rss_mb"])
    assert [line.split(" | ")[0].strip("| ") for line in lines[2:9]] == list(ways)


def test_what_was_measured_is_there_after_every_picture(model32, full_index):
    steps = bench(model32, full_index, BenchSettings(queries=2, methods=("random",)))
    found = next(step for step in steps if isinstance(step, Findings))
    assert len(found.json["queries"]) == 1
    assert json.loads(json.dumps(found.json))["ways"]["random"]["queries"] == 1
    assert "At most" in found.markdown


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--queries", "0"), "queries = 0 is not possible; accepted are whole numbers from 1"),
        (("--exhaustive", "-1"), "exhaustive = -1 is not possible; accepted are whole numbers from 0"),
        (("--recipe_images", "0"), "recipe_images = 0 is not possible"),
        (("--recipe_gradients", "0"), "recipe_gradients = 0 is not possible"),
        (("--methods", "magic"), "there is no method 'magic'; accepted are unlearning"),
        (("--methods", "dino"), "holds no features/dino"),
        (("--growth", "8", "4000"), "growth = 8 is not possible; accepted are whole numbers from 512, the candidates"),
        (("--growth_pool", "4"), "growth_pool = 4 is not possible; accepted are whole numbers from 10"),
        (("--growth_answers", "0"), "growth_answers = 0 is not possible"),
        (("--growth", "600"), "holds no gradients/d-trak"),
        (("--seed", "-1"), "seed -1 is not possible"),
        (("--out", "nowhere/at/all.json"), "nowhere/at does not exist"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_any_work(flags, told, refused):
    assert told in refused("bench", *flags)
