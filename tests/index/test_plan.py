"""What a build will take, told beforehand: the build's own steps, its bytes on disk, and nothing written."""

from dataclasses import replace

import pytest

from attribution.cli import main
from attribution.cli.costs import size, table
from attribution.errors import IndexMismatch, InputError
from attribution.index import plan as planning
from attribution.index.build import LOOKED_AT, build
from attribution.index.index import Index
from attribution.index.manifest import Manifest
from attribution.index.plan import QUERIES, Cost, plan
from attribution.index.work import ExtendSettings
from attribution.methods.answer import AttributeSettings
from attribution.methods.unlearning import predicted
from attribution.unlearning.fisher import FisherSettings, samples_for
from attribution.unlearning.projection import GradientSettings

MORE = ExtendSettings(
    fisher_all=True,
    ekfac=True,
    gradients=("loss", "influence", "influence+"),
    projection=GradientSettings(dimension=64),
)


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def written(folder, step):
    """Bytes on disk of a step's file or folder."""
    return sum(
        len(content)
        for name, content in files_of(folder).items()
        if name.split(".")[0] == step or name.startswith(f"{step}/")
    )


@pytest.mark.parametrize("more", [ExtendSettings(), MORE])
def test_a_plan_names_the_steps_that_a_build_makes_and_what_they_write(model32, tiny_settings, tmp_path, more):
    costs = list(plan(tmp_path / "index", model32, tiny_settings, more))
    assert not (tmp_path / "index").exists()
    made = list(dict.fromkeys(each.step for each in build(tmp_path / "index", model32, tiny_settings, more)))
    names = [each.name for each in costs]
    assert names == [LOOKED_AT, *made, *QUERIES]
    steps = costs[1 : -len(QUERIES)]
    for each in steps:
        assert each.bytes == pytest.approx(written(tmp_path / "index", each.name), rel=0.1), each.name
    whole = sum(written(tmp_path / "index", name) for name in made)
    assert sum(each.bytes for each in steps) == pytest.approx(whole, rel=0.1)
    assert all(each.seconds > 0 and each.memory > 0 for each in costs)


def test_a_plan_of_an_index_that_is_there_is_of_what_it_lacks(model32, tiny_settings, plain_copy):
    steps = build(plain_copy, model32, tiny_settings, ExtendSettings(gradients=("loss",), projection=MORE.projection))
    next(steps)
    steps.close()  # six of eight images are done
    before = files_of(plain_copy)
    costs = {each.name: each for each in plan(plain_copy, model32, tiny_settings, MORE)}
    assert files_of(plain_copy) == before
    made = {each.step for each in build(plain_copy, model32, tiny_settings, MORE)}
    assert set(costs) == {LOOKED_AT, *made, *QUERIES}
    assert costs["gradients/loss"].count == 2
    assert costs["gradients/influence"].count == costs["gradients/influence+"].count == 8
    assert [each.name for each in plan(plain_copy, model32, tiny_settings, MORE)] == [LOOKED_AT, *QUERIES]


@pytest.mark.parametrize("held", [True, False])
def test_signed_gradients_are_priced_where_ekfac_is_there_and_where_it_is_begun(
    model32, tiny_settings, plain_copy, held
):
    """From EK-FAC that is made in a passing folder, or from the index's own."""
    more = replace(MORE, fisher_all=False, gradients=("influence+",))
    steps = build(plain_copy, model32, tiny_settings, ExtendSettings(ekfac=True))
    for each in steps:
        if not held and each.step == "ekfac-factors":
            steps.close()
            break
    before = files_of(plain_copy)
    costs = {each.name: each for each in plan(plain_copy, model32, tiny_settings, more)}
    assert files_of(plain_copy) == before
    assert costs["gradients/influence+"].count == 8
    assert ("ekfac" in costs) != held
    run = {each.step for each in build(plain_copy, model32, tiny_settings, more)}
    assert set(costs) == {LOOKED_AT, *run, *QUERIES}
    assert costs["gradients/influence+"].bytes == pytest.approx(written(plain_copy, "gradients/influence+"), rel=0.1)


def test_a_plan_refuses_what_a_build_does(model32, tiny_settings, plain_copy, tmp_path):
    other = replace(tiny_settings, fisher=FisherSettings(samples=40, timesteps=7, seed=6))
    with pytest.raises(IndexMismatch, match="'samples': 37"):
        next(plan(plain_copy, model32, other))
    with pytest.raises(InputError, match="no feature 'sift'"):
        next(plan(tmp_path / "index", model32, tiny_settings, ExtendSettings(features=("sift",))))
    with pytest.raises(InputError, match="add --ekfac"):
        next(plan(tmp_path / "index", model32, tiny_settings, ExtendSettings(gradients=("influence+",))))


def test_a_plan_measures_no_more_calls_than_it_needs(model32, tiny_settings, tmp_path, monkeypatch):
    """Of slow calls one; it does not wait for a block of several."""
    monkeypatch.setattr(planning, "LONG", 0.0)
    monkeypatch.setattr(planning, "LEAST", 0.0)
    calls, predict = [], model32.predict
    monkeypatch.setattr(model32, "predict", lambda *args: calls.append(len(args[0])) or predict(*args))
    costs = {each.name: each for each in plan(tmp_path / "index", model32, tiny_settings)}
    assert calls == [6, 6]  # for the losses, and for the Fisher information
    assert costs["base_losses"].count == 8


def test_a_query_is_planned_with_the_predictions_that_it_makes(model32, tiny_settings, index_folder):
    raced, exhaustive = list(plan(index_folder, model32, tiny_settings))[-2:]
    index = Index.open(index_folder)
    assert raced.count == predicted(index, AttributeSettings())
    assert exhaustive.count == predicted(index, AttributeSettings(exhaustive=True))


# How many samples


@pytest.mark.parametrize(
    ("images", "samples"), [(1, 1024), (24, 1024), (1000, 4000), (4096, 16_384), (118_287, 65_536), (10**7, 65_536)]
)
def test_samples_follow_the_number_of_images(images, samples):
    assert samples_for(images) == samples


def test_an_index_goes_on_with_the_samples_that_it_has(model32, tiny_settings, plain_copy, tmp_path):
    default = replace(tiny_settings, fisher=FisherSettings(timesteps=7, seed=6))
    assert list(build(plain_copy, model32, default)) == []
    assert Manifest.read(plain_copy).settings.fisher.samples == 37
    next(build(tmp_path / "index", model32, default))
    assert Manifest.read(tmp_path / "index").settings.fisher.samples == 1024


# In words


def test_a_dry_run_prints_a_table_and_writes_nothing(capsys, tiny_folder, pictures, tmp_path):
    asked = ("--pretrained_model_name_or_path", str(tiny_folder), "--train_data_dir", str(pictures))
    assert main(["index", *asked, "--timesteps", "2", "--out", str(tmp_path / "index"), "--dry_run"]) == 0
    assert list(tmp_path.iterdir()) == []
    out = capsys.readouterr().out
    for told in ("step", "base_losses", "all of it", "a query, exhaustive", "estimated from 1,024 samples"):
        assert told in out
    assert "4 samples of each image, at least 1,024" in out
    assert f"Nothing was written into {tmp_path / 'index'}" in out


def test_the_table_sums_up_and_shows_a_device_where_there_is_one(tmp_path):
    costs = [
        Cost("latents", 5, 90.0, 3_000_000, 0, 10**9, 2 * 10**9),
        Cost("fisher", 7, 30.0, 2_000, 4_000, 2 * 10**9, 0),
    ]
    lines = list(table([*costs, *(Cost(name, 9, 1.0) for name in QUERIES)], tmp_path / "a" / "b", 7))
    assert lines[0].split() == ["step", "to", "do", "time", "disk", "memory", "GPU"]
    assert lines[3].split() == ["all", "of", "it", "2", "min", "0", "s", "3.0", "MB", "2.0", "GB", "2.0", "GB"]
    assert "7 samples (as asked for" in lines[6]
    assert size(1_500_000_000_000) == "1.5 TB"
