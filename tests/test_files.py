"""Files are whole or not there, also where several write one of them."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from attribution.files import whole, write_whole


def test_many_writers_of_one_file_leave_one_whole_file(tmp_path):
    contents = [bytes([number]) * 100_000 for number in range(32)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda content: write_whole(tmp_path / "file", content), contents * 4))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() in contents


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
