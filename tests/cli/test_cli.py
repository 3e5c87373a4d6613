"""The command line: exit status 2 and one line for what a person can mend, the contract's JSON otherwise."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from hashlib import sha256

import pytest
from conftest import build_all, random_picture
from PIL import Image

from attribution.answers.report import to_json
from attribution.cli import main
from attribution.diffusion.noise import NoiseSettings
from attribution.index.index import Index
from attribution.methods import METHODS, attribute
from attribution.methods.answer import AttributeSettings
from attribution.query.query import Query, image_sha256

PROMPT = ("--prompt", "a green bus")


@pytest.fixture
def refused(capsys, index_folder):
    """Run a command on the tiny index, which must refuse it in one line."""

    def run(*arguments, index=index_folder):
        status = main([*arguments, *(("--index", str(index)) if index else ())])
        captured = capsys.readouterr()
        assert (status, captured.out) == (2, "")
        assert captured.err.startswith("error: ")
        assert captured.err.count("\n") == 1
        return captured.err

    return run


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--seed", "1"), "--prompt"),
        (("--prompt", ""), "the prompt is empty; describe the picture"),
        (("--prompt", "  "), "the prompt is empty"),
        (
            (*PROMPT, "--seed", "-1"),
            "seed -1 is not possible; accepted are whole numbers from 0 to 9223372036854775807",
        ),
        ((*PROMPT, "--seed", str(2**63)), f"seed {2**63} is not possible; accepted are whole numbers from 0"),
        ((*PROMPT, "--seed", "1.5"), "1.5"),
        ((*PROMPT, "--top_k", "0"), "top_k = 0 is not possible; accepted are 1 to 8"),
        ((*PROMPT, "--top_k", "9"), "top_k = 9 is not possible; accepted are 1 to 8"),
        ((*PROMPT, "--top_k", "ten"), "ten"),
        (
            (*PROMPT, "--top_k", "3", "--method", "magic"),
            "there is no method 'magic'; accepted are unlearning, unlearning+",
        ),
        ((*PROMPT, "--top_k", "3", "--method", "dino"), "holds no features/dino; of features it has none; add it with"),
        ((*PROMPT, "--top_k", "3", "--method", "unlearning+"), "holds no ekfac"),
        ((*PROMPT, "--top_k", "3", "--weights", "all"), "no diagonal Fisher information of"),
        ((*PROMPT, "--top_k", "3", "--weights", "some"), "some"),
        ((*PROMPT, "--top_k", "3", "--steps", "0"), "0 steps are not possible; accepted are 1 to 1000"),
        ((*PROMPT, "--top_k", "3", "--step_size", "nan"), "a step size of nan is not possible"),
        ((*PROMPT, "--top_k", "3", "--step_size", "-1"), "a step size of -1 is not possible"),
        (
            (*PROMPT, "--top_k", "3", "--box", "0", "0", "0", "32"),
            "the box 0, 0, 0, 32 is empty, reversed or too small",
        ),
        ((*PROMPT, "--index_", "x"), "--index_"),
        ((*PROMPT, "--image", "nowhere.png"), "there is no image file 'nowhere.png'; accepted are PNG"),
        ((*PROMPT, "--image", "nowhere.png", "--seed", "1"), "either --image or --seed"),
        ((*PROMPT, "--out", "nowhere/at/all.json"), "--out nowhere/at/all.json cannot be written"),
    ],
)
def test_bad_input_to_attribute_is_refused_in_one_line(refused, arguments, told):
    assert told in refused("attribute", *arguments)


@pytest.mark.parametrize(
    ("box", "told"),
    [
        ("0 0 40 8", "the box 0, 0, 40, 8 reaches outside the picture"),
        ("-4 0 8 8", "the box -4, 0, 8, 8 reaches outside the picture"),
        ("8 8 8 8", "the box 8, 8, 8, 8 is empty, reversed or too small"),
        ("16 0 8 8", "the box 16, 0, 8, 8 is empty, reversed or too small"),
        ("0 0 3 8", "the box 0, 0, 3, 8 is empty, reversed or too small"),
        ("nan 0 8 8", "is not four finite numbers"),
        ("0 0 8", "--box"),
        ("0 0 8 b", "--box"),
    ],
)
def test_a_bad_box_is_refused_in_one_line(refused, box, told):
    error = refused("attribute", *PROMPT, "--top_k", "3", "--box", *box.split())
    assert told in error
    assert told == "--box" or "from 0 to 32 and y0 < y1 from 0 to 32, each side 4 px or more" in error


def test_a_bad_upload_is_refused_in_one_line(refused, tmp_path):
    (tmp_path / "text.png").write_text("hello")
    error = refused("attribute", *PROMPT, "--image", str(tmp_path / "text.png"))
    assert "text.png is not an image that can be read; accepted are PNG, JPEG and WebP files" in error


@pytest.mark.parametrize("command", ["attribute", "generate"])
def test_a_missing_index_is_refused_in_one_line(refused, tmp_path, command):
    out = ("--out", str(tmp_path / "x.png"))
    assert "is not an index: it has no manifest.json" in refused(command, *PROMPT, *out, index=tmp_path / "none")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("generate", "--prompt", "", "--out", "x.png"), "the prompt is empty"),
        (("generate", *PROMPT, "--seed", "-1", "--out", "x.png"), "seed -1 is not possible"),
        (("generate", *PROMPT, "--out", "nowhere/x.png"), "--out nowhere/x.png cannot be written"),
    ],
)
def test_bad_input_to_generate_is_refused_in_one_line(refused, tmp_path, monkeypatch, arguments, told):
    monkeypatch.chdir(tmp_path)
    assert told in refused(*arguments)
    assert not list(tmp_path.iterdir())


def test_an_unknown_command_and_none_are_refused_with_the_known_ones(refused):
    for arguments in (("paint",), ()):
        assert "scenes, index, generate, attribute, detect, replay, floor, evaluate" in refused(*arguments, index=None)


def test_help_is_no_error(capsys):
    with pytest.raises(SystemExit) as left:
        main(["attribute", "--help"])
    assert not left.value.code
    assert "--top-k" in capsys.readouterr().out


def test_the_program_exits_with_2_and_one_line_on_standard_error(tmp_path):
    command = [sys.executable, "-m", "attribution", "attribute", *PROMPT, "--index", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "is not an index" in done.stderr


# What the commands do


def strict(constant):
    pytest.fail(f"{constant} is no JSON")


def test_attribute_writes_the_contracts_json(capsys, index_folder, model32, tmp_path):
    out, picture = tmp_path / "answer.json", tmp_path / "picture.png"
    random_picture(7).save(picture)
    box = ("--box", "0", "0", "16", "16", "8", "8", "32", "24")
    common = ("attribute", *PROMPT, "--image", str(picture), "--index", str(index_folder))
    assert main([*common, *box, "--top_k", "3", "--out", str(out)]) == 0
    answer = json.loads(out.read_text(), parse_constant=strict)
    assert set(answer) == {"query", "method", "results", "evaluations", "seconds", "settings", "index"}
    assert answer["query"] == {
        "prompt": "a green bus",
        "seed": None,
        "image_sha256": image_sha256(random_picture(7)),
        "boxes": [[0, 0, 16, 16], [8, 8, 32, 24]],
        "word": None,
    }
    assert answer["method"] == "unlearning"
    keys = {"rank", "id", "score", "score_low", "score_high", "caption", "flip"}
    assert [set(result) for result in answer["results"]] == [keys] * 3
    assert [result["rank"] for result in answer["results"]] == [1, 2, 3]
    scores = [result["score"] for result in answer["results"]]
    assert scores == sorted(scores, reverse=True)
    assert all(result["score_low"] < result["score"] < result["score_high"] for result in answer["results"])
    index = Index.open(index_folder)
    assert all(index.captions[index.ids.index(r["id"])] == r["caption"] for r in answer["results"])
    assert answer["index"] == {"id": index.id, "model_sha256": model32.sha256}
    assert answer["evaluations"] > 0
    assert answer["seconds"]
    assert answer["settings"]["top_k"] == 3
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[2] for line in lines] == [result["id"] for result in answer["results"]]
    assert [path.name for path in tmp_path.glob("answer*")] == ["answer.json"]


def test_attribute_generates_the_picture_that_generate_does(index_folder, tmp_path):
    common = (*PROMPT, "--seed", "3", "--index", str(index_folder))
    assert main(["generate", *common, "--out", str(tmp_path / "a.png")]) == 0
    assert main(["generate", *common, "--out", str(tmp_path / "b.png")]) == 0
    digests = {sha256((tmp_path / name).read_bytes()).hexdigest() for name in ("a.png", "b.png")}
    assert len(digests) == 1
    assert main(["attribute", *common, "--top_k", "1", "--method", "pixel", "--out", str(tmp_path / "a.json")]) == 0
    query = json.loads((tmp_path / "a.json").read_text())["query"]
    assert query["image_sha256"] == image_sha256(Image.open(tmp_path / "a.png"))
    assert query["seed"] == 3


def test_a_prompt_over_the_token_limit_is_cut_and_says_so(capsys, index_folder):
    long = "a red apple and a green bus and " * 3
    arguments = ["attribute", "--prompt", long, "--index", str(index_folder), "--top_k", "1", "--method", "pixel"]
    assert main(arguments) == 0
    error = capsys.readouterr().err
    assert "tokens, 12 are read: 'a red apple" in error


def test_methods_are_listed_with_what_they_cost(capsys, full_folder):
    assert main(["attribute", "--method", "list", "--index", str(full_folder)]) == 0
    listed = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert set(listed) == set(METHODS)
    for name, line in listed.items():
        assert METHODS[name].line in line
        assert METHODS[name].source in line
        evaluations, seconds, megabytes = re.search(r"(\d+) evaluations, ([\d.e-]+) s, ([\d.]+) MB$", line).groups()
        assert float(seconds) > 0
        assert (int(evaluations) > 0) == bool(METHODS[name].curvature or "trak" in name)
        assert float(megabytes) >= 0


def test_methods_that_cannot_be_used_are_listed_with_the_reason(capsys, index_folder):
    assert main(["attribute", "--method", "list", "--index", str(index_folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    refused = {line.split()[0] for line in lines if "add it with `python -m attribution index" in line}
    assert refused == {name for name, method in METHODS.items() if method.artifacts}


@pytest.mark.parametrize("method", ["unlearning+", "trak", "dino-abc", "clip-text"])
def test_any_method_writes_the_same_json(full_folder, tmp_path, method):
    out = tmp_path / "a.json"
    arguments = [*PROMPT, "--seed", "1", "--method", method, "--top_k", "3", "--index", str(full_folder)]
    assert main(["attribute", *arguments, "--out", str(out)]) == 0
    answer = json.loads(out.read_text())
    assert answer["method"] == answer["settings"]["method"] == method
    assert [result["rank"] for result in answer["results"]] == [1, 2, 3]
    assert answer["seconds"]


def test_scenes_writes_its_folder_and_refuses_one_that_is_not_empty(refused, capsys, tmp_path):
    out = tmp_path / "scenes"
    assert main(["scenes", "--out", str(out), "--split", "heldout"]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert len(list(out.glob("*.png"))) == 512
    assert len((out / "metadata.jsonl").read_text().splitlines()) == 512
    (out / "metadata.jsonl").write_text("changed")
    assert "is not empty" in refused("scenes", "--out", str(out), index=None)
    assert (out / "metadata.jsonl").read_text() == "changed"
    (tmp_path / "file").write_text("")
    assert "--out" in refused("scenes", "--out", str(tmp_path / "file"), index=None)


def test_index_builds_an_index_that_attribute_reads(capsys, refused, tiny_folder, pictures, tmp_path):
    arguments = [
        *("index", "--out", str(tmp_path / "index"), "--pretrained_model_name_or_path", str(tiny_folder)),
        *("--train_data_dir", str(pictures), "--timesteps", "2", "--fisher_samples", "8", "--batch", "8"),
    ]
    assert "was made for 32 px" in refused(*arguments, "--resolution", "512", index=None)
    assert main([*arguments, "--resolution", "32"]) == 0
    assert main(arguments) == 0  # finished already
    assert len(Index.open(tmp_path / "index")) == 8
    assert main(["attribute", *PROMPT, "--index", str(tmp_path / "index"), "--top_k", "1"]) == 0
    capsys.readouterr()
    told = refused(*arguments[:-4], "--fisher_samples", "9", "--batch", "8", index=None)
    assert "'samples': 8" in told
    assert "'samples': 9" in told
    assert "could not be read" in refused(*arguments[:5], "--train_data_dir", str(tmp_path / "none"), index=None)
    assert "either --dataset_name or --train_data_dir" in refused(*arguments[:5], index=None)
    weightless = ("index", "--out", str(tmp_path / "i"), "--pretrained_model_name_or_path", str(tmp_path / "none"))
    told = refused(*weightless, "--train_data_dir", str(pictures), index=None)
    assert "no Stable Diffusion pipeline could be loaded" in told


def test_one_noise_alone_leaves_the_bounds_open(model32, tiny_settings, tmp_path):
    folder = build_all(tmp_path / "index", model32, replace(tiny_settings, noise=NoiseSettings(1, 1)))
    query, settings = Query("a bus", random_picture(1)), AttributeSettings(top_k=2)
    answer = to_json(list(attribute(model32, Index.open(folder), query, settings))[-1])
    assert [(r["score_low"], r["score_high"]) for r in answer["results"]] == [(None, None)] * 2
    json.dumps(answer, allow_nan=False)
