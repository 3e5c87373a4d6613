"""The program ends in one sentence and an exit status whatever fails."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from attribution.cli.ending import FAILED, INTERRUPTED, PIPE_CLOSED, status_of
from attribution.errors import InputError

ROOT = Path(__file__).parent.parent.parent


def failing(error):
    def work():
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (InputError("the prompt is empty"), "error: the prompt is empty\n"),
        (InputError("two\nlines"), "error: two lines\n"),
        (TypeError("unhashable\nand more"), "error: unhashable (TypeError; the environment variable"),
        (ValueError(), "error: ValueError (ValueError;"),
        (MemoryError(), "error: MemoryError (MemoryError;"),
        (torch.OutOfMemoryError("CUDA out of memory.\nTried"), "error: CUDA out of memory. (OutOfMemoryError;"),
        (OSError(28, "No space left on device"), "error: No space left on device (OSError;"),
        (PermissionError(13, "Permission denied", "a/b"), "error: a/b: Permission denied (PermissionError;"),
    ],
)
def test_whatever_fails_is_one_sentence_and_says_how_to_see_more(capsys, error, told):
    assert status_of(failing(error)) == FAILED == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(told)
    assert captured.err.count("\n") == 1
    assert isinstance(error, InputError) or "ATTRIBUTION_DEBUG=1 shows where" in captured.err


def test_where_an_error_came_from_is_shown_on_request(capsys, monkeypatch):
    monkeypatch.setenv("ATTRIBUTION_DEBUG", "1")
    assert status_of(failing(TypeError("unhashable"))) == 2
    told = capsys.readouterr().err
    assert "Traceback" in told
    assert "in work" in told
    assert told.splitlines()[-1].startswith("error: unhashable")


def test_an_interruption_and_a_reader_who_left_are_passed_over_in_silence(capsys):
    assert status_of(lambda: None) == 0
    assert status_of(failing(KeyboardInterrupt())) == INTERRUPTED == 130
    assert status_of(failing(BrokenPipeError())) == PIPE_CLOSED == 141
    assert capsys.readouterr() == ("", "")


PROGRAM = """
import sys
from attribution.cli.ending import status_of
def work():
    for number in range(100_000):
        print(number)
sys.exit(status_of(work))
"""


def test_a_closed_pipe_is_quiet():
    with subprocess.Popen([sys.executable, "-c", PROGRAM], cwd=ROOT, stdout=-1, stderr=-1) as program:
        assert program.stdout.readline() == b"0\n"
        program.stdout.close()
        assert program.stderr.read() == b""
    assert program.returncode == PIPE_CLOSED


def test_a_full_disk_is_told():
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, stdout=full, stderr=-1, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: No space left on device (OSError;")
    assert done.stderr.count("\n") == 1
