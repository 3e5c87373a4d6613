"""What is kept of a run: CSV, ZIP, the HTML in it, its id, the folder of runs, and asking again."""

import csv
import io
import json
import os
import re
import zipfile
from base64 import b64decode
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from conftest import random_picture
from PIL import Image

from attribution.answers.compare import agreement, finders, fold, rank_of
from attribution.answers.html import loss_plot
from attribution.answers.report import (
    HTML,
    PICTURE,
    RUN,
    TABLE,
    Replayed,
    Run,
    RunFolder,
    read_zip,
    replay,
    run_json,
    to_csv,
    to_json,
    write_zip,
)
from attribution.cli import main
from attribution.diffusion.pipeline import GenerateSettings
from attribution.errors import InputError
from attribution.methods import attribute
from attribution.methods.answer import AttributeSettings
from attribution.query.query import Query

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
    index = replace(full_index)
    pixels = np.random.default_rng(0).integers(0, 256, full_index.pixels.shape, np.uint8)
    first, second, third, fourth = (result.row for result in run.answers[0].results)
    pixels[second] = np.clip(pixels[first].astype(int) + 3, 0, 255)
    pixels[fourth] = pixels[third][:, ::-1]
    index.__dict__["pixels"] = pixels
    folded = fold(run.answers[0].results, index)
    assert [(kept.row, [each.row for each in alike]) for kept, alike in folded] == [
        (first, [second]),
        (third, [fourth]),
    ]


# Files


def test_a_table_has_a_line_for_each_result(run):
    table = list(csv.DictReader(io.StringIO(to_csv(run))))
    expected = [(answer.settings.method, result) for answer in run.answers for result in answer.results]
    assert len(table) == len(expected) == 12
    for line, (method, result) in zip(table, expected, strict=True):
        assert (line["method"], int(line["rank"]), line["id"]) == (method, result.rank, result.id)
        assert float(line["score"]) == result.score
        assert line["caption"] == result.caption


@pytest.mark.parametrize("caption", ["=1+1", "+1", "-1", "@x", "\t=1", 'quotes " and, commas\nlines'])
def test_no_cell_of_a_table_is_a_formula(run, caption):
    answer = run.answers[0]
    changed = replace(answer, results=(replace(answer.results[0], caption=caption),))
    (line,) = csv.DictReader(io.StringIO(to_csv(Run((changed,)))))
    assert not line["caption"].startswith(("=", "+", "-", "@", "\t"))
    assert line["caption"].removeprefix("'") == caption


def test_a_zip_has_everything(run, packed, full_index, model32):
    with zipfile.ZipFile(packed) as archive:
        names = set(archive.namelist())
        rows = {result.row for answer in run.answers for result in answer.results}
        assert names == {RUN, PICTURE, TABLE, HTML, *(f"thumbnails/{row:08d}.png" for row in rows)}
        told = json.loads(archive.read(RUN))
        assert told == json.loads(json.dumps(run_json(run, full_index, model32)))
        assert [answer["results"] for answer in told["answers"]] == [to_json(each)["results"] for each in run.answers]
        picture = Image.open(io.BytesIO(archive.read(PICTURE)))
        assert np.array_equal(np.asarray(picture), np.asarray(run.query.image))
        for row in rows:
            assert archive.read(f"thumbnails/{row:08d}.png") == full_index.thumbnail(row).read_bytes()
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
        assert picture == full_index.thumbnail(result.row).read_bytes()
        assert f"{result.score:+.5f}" in text
        assert result.id in text
    timesteps = json.loads(zipfile.ZipFile(packed).read(RUN))["timesteps"]
    assert page.tags.count("circle") == 2 * len(run.answers[0].results) * len(set(timesteps))


def test_the_plot_of_losses_averages_the_noises_of_a_timestep():
    plot = loss_plot([(1.0, 2.0), (3.0, 4.0), (0.5, 0.25)], [900, 900, 100])
    assert re.findall(r"<title>(.*?)</title>", plot) == [
        "timestep 100: 0.5000 before, 0.2500 after, -0.2500",
        "timestep 900: 2.0000 before, 3.0000 after, +1.0000",
    ]
    bars = [tuple(map(float, bar)) for bar in re.findall(r"<rect [^>]*y='([\d.]+)'[^>]*height='([\d.]+)'", plot)]
    assert bars[0][1] == bars[1][1] / 4
    assert bars[0][0] == bars[1][0] + bars[1][1]  # the one falls from the line that the other stands on
    assert loss_plot([(0.0, 0.0)], [5]).count("<circle") == 2


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
        {RUN: b" " * 20_000_001},
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


def test_a_folder_keeps_the_latest_runs(run, full_index, model32, tmp_path):
    folder = RunFolder(tmp_path / "runs", most=2)
    runs = [Run(run.answers[:count]) for count in (1, 2, 3)]
    for age, each in enumerate(runs):
        os.utime(folder.keep(each, full_index, model32), (1000 + age, 1000 + age))
    folder.keep(runs[2], full_index, model32)
    assert {path.stem for path in folder.folder.iterdir()} == {runs[1].id, runs[2].id}
    assert read_zip(folder.path(runs[2].id)).id == runs[2].id
    for unknown in (runs[0].id, "../secret", "", "0" * 12, f"{runs[2].id}.zip", "/etc/passwd"):
        with pytest.raises(InputError, match="is not kept here; the latest 2 are"):
            folder.path(unknown)


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
