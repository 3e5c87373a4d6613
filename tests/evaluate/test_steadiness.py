"""Two answers that differ in their noises alone: what is drawn anew, what is kept, and the table of it."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import ALL_GRADIENTS, build_all, random_picture

from attribution.cli import main
from attribution.errors import InputError
from attribution.evaluate import twice
from attribution.evaluate.lds import PATIENCE, queries_of
from attribution.evaluate.queue import open_queue
from attribution.evaluate.steadiness import made_with, measured, notes, table
from attribution.evaluate.twice import Line, SteadinessSettings, asked, lines, measure
from attribution.index.build import build
from attribution.index.index import Index
from attribution.index.work import ExtendSettings
from attribution.methods import METHODS, attribute, check_settings
from attribution.methods.answer import AttributeSettings
from attribution.query.query import Query
from attribution.unlearning.projection import GradientSettings
from attribution.unlearning.step import UnlearnSettings

SETTINGS = SteadinessSettings(queries=2, methods=("influence", "influence+", "d-trak", "random", "pixel"))
QUERIES = [
    Query("a red bird and a blue key", random_picture(99), 1),
    Query("a green bus", random_picture(98), 2, ((0.0, 0.0, 16.0, 32.0),)),
]


@pytest.fixture(scope="module", autouse=True)
def _quick():
    """Few noises: how many there are is not what is tested."""
    with pytest.MonkeyPatch.context() as patch:
        quick = replace(AttributeSettings(), unlearn=UnlearnSettings(timesteps=3, noises=1, batch=3), batch=6)
        patch.setattr(twice, "AttributeSettings", lambda method, **more: replace(plain(quick, method), **more))
        yield


def plain(quick, method):
    fields = {} if METHODS[method].curvature else {"unlearn": UnlearnSettings()}
    return replace(quick, method=method, **fields)


@pytest.fixture(scope="module")
def second(full_folder, model32, tiny_settings, tmp_path_factory):
    """A second build: the same pictures and gradients, other noises."""
    noise = replace(tiny_settings.noise, seed=77)
    folder = build_all(tmp_path_factory.mktemp("second") / "index", model32, replace(tiny_settings, noise=noise))
    gradients = ExtendSettings(ekfac=True, gradients=ALL_GRADIENTS, projection=GradientSettings(dimension=64))
    for _ in build(folder, model32, replace(tiny_settings, noise=noise), gradients):
        pass
    return Index.open(folder)


def rows(model, index, query, settings):
    *_, last = attribute(model, index, query, check_settings(model, index, settings))
    return list(last.rows)


# What is asked


def test_every_method_that_draws_noise_has_a_line_and_no_other():
    named = {line.method for line in lines((), False)}
    assert named == {name for name, method in METHODS.items() if {"noise_seed", "random_seed"} & set(method.uses)}
    assert named >= {"unlearning", "unlearning+", "influence", "d-trak", "trak", "journey-trak", "random"}
    kin = {"ensemble", "influence", "influence+", "d-trak", "trak", "journey-trak"}
    assert {line.method for line in lines((), True)} == kin
    with pytest.raises(InputError, match="there is no method 'magic'"):
        lines(("magic",), False)


@pytest.mark.parametrize("line", [*lines((), False), *lines((), True)], ids=str)
def test_the_two_answers_of_a_line_differ_in_their_noises_alone(line):
    first, again = asked(line, SteadinessSettings(noise_seed=5))
    blank = {"noise_seed": None, "seed": 0}
    assert replace(first, **blank) == replace(again, **blank)
    assert first.exhaustive == ("exhaustive" in METHODS[line.method].uses)
    seeds = (first.noise_seed, first.seed), (again.noise_seed, again.seed)
    own_noises = line.second and line.method in ("trak", "d-trak", "influence+")  # then the second build's differ
    assert (seeds[0] == seeds[1]) == own_noises


# What is measured


def test_what_is_measured_is_what_the_answers_say(model32, full_index, second, tmp_path):
    done = list(measure(tmp_path, model32, full_index, second, QUERIES, SETTINGS))
    assert len(done) == len(set(done)) == 2 * (4 + 3)  # random, and by both builds influence, influence+ and d-trak
    assert list(measure(tmp_path, model32, full_index, second, QUERIES, SETTINGS)) == []
    found = {each.line: each for each in measured(tmp_path, full_index.id)}
    assert set(found) == {
        Line("influence"),
        Line("influence", True),
        Line("influence+"),
        Line("influence+", True),
        Line("d-trak"),
        Line("d-trak", True),
        Line("random"),
    }
    for line, each in found.items():
        first, again = asked(line, SETTINGS)
        other = second if line.second else full_index
        for number, query in enumerate(QUERIES):
            one, two = rows(model32, full_index, query, first), rows(model32, other, query, again)
            places = [two.index(row) for row in one]
            assert each.values[number, 2] == pytest.approx(np.corrcoef(range(8), places)[0, 1])
            assert each.values[number, 0] == 1  # of eight images, the first ten are all
    assert (found[Line("random")].values[:, 2] < 1).all()


def test_unlearning_draws_gradient_and_losses_anew(model32, full_index, tmp_path):
    settings = SteadinessSettings(queries=1, methods=("unlearning",))
    assert list(measure(tmp_path, model32, full_index, None, QUERIES[:1], settings)) == ["unlearning-000"]
    first, again = asked(Line("unlearning"), settings)
    held = open_queue(tmp_path, made_with(tmp_path)).result("unlearning-000")
    assert held["first"].tolist() == rows(model32, full_index, QUERIES[0], first)
    assert held["again"].tolist() == rows(model32, full_index, QUERIES[0], again)


def test_a_measurement_goes_on_where_it_was_stopped(model32, full_index, tmp_path):
    steps = measure(tmp_path, model32, full_index, None, QUERIES, SETTINGS)
    first = next(steps)
    steps.close()
    assert not list(tmp_path.glob("*.claim"))
    rest = list(measure(tmp_path, model32, full_index, None, QUERIES, SETTINGS))
    assert first not in rest
    assert len(rest) == 7


def test_methods_that_the_index_cannot_answer_are_left_out_unless_they_are_named(model32, index32, tmp_path):
    settings = SteadinessSettings(queries=1, exhaustive=False)
    done = list(measure(tmp_path / "a", model32, index32, None, QUERIES[:1], settings))
    assert sorted(done) == ["random-000", "unlearning-000", "unlearning-sgd-000"]
    with pytest.raises(InputError, match="holds no gradients/d-trak"):
        list(measure(tmp_path / "b", model32, index32, None, QUERIES[:1], replace(settings, methods=("d-trak",))))


def test_other_settings_and_other_indexes_are_refused(model32, full_index, index32, tmp_path):
    next(measure(tmp_path, model32, full_index, None, QUERIES, SETTINGS))
    with pytest.raises(InputError, match="holds jobs with noise_seed = 1, now it is 2"):
        next(measure(tmp_path, model32, full_index, None, QUERIES, replace(SETTINGS, noise_seed=2)))
    with pytest.raises(InputError, match=f"is of index {full_index.id}, not of another; name another folder"):
        measured(tmp_path, "another")


def test_what_is_no_second_build_is_refused(model32, full_index, second, index32, tmp_path):
    def refused(other, why):
        with pytest.raises(InputError, match=why):
            next(measure(tmp_path, model32, full_index, other, QUERIES, SETTINGS))

    refused(full_index, "has the same noises as this index; build it with another --seed")
    manifest = second.manifest
    for part, changed, why in (
        ("model", replace(manifest.model, sha256="0" * 64), "its model is 000000000000, here it is"),
        ("data", replace(manifest.data, count=9), r"its training pictures is DataRecord\(count=9"),
        (
            "steps",
            {key: step for key, step in manifest.steps.items() if "d-trak" not in key},
            "gradients/d-trak is None",
        ),
    ):
        refused(replace(second, manifest=replace(manifest, **{part: changed})), why)
    assert list(tmp_path.iterdir()) == []


# What is told


def kept(folder, method, number, first, again, correlation, **made):
    queue = open_queue(folder, {"index": "abc", "noise_seed": 1, "exhaustive": True, "queries": 3, **made})
    arrays = {"first": first, "again": again, "correlation": correlation, "evaluations": 100, "seconds": 12.5}
    queue.keep(f"{method}-{number:03d}", {name: np.array(value) for name, value in arrays.items()})


def test_the_table_is_of_what_was_kept_with_standard_errors(tmp_path):
    first, half = list(range(50)), [*range(5), *range(100, 145)]
    kept(tmp_path, "d-trak", 0, first, first, 0.9)
    kept(tmp_path, "d-trak", 1, first, half, 0.5)
    kept(tmp_path, "unlearning", 0, first, half, np.nan)
    kept(tmp_path / "second-77", "d-trak", 0, first, half, 0.1, second="77")
    told = table(measured(tmp_path)).splitlines()
    figures = "overlap@10 | s.e. | overlap@50 | s.e. | rank correlation | s.e."
    assert told[0] == f"| method | drawn anew | queries | {figures} |"
    assert told[2] == "| d-trak | the query's gradient | 2 | 0.750 | 0.250 | 0.550 | 0.450 | 0.700 | 0.200 |"
    assert "| unlearning | the query's gradient, the training losses | 1 | 0.500 |  | 0.100 |  |  |  |" in told
    assert "| d-trak | the query's gradient, the training gradients | 1 | 0.500 |  | 0.100 |  | 0.100 |  |" in told


def test_what_was_not_measured_is_told_and_what_never_changes(tmp_path):
    settings = SteadinessSettings(queries=3, methods=("d-trak", "unlearning", "pixel"))
    kept(tmp_path, "d-trak", 0, [1, 2], [2, 1], -1.0)
    told = notes(measured(tmp_path), settings, made_with(tmp_path))
    assert "Index abc, noise seed 1; methods that unlearn score all images on all noises." in told
    assert "Without any noise, and so always the same: pixel." in told
    assert "The training gradients of d-trak are the same in both answers; `--second INDEX`" in told
    missing = "d-trak (2 of 3 queries, 12.5 s each where the others were measured), unlearning (3 of 3 queries)"
    assert f"Not measured: {missing}; `--compute` measures" in told
    kept(tmp_path / "second-77", "d-trak", 0, [1, 2], [2, 1], -1.0, second="77")
    told = notes(measured(tmp_path), settings, made_with(tmp_path))
    assert "are the same in both answers" not in told
    assert "d-trak by the second build (2 of 3 queries" in told


def test_the_command_prints_what_is_kept_without_a_model(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("attribution.cli.evaluate.opened", lambda _: pytest.fail("nothing is to be computed"))
    kept(tmp_path, "d-trak", 0, [1, 2], [2, 1], -1.0)
    before = sorted(path.name for path in tmp_path.iterdir())
    assert main(["evaluate", "steadiness", "--folder", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "| d-trak | the query's gradient | 1 | 1.000 |" in out
    assert "unlearning (24 of 24 queries)" in out
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert main(["evaluate", "steadiness", "--folder", str(tmp_path / "none")]) == 0
    assert "Not measured: unlearning (24 of 24 queries)" in capsys.readouterr().out
    assert not (tmp_path / "none").exists()


def test_the_command_refuses_what_it_cannot_use(tmp_path, capsys, index_folder):
    def refused(*arguments):
        assert main(["evaluate", "steadiness", "--folder", str(tmp_path), *arguments]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    assert "--second nowhere is read to measure, with --compute" in refused("--second", "nowhere")
    assert "there is no method 'magic'; accepted are unlearning" in refused("--methods", "magic")
    kept(tmp_path, "d-trak", 0, [1, 2], [2, 1], -1.0)
    assert "is of index abc, not of" in refused("--index", str(index_folder))
    (tmp_path / "d-trak-000.npz").write_bytes(b"no results")
    assert "the job d-trak-000 in" in refused()


def test_a_model_of_another_world_draws_no_query(model32, monkeypatch):
    drawn = []
    monkeypatch.setattr(model32, "generate", lambda *_: drawn.append(1) or random_picture(3, (128, 128)))
    monkeypatch.setattr("attribution.evaluate.lds.locate", lambda *_: None)
    with pytest.raises(InputError, match="draws none of the scenes' objects; name an index of the embedded world"):
        queries_of(model32, 2)
    assert len(drawn) == PATIENCE
