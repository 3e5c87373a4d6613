"""`attribute`: one line for what a person can mend, the contract's JSON otherwise."""

import json
import re
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


def strict(constant):
    pytest.fail(f"{constant} is no JSON")


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


def test_attribute_writes_the_contracts_json(capsys, index_folder, model32, tmp_path):
    out, picture = tmp_path / "answer.json", tmp_path / "picture.png"
    random_picture(7).save(picture)
    box = ("--box", "0", "0", "16", "16", "8", "8", "32", "24")
    common = ("attribute", *PROMPT, "--image", str(picture), "--index", str(index_folder))
    assert main([*common, *box, "--top_k", "3", "--out", str(out)]) == 0
    answer = json.loads(out.read_text(), parse_constant=strict)
    keys = {"query", "method", "results", "evaluations", "seconds", "settings", "step_sizes", "search", "index"}
    assert set(answer) == keys
    assert answer["step_sizes"] == []  # they are named by the settings
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
        reads_gradients = any(part.startswith("gradients/") for part in METHODS[name].artifacts)
        assert (int(evaluations) > 0) == bool(METHODS[name].curvature or reads_gradients)
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


def test_one_noise_alone_leaves_the_bounds_open(model32, tiny_settings, tmp_path):
    folder = build_all(tmp_path / "index", model32, replace(tiny_settings, noise=NoiseSettings(1, 1)))
    query, settings = Query("a bus", random_picture(1)), AttributeSettings(top_k=2)
    answer = to_json(list(attribute(model32, Index.open(folder), query, settings))[-1])
    assert [(r["score_low"], r["score_high"]) for r in answer["results"]] == [(None, None)] * 2
    json.dumps(answer, allow_nan=False)


def test_few_images_are_all_reported_by_default(capsys, index_folder, tmp_path):
    """Eight images: ten would be too many, and are when they are asked for."""
    asked = ("attribute", *PROMPT, "--method", "pixel", "--index", str(index_folder))
    assert main([*asked, "--out", str(tmp_path / "a.json")]) == 0
    answer = json.loads((tmp_path / "a.json").read_text())
    assert len(answer["results"]) == answer["settings"]["top_k"] == 8
    assert len(capsys.readouterr().out.splitlines()) == 8
    assert main([*asked, "--top_k", "10"]) == 2
    assert "top_k = 10 is not possible; accepted are 1 to 8" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--method", "pixel", "--random_seed", "1"), "pixel does not use --random_seed (given: 1); it is for random"),
        (("--method", "pixel", "--race_keep", "0.5"), "pixel does not use --race_keep"),
        (("--method", "pixel", "--unlearn_timesteps", "9"), "pixel does not use --unlearn_timesteps"),
        (("--exhaustive", "--race_keep", "0.5"), "--exhaustive does not use --race_keep"),
        (("--race_keep", "1.5"), "race_keep = 1.5 is not possible; accepted are shares above 0, up to 1"),
        (("--race_growth", "0"), "race_growth = 0 is not possible"),
        (("--race_first_columns", "0"), "race_first_columns = 0 is not possible; accepted are whole numbers from 1"),
        (("--race_survivors", "-1"), "race_survivors = -1 is not possible"),
        (("--unlearn_timesteps", "1001"), "unlearn_timesteps = 1001 is not possible; accepted are 1 to 1000"),
        (("--unlearn_noises", "0"), "unlearn_noises = 0 is not possible"),
        (("--unlearn_batch", "0"), "unlearn_batch = 0 is not possible"),
        (("--batch", "0"), "batch = 0 is not possible"),
        (("--rise", "0"), "a rise of 0.0 is not possible; accepted are shares above 0"),
        (("--rise", "0.1", "--step_size", "0.3"), "--rise does not use --step_size (given: 0.3); name one of the two"),
        (
            ("--method", "influence", "--rise", "0.1"),
            "influence does not use --rise (given: 0.1); it is for unlearning",
        ),
        (
            ("--method", "pixel", "--noise_seed", "1"),
            "pixel does not use --noise_seed (given: 1); it is for unlearning",
        ),
        (("--noise_seed", "-1"), "seed -1 is not possible"),
        (("--damping", "-1"), "a damping of -1 is not possible"),
        (("--curvature", "none"), "--curvature none is no flag"),
    ],
)
def test_settings_that_are_not_possible_or_not_used_are_refused(refused, arguments, told):
    assert told in refused("attribute", *PROMPT, *arguments)


def test_every_setting_is_used_and_recorded(index_folder, tmp_path):
    given = {
        "random_seed": 3,
        "top_k": 2,
        "race_survivors": 5,
        "unlearn_noises": 1,
        "unlearn_timesteps": 5,
        "step_size": 0.02,
    }
    told = {}
    for method, names in {"random": ["random_seed"], "unlearning": [*given][1:]}.items():
        asked = [part for name in names for part in (f"--{name}", str(given[name]))]
        out = ("--out", str(tmp_path / "a.json"), "--index", str(index_folder))
        assert main(["attribute", *PROMPT, "--method", method, *asked, *out]) == 0
        told[method] = json.loads((tmp_path / "a.json").read_text())["settings"]
    assert told["random"]["seed"] == 3
    unlearn = told["unlearning"]["unlearn"]
    assert (told["unlearning"]["race"]["survivors"], unlearn["noises"], unlearn["timesteps"]) == (5, 1, 5)
    assert (unlearn["step_size"], unlearn["seed"]) == (0.02, AttributeSettings().unlearn.seed)


def test_a_rise_and_a_noise_seed_are_flags_and_recorded(index_folder, tmp_path):
    asked = ("--rise", "0.001", "--noise_seed", "5", "--unlearn_timesteps", "3", "--unlearn_noises", "1")
    out = ("--out", str(tmp_path / "a.json"), "--index", str(index_folder))
    assert main(["attribute", *PROMPT, *asked, *out]) == 0
    told = json.loads((tmp_path / "a.json").read_text())
    assert (told["settings"]["noise_seed"], told["settings"]["unlearn"]["rise"]) == (5, 0.001)
    assert told["settings"]["unlearn"]["step_size"] is None
    assert len(told["step_sizes"]) == 1


def test_files_are_written_before_a_reader_of_the_results_can_leave(index_folder, tmp_path, monkeypatch):
    def gone(*_, **__):
        raise BrokenPipeError

    monkeypatch.setattr("attribution.cli.attribute.print", gone, raising=False)
    random_picture(7).save(tmp_path / "p.png")
    asked = (
        "attribute",
        *PROMPT,
        "--image",
        str(tmp_path / "p.png"),
        "--method",
        "pixel",
        "--index",
        str(index_folder),
    )
    main([*asked, "--out", str(tmp_path / "a.json"), "--report", str(tmp_path / "a.zip")])
    assert json.loads((tmp_path / "a.json").read_text())["method"] == "pixel"
    assert (tmp_path / "a.zip").is_file()


def test_one_file_for_both_outputs_is_refused(refused, tmp_path):
    out = str(tmp_path / "a")
    assert "--out and --report both name" in refused("attribute", *PROMPT, "--out", out, "--report", out)
