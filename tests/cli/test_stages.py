"""A build, watched: something is said every few seconds, however long a call takes."""

import time

import pytest

from attribution.cli import stages as shown
from attribution.cli.stages import clock, described, stages
from attribution.index.build import BuildProgress


def test_a_step_is_told_when_it_begins_when_it_ends_and_not_for_each_block(capsys):
    with stages() as show:
        show(BuildProgress("latents", 0, 0))
        for done in range(1, 101):
            show(BuildProgress("latents", done, 100))
        show(BuildProgress("fisher", 3, 9))
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == [
        "latents: begun",
        "latents: 100 of 100",
        "fisher: 3 of 9",
        "fisher: 3 of 9",
    ]


def test_a_call_that_takes_long_is_not_silent(capsys, monkeypatch):
    monkeypatch.setattr(shown, "EVERY", 0.05)
    monkeypatch.setattr(shown, "REDRAWN", 0.02)
    with stages() as show:
        show(BuildProgress("fisher", 1, 9))
        time.sleep(0.5)
    assert len(capsys.readouterr().err.splitlines()) > 4


def test_what_ends_a_build_is_raised_after_its_last_line(capsys):
    def ended():
        with stages() as show:
            show(BuildProgress("fisher", 1, 9))
            raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        ended()
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_what_an_earlier_process_did_is_no_part_of_the_rate(monkeypatch):
    """Sums tell how far they are when they go on, with their first block."""
    since = []
    monkeypatch.setattr(shown, "EVERY", 0.0)
    monkeypatch.setattr(shown, "described", lambda first, _last, _seconds: since.append(first.done))
    with stages() as show:
        show(BuildProgress("fisher", 0, 0))
        show(BuildProgress("fisher", 8000, 9000))
        show(BuildProgress("fisher", 8001, 9000))
    assert since[-1] == 8000


@pytest.mark.parametrize(
    ("done", "seconds", "told"),
    [
        (2, 20.0, "fisher: 2 of 10, 20 s"),
        (6, 20.0, "fisher: 6 of 10, 5.0 s each, 20 s left"),
        (6, 1.0, "fisher: 6 of 10, 4.0 a second, 1.0 s left"),
        (10, 90.0, "fisher: 10 of 10, 1 min 30 s"),
    ],
)
def test_a_rate_is_of_what_was_done_since_the_step_began(done, seconds, told):
    """Two were done by an earlier process."""
    assert described(BuildProgress("fisher", 2, 10), BuildProgress("fisher", done, 10), seconds) == told


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.31, "0.3 s"), (59.0, "59 s"), (119.7, "2 min 0 s"), (3 * 3600 + 61, "3 h 1 min"), (90_000, "1 d 1 h")],
)
def test_times_are_read_in_two_units(seconds, told):
    assert clock(seconds) == told


def test_a_terminal_has_a_bar_for_each_step(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with stages() as show:
        show(BuildProgress("latents", 0, 0))
        show(BuildProgress("latents", 50.5, 100))
        show(BuildProgress("latents", 100, 100))
        show(BuildProgress("fisher", 0, 7))
    err = capsys.readouterr().err
    assert "latents" in err
    assert "100 % |" in err
    assert "left]" in err
    assert "fisher" in err
