"""`generate`: names of pictures that can be written, and refusals before any work."""

import pytest
from PIL import Image

from attribution.cli import main

PROMPT = ("--prompt", "a green bus")


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


@pytest.mark.parametrize(
    "name", ["picture", "picture.out", "picture.json", ".png", "folder.png", "/proc/x.png", "file/x.png"]
)
def test_names_that_cannot_be_written_are_refused_before_any_work(refused, tmp_path, monkeypatch, name):
    """No ending, an unknown one, a folder, a folder that cannot be written to, a name under that of a file."""
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").touch()
    monkeypatch.setattr("attribution.diffusion.pipeline.Model.generate", lambda *_: pytest.fail("work"))
    assert f"--out {tmp_path / name} cannot be written" in refused("generate", *PROMPT, "--out", str(tmp_path / name))
    assert {path.name for path in tmp_path.iterdir()} == {"folder.png", "file"}


@pytest.mark.parametrize(("name", "kind"), [("a.png", "PNG"), ("a.PNG", "PNG"), ("a.jpg", "JPEG"), ("a.webp", "WEBP")])
def test_a_picture_is_written_by_its_ending_with_the_sampling_that_was_asked_for(index_folder, tmp_path, name, kind):
    out = tmp_path / name
    asked = ("generate", *PROMPT, "--steps", "2", "--guidance", "1.5", "--index", str(index_folder))
    assert main([*asked, "--out", str(out)]) == 0
    with Image.open(out) as picture:
        assert (picture.format, picture.size) == (kind, (32, 32))
    assert [path.name for path in tmp_path.iterdir()] == [name]
