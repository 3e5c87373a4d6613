"""The folder of runs: visitors and processes that share it, and what happens where it cannot be written."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Event

import pytest
from conftest import random_picture

from attribution.answers.kept import STALE, RunFolder, own_folder
from attribution.answers.report import read_zip
from attribution.answers.run import Run
from attribution.errors import InputError, NotKept
from attribution.index.pictures import ThumbnailFolder
from attribution.methods import attribute
from attribution.methods.answer import AttributeSettings
from attribution.query.query import Query


@pytest.fixture(scope="module")
def runs(model32, index32):
    """Twelve runs, of one answer under twelve labels."""
    query = Query("a red bird", random_picture(99))
    *_, answer = attribute(model32, index32, query, AttributeSettings(method="pixel", top_k=3))
    return [Run((answer,), label=f"bird {number}") for number in range(12)]


def test_a_folder_keeps_the_latest_runs(runs, index32, model32, tmp_path):
    folder = RunFolder(tmp_path / "runs", most=2)
    for age, each in enumerate(runs[:3]):
        os.utime(folder.keep(each, index32, model32), (1000 + age, 1000 + age))
    folder.keep(runs[2], index32, model32)
    assert {path.stem for path in folder.folder.iterdir()} == {runs[1].id, runs[2].id}
    assert read_zip(folder.path(runs[2].id)).id == runs[2].id
    for unknown in (runs[0].id, "../secret", "", "0" * 12, f"{runs[2].id}.zip", "/etc/passwd"):
        with pytest.raises(InputError, match="is not kept here; the latest 2 are"):
            folder.path(unknown)


def test_visitors_who_open_one_example_at_once_all_get_it(runs, index32, model32, tmp_path):
    folder = RunFolder(tmp_path / "runs")

    def visit(_):
        return read_zip(folder.keep(runs[0], index32, model32)).id

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(visit, range(60))) == {runs[0].id}
    assert [path.name for path in folder.folder.iterdir()] == [f"{runs[0].id}.zip"]


def test_runs_that_others_delete_meanwhile_do_no_harm(runs, index32, model32, tmp_path):
    """Two folders, as of two processes, of which one has room for nothing."""
    folder, other, ended = RunFolder(tmp_path / "runs", most=3), RunFolder(tmp_path / "runs", most=0), Event()

    def delete():
        while not ended.is_set():
            other._forget()

    with ThreadPoolExecutor(5) as pool:
        deleting = pool.submit(delete)
        try:
            kept = list(pool.map(lambda run: folder.keep(run, index32, model32), runs * 4))
        finally:
            ended.set()
        deleting.result()
    assert len(kept) == 48


def test_a_file_that_vanishes_between_listing_and_looking_is_passed_over(runs, index32, model32, tmp_path):
    folder = RunFolder(tmp_path / "runs", most=1)
    folder.keep(runs[0], index32, model32)
    (folder.folder / f"{runs[1].id}.zip").symlink_to(tmp_path / "gone")  # `stat` fails as of a deleted file
    assert folder.keep(runs[2], index32, model32).is_file()


def test_files_that_a_process_left_unfinished_go_after_an_hour(runs, index32, model32, tmp_path):
    folder = RunFolder(tmp_path / "runs")
    folder.folder.mkdir()
    old, new = folder.folder / ".old.partial", folder.folder / ".new.partial"
    for path, age in ((old, STALE + 60), (new, 60)):
        path.touch()
        os.utime(path, (time.time() - age,) * 2)
    folder.keep(runs[0], index32, model32)
    assert (old.exists(), new.exists()) == (False, True)


def test_a_folder_that_is_gone_is_made_again_for_its_user_alone(runs, index32, model32, tmp_path):
    folder = RunFolder(tmp_path / "runs")
    path = folder.keep(runs[0], index32, model32)
    path.unlink()
    folder.folder.rmdir()
    assert folder.keep(runs[0], index32, model32).is_file()
    assert folder.folder.stat().st_mode & 0o077 == 0


def test_what_cannot_be_kept_is_told_in_a_sentence(runs, index32, model32, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(NotKept, match=r"this answer could not be kept .*: its link will not open later"):
        RunFolder(tmp_path / "file").keep(runs[0], index32, model32)
    with pytest.raises(NotKept, match=r"No such file or directory|Read-only|denied|not permitted"):
        RunFolder(tmp_path / "runs").keep(
            runs[0],
            replace(index32, pictures=replace(index32.pictures, thumbnails=ThumbnailFolder(tmp_path / "gone"))),
            model32,
        )

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("attribution.answers.report.write_whole", full)
    with pytest.raises(NotKept, match=r"\(No space left on device\)"):
        RunFolder(tmp_path / "runs").keep(runs[0], index32, model32)


def test_the_folder_of_ones_own_is_in_the_cache_or_passes(tmp_path, monkeypatch):
    monkeypatch.setenv("ATTRIBUTION_CACHE", str(tmp_path / "cache"))
    assert own_folder().is_relative_to(tmp_path / "cache")
    assert own_folder().stat().st_mode & 0o077 == 0
    (tmp_path / "file").touch()
    monkeypatch.setenv("ATTRIBUTION_CACHE", str(tmp_path / "file"))
    assert own_folder().is_dir()
    assert own_folder() != own_folder(), "nobody else's"
