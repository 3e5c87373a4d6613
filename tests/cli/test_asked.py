"""Files and folders that could not be written are refused before any work."""

import os
from pathlib import Path

import pytest

from attribution.cli.asked import check_file, check_folder
from attribution.errors import InputError


def test_what_can_be_written_is_accepted_and_nothing_is_left_behind(tmp_path):
    (tmp_path / "there.json").write_text("before")
    (tmp_path / "link.json").symlink_to(tmp_path / "there.json")
    for name in ("new", "new.json", "there.json", "link.json"):
        check_file("--out", tmp_path / name)
    check_file("--out", None)
    check_file("--out", tmp_path / "a.PNG", (".png", ".jpg"))
    for name in ("new", "deep/and/new", "."):
        check_folder("--out", tmp_path / name)
    assert {path.name for path in tmp_path.iterdir()} == {"there.json", "link.json"}
    assert (tmp_path / "there.json").read_text() == "before"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("folder", "it is a folder or a device, name a file"),
        ("none/x", "none does not exist, name a folder that can be written to"),
        ("file/x", "file is a file, name a folder"),
        ("/dev/null", "it is a folder or a device"),
        ("/proc/x", "No such file or directory"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused(tmp_path, name, told):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"--report .* cannot be written") as caught:
        check_file("--report", tmp_path / name)
    assert told in str(caught.value)


@pytest.mark.parametrize("name", ["file", "file/deep/folder", "/proc/x/y"])
def test_a_folder_that_cannot_be_made_is_refused(tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"--out .* cannot be written"):
        check_folder("--out", tmp_path / name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="Permission denied"):
        check_file("--out", tmp_path / "x")
    with pytest.raises(InputError, match="Permission denied"):
        check_folder("--out", tmp_path / "x")


def test_a_folder_that_the_system_refuses_is_told_with_its_reason(tmp_path, monkeypatch):
    def refuse(_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "touch", lambda *_, **__: refuse(None))
    with pytest.raises(InputError, match=r"cannot be written \(Permission denied\)"):
        check_file("--out", tmp_path / "x")
