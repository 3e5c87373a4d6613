"""The command line as a whole: which commands there are, and how they are called."""

import subprocess
import sys
from pathlib import Path

import pytest

from attribution.cli import COMMANDS, main
from attribution.cli.evaluate import evaluate

PROMPT = ("--prompt", "a green bus")


def test_an_unknown_command_and_none_are_refused_with_the_known_ones(refused):
    for arguments in (("paint",), ()):
        told = refused(*arguments, index=None)
        assert "scenes, index, generate, attribute, detect, replay, floor, rehearse, distill, evaluate" in told


def test_help_is_no_error(capsys):
    with pytest.raises(SystemExit) as left:
        main(["attribute", "--help"])
    assert not left.value.code
    assert "--top_k" in capsys.readouterr().out


def test_the_program_exits_with_2_and_one_line_on_standard_error(tmp_path):
    command = [sys.executable, "-m", "attribution", "attribute", *PROMPT, "--index", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "is not an index" in done.stderr


def test_every_command_has_a_file_and_is_listed_in_the_help(capsys):
    folder = Path(sys.modules["attribution.cli"].__file__).parent
    assert {path.stem for path in folder.glob("*.py")} > set(COMMANDS)
    assert main(["--help"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert listed == list(COMMANDS)


def test_a_command_of_commands_names_them(capsys, refused):
    known = f"accepted are {', '.join(evaluate)}"
    assert known in refused("evaluate", index=None)
    assert f"there is no command 'beauty'; {known}" in refused("evaluate", "beauty", index=None)
    told = refused("evaluate", "locality", "--out", "x.jsonl", "--rows", "magic", index=None)
    assert "there is no row 'magic'; accepted are unlearning" in told
    assert main(["evaluate", "--help"]) == 0
    assert "Precision@10 of boxed objects" in capsys.readouterr().out
