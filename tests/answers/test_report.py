"""What is kept of a run: CSV, ZIP, the HTML in it, its id, and asking again."""

import csv
import io
import json
import re
import zipfile
from base64 import b64decode
from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import random_picture
from PIL import Image

from attribution.answers.compare import agreement, finders, fold, rank_of
from attribution.answers.html import to_png
from attribution.answers.plot import loss_marks
from attribution.answers.ranking import MINUS, TIMES, places, rankings
from attribution.answers.replay import Replayed, replay
from attribution.answers.report import (
    HTML,
    MAX_ENTRY,
    PICTURE,
    RUN,
    SHOWN,
    TABLE,
    file_name,
    read_zip,
    run_json,
    to_csv,
    to_json,
    write_zip,
)
from attribution.answers.run import Run
from attribution.cli import main
from attribution.diffusion.pictures import MAX_SIDE
from attribution.diffusion.pipeline import GenerateSettings
from attribution.errors import IndexMismatch, InputError
from attribution.methods import attribute
from attribution.methods.answer import AttributeSettings, Progress
from attribution.query.query import Query
from attribution.scenes.world import EMBEDDED
from attribution.unlearning.step import UnlearnSettings
from attribution.version import VERSION

BOX = ((4.0, 4.0, 20.0, 24.0),)


def answered(model, index, query, *methods):
    answers = []
    for method in methods:
        *_, last = attribute(model, index, query, AttributeSettings(method=method, top_k=4))
        answers.append(last)
    return Run(tuple(answers))


@pytest.fixture(scope="module")
def run(model32, full_index):
    query = Query("a red bird & a <blue> key", random_picture(99), None, BOX)
    return answered(model32, full_index, query, "unlearning", "clip", "pixel")


@pytest.fixture
def packed(run, full_index, model32, tmp_path):
    write_zip(run, full_index, model32, tmp_path / "run.zip")
    return tmp_path / "run.zip"


def test_a_run_keeps_how_its_picture_was_sampled(run, full_index, model32, tmp_path):
    path = tmp_path / "run.zip"
    assert run.sampled is None
    sampled = replace(run, sampled=GenerateSettings(steps=7, guidance=1.5))
    write_zip(sampled, full_index, model32, path)
    assert read_zip(path).sampled == sampled.sampled
    assert sampled.id == run.id


# Answers keep what the pages and reports show


def test_results_of_unlearning_keep_the_losses_that_their_scores_are_made_of(run):
    main, clip, _ = run.answers
    for result in main.results:
        before, after = np.array(result.losses).T
        assert result.score == pytest.approx(float((after - before).mean()), rel=1e-4, abs=1e-7)
    assert not any(result.losses for result in clip.results)


def test_losses_before_are_the_indexs_own(run, full_index):
    for result in run.answers[0].results:
        before = [pair[0] for pair in result.losses]
        np.testing.assert_array_equal(before, full_index.base_losses[result.row, int(result.flip)])


def test_answers_keep_their_whole_ranking(run, full_index):
    for answer in run.answers:
        assert [result.row for result in answer.results] == list(answer.rows[:4])
    assert sorted(run.answers[1].rows) == list(range(len(full_index)))


# Rankings side by side


def test_agreement_of_rankings():
    same = agreement([3, 1, 2, 0], [3, 1, 2, 0], 2)
    assert (same.overlap, same.correlation, same.common) == (1.0, pytest.approx(1.0), 4)
    turned = agreement([3, 1, 2, 0], [0, 2, 1, 3], 2)
    assert (turned.overlap, turned.correlation) == (0.0, pytest.approx(-1.0))
    part = agreement([2, 1, 5], [2, 9, 5, 8], 2)
    assert (part.overlap, part.correlation, part.common) == (0.5, None, 2)
    one = agreement([4, 7, 1, 3], [9, 4, 3, 1, 7], 3)  # 4, 7, 1, 3 have the places 0, 3, 2, 1 there
    assert one.correlation == pytest.approx(1 - 6 * (0 + 4 + 0 + 4) / (4 * 15))


def test_who_found_an_image_and_at_which_rank(run):
    by_method = {answer.settings.method: answer for answer in run.answers}
    found = finders(by_method)
    for method, answer in by_method.items():
        for result in answer.results:
            assert method in found[result.row]
            assert rank_of(result.row, answer) == result.rank
    assert rank_of(10_000, run.answers[0]) is None


def test_near_duplicates_and_mirrors_are_folded(run, full_index):
    pixels = np.random.default_rng(0).integers(0, 256, (len(full_index), 32, 32, 3), np.uint8)
    first, second, third, fourth = (result.row for result in run.answers[0].results)
    pixels[second] = np.clip(pixels[first].astype(int) + 3, 0, 255)
    pixels[fourth] = pixels[third][:, ::-1]
    index = replace(full_index, pictures=SimpleNamespace(small=lambda row: Image.fromarray(pixels[row])))
    folded = fold(run.answers[0].results, index)
    assert [(kept.row, [each.row for each in alike]) for kept, alike in folded] == [
        (first, [second]),
        (third, [fourth]),
    ]


# Files


def test_a_table_has_a_line_for_each_image_with_a_final_score(run, full_index):
    table = list(csv.DictReader(io.StringIO(to_csv(run, full_index))))
    assert len(table) == sum(len(answer.rows) for answer in run.answers) > sum(len(x.results) for x in run.answers)
    for answer in run.answers:
        lines = [line for line in table if line["method"] == answer.settings.method]
        assert [line["id"] for line in lines] == [full_index.ids[row] for row in answer.rows]
        assert [line["caption"] for line in lines] == [full_index.captions[row] for row in answer.rows]
        assert [int(line["rank"]) for line in lines] == list(range(1, len(lines) + 1))
        assert [float(line["score"]) for line in lines] == list(answer.scores)
        assert sorted(answer.scores, reverse=True) == list(answer.scores)
        for line, result in zip(lines, answer.results, strict=False):
            assert float(line["score"]) == result.score
            assert line["flip"] == str(result.flip)


def test_a_run_that_an_earlier_version_kept_has_its_results_in_the_table(run, full_index):
    older = Run(tuple(replace(answer, scores=()) for answer in run.answers))
    table = list(csv.DictReader(io.StringIO(to_csv(older, full_index))))
    assert [line["id"] for line in table] == [result.id for answer in run.answers for result in answer.results]


@pytest.mark.parametrize("caption", ["=1+1", "+1", "-1", "@x", "\t=1", 'quotes " and, commas\nlines'])
def test_no_cell_of_a_table_is_a_formula(run, full_index, caption):
    answer = run.answers[0]
    changed = replace(answer, results=(replace(answer.results[0], caption=caption),), scores=())
    (line,) = csv.DictReader(io.StringIO(to_csv(Run((changed,)), full_index)))
    assert not line["caption"].startswith(("=", "+", "-", "@", "\t"))
    assert line["caption"].removeprefix("'") == caption


@pytest.mark.parametrize(
    ("image_id", "name"),
    [
        ("00012.png", "00012.png"),
        ("birds/red.PNG", "birds/red.PNG"),
        ("birds/red.jpg", "birds/red.jpg.png"),
        ("../../up.png", "up.png"),
        ("/etc\\passwd", "etc/passwd.png"),
    ],
)
def test_a_thumbnail_is_called_by_its_id_inside_its_folder(image_id, name):
    assert file_name(image_id) == name


def test_files_say_where_they_come_from(run, packed, full_index, plain_copy, model32, tmp_path):
    with zipfile.ZipFile(packed) as archive:
        told, html = json.loads(archive.read(RUN)), archive.read(HTML).decode()
    assert told["date"] == run.date
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", run.date)
    assert (told["version"], told["link"], told["licences"]) == (VERSION, f"?run={run.id}", [])
    assert {"grade", "sentence"} <= told["answers"][0]["verdict"].keys()
    for words in (run.date, VERSION, "Not graded"):
        assert words in html
    credits = {"name": "A & B", "address": "https://a.b", "licence": "CC BY 4.0", "text": "https://c.d"}
    (plain_copy / "credits.json").write_text(json.dumps({"about": "{count} <i>birds</i>", "pictures": [credits]}))
    index = replace(full_index, path=plain_copy)
    write_zip(run, index, model32, tmp_path / "credited.zip")
    with zipfile.ZipFile(tmp_path / "credited.zip") as archive:
        told, html = json.loads(archive.read(RUN)), archive.read(HTML).decode()
    assert told["licences"] == ["A & B (CC BY 4.0, https://a.b)"]
    assert "A &amp; B (CC BY 4.0, https://a.b)" in html
    assert "8 &lt;i&gt;birds&lt;/i&gt;" in html
    (plain_copy / "credits.json").write_text('{"about": "x", "pictures": [{}]}')
    with pytest.raises(IndexMismatch, match=r"credits\.json is damaged"):
        write_zip(run, index, model32, tmp_path / "credited.zip")


# Scores in words


def shown(answer, index, **changes):
    """The cards of one method's ranking."""
    (ranking,) = rankings({answer.settings.method: replace(answer, **changes)}, index, 4, folded=False)
    return ranking


def scored(answer, *scores):
    """An answer's results with other scores, each from half to twice of it."""
    results = zip(answer.results, scores, strict=False)
    return tuple(replace(each, score=score, low=score / 2, high=score * 2) for each, score in results)


def test_scores_are_multiples_of_the_typical_images(run, full_index):
    answer = run.answers[0]
    results = scored(answer, 4.0, 1.0, 0.004, -0.2)
    ranking = shown(answer, full_index, results=results, typical=0.02)
    assert [card.score.rstrip(TIMES) for card in ranking.cards] == ["200", "50.0", "0.2", f"{MINUS}10.0"]
    assert ranking.cards[1].interval == f"25.0 to 100{TIMES}"
    assert [card.weak for card in ranking.cards] == [False, False, False, True]
    assert "ten times as much" in ranking.unit
    assert "score +1.0000 (50.0" in ranking.cards[1].told


@pytest.mark.parametrize("typical", [None, 0.0, -0.1])
def test_scores_without_a_typical_one_stay_as_they_are(run, full_index, typical):
    answer = run.answers[0]
    ranking = shown(answer, full_index, results=scored(answer, 0.5, 0.25), typical=typical)
    assert [card.score for card in ranking.cards] == ["0.5000", "0.2500"]
    assert ranking.unit == ""


def test_scores_are_not_told_before_they_are_settled(run, full_index):
    answer = run.answers[0]
    progress = Progress("scoring", 1, 2, 0.1, tuple(replace(each, low=-np.inf, high=np.inf) for each in answer.results))
    (ranking,) = rankings({"unlearning": progress}, full_index, 6, folded=False)
    assert {(card.score, card.interval) for card in ranking.cards} == {("", "settling")}
    assert ranking.empty == 2


def test_equal_scores_share_a_place(run):
    results = scored(run.answers[0], 0.5, 0.25, 0.25, 0.1)
    assert places(results) == ["1", "=2", "=2", "4"]
    assert places(scored(run.answers[0], 0.3, 0.3, 0.3, 0.3)) == ["=1"] * 4
    assert places(results[:1]) == ["1"]
    assert places(()) == []


def test_a_zip_has_everything(run, packed, full_index, model32):
    with zipfile.ZipFile(packed) as archive:
        names = set(archive.namelist())
        rows = {result.row for answer in run.answers for result in answer.results}
        assert names == {RUN, PICTURE, TABLE, HTML, *(f"thumbnails/{full_index.ids[row]}" for row in rows)}
        told = json.loads(archive.read(RUN))
        assert told == json.loads(json.dumps(run_json(run, full_index, model32)))
        assert [answer["results"] for answer in told["answers"]] == [to_json(each)["results"] for each in run.answers]
        picture = Image.open(io.BytesIO(archive.read(PICTURE)))
        assert np.array_equal(np.asarray(picture), np.asarray(run.query.image))
        for row in rows:
            assert archive.read(f"thumbnails/{full_index.ids[row]}") == full_index.thumbnail(row)
    assert [path.name for path in packed.parent.iterdir()] == ["run.zip"]


class Page(HTMLParser):
    """What an HTML file refers to, and its text."""

    def __init__(self, text):
        super().__init__()
        self.references, self.texts, self.tags = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.references += [value for name, value in attributes if name in ("src", "href", "srcset", "action")]

    def handle_data(self, data):
        self.texts.append(data)


def test_the_page_needs_nothing_else_and_shows_every_result(run, packed, full_index):
    page = Page(zipfile.ZipFile(packed).read(HTML).decode())
    assert "script" not in page.tags
    assert all(reference.startswith("data:image/png;base64,") for reference in page.references)
    text = "".join(page.texts)
    assert run.id in text
    assert "“a red bird & a <blue> key”" in text
    assert "the box 4, 4, 20, 24" in text
    shown = [b64decode(reference.partition(",")[2]) for reference in page.references]
    results = [result for answer in run.answers for result in answer.results]
    assert len(shown) == 1 + len(results)
    for picture, result in zip(shown[1:], results, strict=True):
        assert picture == full_index.thumbnail(result.row)
        assert f"{result.score:+.5f}" in text
        assert result.id in text
    timesteps = json.loads(zipfile.ZipFile(packed).read(RUN))["timesteps"]
    assert page.tags.count("circle") == 2 * len(run.answers[0].results) * len(set(timesteps))


def test_the_plot_of_losses_averages_the_noises_of_a_timestep():
    plot = loss_marks([(1.0, 2.0), (3.0, 4.0), (0.5, 0.25)], [900, 900, 100])
    assert [(mark.t, mark.before, mark.after) for mark in plot.marks] == [(100, 0.5, 0.25), (900, 2.0, 3.0)]
    assert [mark.bar for mark in plot.marks] == [-7.0, 28.0]  # the one falls from the line that the other stands on
    assert (plot.most, plot.largest) == (3.0, 1.0)
    assert loss_marks([(0.0, 0.0)], [5]).most == 1.0


# Ids, replays, the folder of runs


def test_an_id_is_of_the_question_alone(run, model32, full_index):
    again = answered(model32, full_index, run.query, "unlearning", "clip", "pixel")
    assert again.answers[0].seconds != run.answers[0].seconds
    assert again.id == run.id
    assert re.fullmatch("[0-9a-f]{12}", run.id)
    main, *others = run.answers
    for other in (
        replace(main, query=replace(main.query, prompt="another")),
        replace(main, query=replace(main.query, boxes=())),
        replace(main, query=replace(main.query, image=random_picture(1))),
        replace(main, settings=replace(main.settings, top_k=3)),
        replace(main, model_sha256="0" * 64),
    ):
        assert Run((other, *others)).id != run.id
    assert Run((main,)).id != run.id
    assert replace(run, label="bird").id != run.id, "whoever calls it otherwise writes over nobody's run"


def test_what_a_region_is_called_is_kept_with_the_run(run, full_index, model32, tmp_path):
    called = replace(run, label="the <b>red</b> bird")
    write_zip(called, full_index, model32, tmp_path / "run.zip")
    kept = read_zip(tmp_path / "run.zip")
    assert (kept.label, kept.region, kept.id) == (called.label, called.label, called.id)
    assert run.region.startswith("the box ")
    html = zipfile.ZipFile(tmp_path / "run.zip").read(HTML).decode()
    assert f"the &lt;b&gt;red&lt;/b&gt; bird, {run.region}" in html


def test_a_run_is_read_as_it_was_written(run, packed, full_index, model32):
    kept = read_zip(packed)
    assert kept.id == run.id
    assert np.array_equal(np.asarray(kept.query.image), np.asarray(run.query.image))
    assert run_json(kept, full_index, model32) == run_json(run, full_index, model32)
    for ours, theirs in zip(run.answers, kept.answers, strict=True):
        assert (ours.results, ours.rows, ours.settings) == (theirs.results, theirs.rows, theirs.settings)


def test_a_run_whose_question_was_changed_is_refused(packed):
    told = json.loads(zipfile.ZipFile(packed).read(RUN))
    told["query"]["prompt"] = "another"
    with pytest.raises(InputError, match="its query and settings are not those of run"):
        read_zip(rewritten(packed, **{RUN: json.dumps(told).encode()}))


def test_a_replay_gives_the_same_ranking(run, packed, full_index, model32):
    kept = read_zip(packed)
    *progress, last = replay(model32, full_index, kept)
    assert progress
    assert isinstance(last, Replayed)
    assert last.differs == {"unlearning": None, "clip": None, "pixel": None}
    assert last.run.id == run.id


def test_a_step_size_that_was_found_is_kept_shown_and_found_again(model32, full_index, tmp_path):
    unlearn = UnlearnSettings(rise=1e-3, steps=2, timesteps=3, noises=1)
    *_, answer = attribute(
        model32, full_index, Query("a red bird", random_picture(99)), AttributeSettings(unlearn=unlearn)
    )
    assert len(answer.step_sizes) == 2
    assert to_json(answer)["step_sizes"] == answer.step_sizes
    write_zip(Run((answer,)), full_index, model32, tmp_path / "run.zip")
    kept = read_zip(tmp_path / "run.zip")
    assert kept.answers[0].step_sizes == answer.step_sizes
    assert kept.answers[0].settings == answer.settings
    first, second = (f"{size:.3g}" for size in answer.step_sizes)
    html = zipfile.ZipFile(tmp_path / "run.zip").read(HTML).decode()
    assert f"step size {first} to {second}, found by its effect" in html
    *_, last = replay(model32, full_index, kept)
    assert last.differs == {"unlearning": None}
    again = last.run.answers[0]
    assert again.step_sizes == pytest.approx(answer.step_sizes, rel=2e-3)
    assert again.settings == answer.settings


def test_a_noise_seed_is_kept_and_answered_with_again(model32, full_index, tmp_path):
    settings = AttributeSettings("d-trak", top_k=4, noise_seed=3)
    *_, answer = attribute(model32, full_index, Query("a red bird", random_picture(99)), settings)
    write_zip(Run((answer,)), full_index, model32, tmp_path / "run.zip")
    kept = read_zip(tmp_path / "run.zip")
    assert kept.answers[0].settings == settings
    *_, last = replay(model32, full_index, kept)
    assert last.differs == {"d-trak": None}


def test_what_earlier_versions_could_not_be_asked_for_changes_no_id_where_it_is_not_used(run):
    """The runs that lie beside the embedded index are of such a version."""
    examples = sorted((EMBEDDED.parent / "examples").glob("*.zip"))
    assert [read_zip(path).id for path in examples] == [path.stem for path in examples]
    assert examples
    main, *others = run.answers
    for changed in (
        replace(main.settings, noise_seed=1),
        replace(main.settings, unlearn=replace(main.settings.unlearn, rise=0.1)),
    ):
        assert Run((replace(main, settings=changed), *others)).id != run.id


def rewritten(packed, **changed):
    """The ZIP with other contents in it; None leaves a file out."""
    with zipfile.ZipFile(packed) as archive:
        held = {name: archive.read(name) for name in archive.namelist()} | changed
    path = packed.with_name("changed.zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in held.items():
            if content is not None:
                archive.writestr(name, content)
    return path


def test_a_replay_says_where_a_ranking_differs(packed, full_index, model32):
    told = json.loads(zipfile.ZipFile(packed).read(RUN))
    results = told["answers"][1]["results"]
    results[1]["id"], results[2]["id"] = results[2]["id"], results[1]["id"]
    *_, last = replay(model32, full_index, read_zip(rewritten(packed, **{RUN: json.dumps(told).encode()})))
    assert last.differs == {"unlearning": None, "clip": 2, "pixel": None}


def test_a_run_of_another_index_is_refused(packed, full_index, model32):
    kept = Run(tuple(replace(answer, index_id="0" * 12) for answer in read_zip(packed).answers))
    with pytest.raises(InputError, match="is of index 000000000000 and model"):
        next(replay(model32, full_index, kept))


@pytest.mark.parametrize(
    "changed",
    [
        {RUN: None},
        {PICTURE: None},
        {PICTURE: b"GIF89a"},
        {RUN: b"{}"},
        {RUN: b"[]"},
        {RUN: b"not JSON"},
        {RUN: b'{"query": {"prompt": 1}}'},
        {RUN: b" " * (MAX_ENTRY + 1)},
        {RUN: b'{"answers": [], "id": "0"}'},
    ],
)
def test_what_is_no_run_is_refused_in_one_line(packed, changed):
    with pytest.raises(InputError) as caught:
        read_zip(rewritten(packed, **changed))
    assert "\n" not in str(caught.value)


def test_a_truncated_zip_and_other_files_are_refused(packed, tmp_path):
    content = packed.read_bytes()
    for name, cut in (("cut.zip", content[: len(content) // 2]), ("empty.zip", b""), ("text.zip", b"hello")):
        (tmp_path / name).write_bytes(cut)
        with pytest.raises(InputError, match="is not the ZIP of a run"):
            read_zip(tmp_path / name)
    with pytest.raises(InputError, match="is not the ZIP of a run"):
        read_zip(tmp_path / "nowhere.zip")


def test_unknown_settings_are_refused(packed):
    told = json.loads(zipfile.ZipFile(packed).read(RUN))
    told["answers"][0]["settings"]["unlearn"]["magic"] = 1
    with pytest.raises(InputError, match="the setting 'magic' is unknown"):
        read_zip(rewritten(packed, **{RUN: json.dumps(told).encode()}))


def test_the_largest_picture_fits_into_what_is_read_of_a_zip():
    """Noise is the largest PNG there is: beside its pixels it has a byte a row, and little for each block."""
    side = 512
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    beside = len(to_png(Image.fromarray(noise))) - 3 * side**2
    assert 0 < beside * (MAX_SIDE / side) ** 2 < MAX_ENTRY - 3 * MAX_SIDE**2


def test_a_large_photo_is_read_as_it_was_written_and_its_page_stays_small(model32, full_index, tmp_path):
    """As a PNG it has 24 MB; the page in the ZIP shows it reduced, and the boxes where they are."""
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (2500, 3200, 3), np.uint8))
    box = ((350.0, 0.0, 1600.0, 1250.0),)
    run = answered(model32, full_index, Query("a bus", photo, None, box), "pixel")
    write_zip(run, full_index, model32, tmp_path / "run.zip")
    kept = read_zip(tmp_path / "run.zip")
    assert (kept.id, kept.query.image.size) == (run.id, photo.size)
    page = Page(zipfile.ZipFile(tmp_path / "run.zip").read(HTML).decode())
    shown = Image.open(io.BytesIO(b64decode(page.references[0].partition(",")[2])))
    assert shown.size == (SHOWN, 800)


def test_a_report_that_could_not_be_read_again_is_not_written(run, full_index, model32, tmp_path, monkeypatch):
    monkeypatch.setattr("attribution.answers.report.MAX_ENTRY", 1000)
    with pytest.raises(InputError, match="a report of 4 results is too large"):
        write_zip(run, full_index, model32, tmp_path / "run.zip")
    assert not list(tmp_path.iterdir())


def test_the_command_line_reports_and_replays(full_folder, tmp_path, capsys):
    out, where = tmp_path / "run.zip", ("--index", str(full_folder))
    asked = ("attribute", "--prompt", "a green bus", "--seed", "3", "--top_k", "3", *where)
    assert main([*asked, "--method", "d-trak", "--report", str(out)]) == 0
    capsys.readouterr()
    assert main(["replay", str(out), *where]) == 0
    assert capsys.readouterr().out == "d-trak: the same ranking\n"
    assert main(["replay", str(tmp_path / "none.zip"), *where]) == 2
    assert "is not the ZIP of a run" in capsys.readouterr().err
    assert main([*asked, "--report", str(tmp_path / "no" / "run.zip")]) == 2
    assert "cannot be written" in capsys.readouterr().err
