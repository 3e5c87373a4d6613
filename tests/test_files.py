"""Files are whole or not there, also where several write one of them."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from attribution.files import assets_folder, cache_folder, try_folder, whole, write_whole

ROOT = Path(__file__).parent.parent


def test_many_writers_of_one_file_leave_one_whole_file(tmp_path):
    contents = [bytes([number]) * 100_000 for number in range(32)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda content: write_whole(tmp_path / "file", content), contents * 4))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() in contents


WRITER = """
import sys
from pathlib import Path
from attribution.files import write_whole
for number in range(200):
    write_whole(Path(sys.argv[1]), sys.argv[2].encode() * 50_000)
"""


def test_processes_that_write_one_file_leave_one_whole_file(tmp_path):
    command = [sys.executable, "-c", WRITER, str(tmp_path / "file")]
    writers = [subprocess.Popen([*command, letter], cwd=ROOT, stderr=subprocess.PIPE) for letter in "abcd"]
    assert [writer.communicate()[1] for writer in writers] == [b""] * 4
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() in [letter * 50_000 for letter in (b"a", b"b", b"c", b"d")]


def test_a_link_stays_and_what_it_leads_to_is_written(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "file")
    write_whole(tmp_path / "link", b"here")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_bytes() == b"here"


def test_a_write_that_fails_leaves_what_was_there_and_nothing_else(tmp_path):
    write_whole(tmp_path / "file", b"before")

    def half(path):
        with whole(path) as partial:
            partial.write_bytes(b"half")
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        half(tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"before"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_file_has_the_rights_that_any_other_new_file_has(tmp_path):
    write_whole(tmp_path / "file", b"")
    (tmp_path / "plain").write_bytes(b"")
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_name_as_long_as_a_name_may_be_can_be_written(tmp_path):
    write_whole(tmp_path / ("x" * 255), b"here")
    assert (tmp_path / ("x" * 255)).read_bytes() == b"here"


def test_a_trial_leaves_nothing(tmp_path):
    try_folder(tmp_path)
    assert not list(tmp_path.iterdir())
    for nowhere in (tmp_path / "gone", Path("/proc")):
        with pytest.raises(OSError, match="No such file"):
            try_folder(nowhere)


def test_the_cache_is_of_its_user_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("ATTRIBUTION_CACHE", str(tmp_path / "cache"))
    assert cache_folder().parent == tmp_path / "cache"
    assert cache_folder().stat().st_mode & 0o077 == 0
    (tmp_path / "file").touch()
    monkeypatch.setenv("ATTRIBUTION_CACHE", str(tmp_path / "file"))
    with pytest.raises(OSError, match="Not a directory"):
        cache_folder()


def test_assets_are_found_in_a_checkout():
    assert (assets_folder() / "emoji-scenes" / "index" / "manifest.json").is_file()
