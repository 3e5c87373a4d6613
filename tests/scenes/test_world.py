"""The embedded world: an imagefolder in the cache, whole or not at all, and an ordinary index over it."""

import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from attribution import files
from attribution.errors import IndexMismatch
from attribution.index.data import DataSettings, open_training_set
from attribution.index.index import Index, open_index
from attribution.index.texts import read_digests
from attribution.scenes import world
from attribution.scenes.compose import draw_scene, make_scenes
from attribution.scenes.world import EMBEDDED, SCENES, THUMBNAILS, composed, open_world, open_world_or

COUNT = 20


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of this test's own."""
    monkeypatch.setenv("ATTRIBUTION_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def times_of(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_the_world_is_composed_once_into_the_cache(cache):
    folder = composed(COUNT)
    assert cache in folder.parents
    assert sorted(path.name for path in (folder / THUMBNAILS).iterdir()) == [f"{row:08d}.png" for row in range(COUNT)]
    scene = draw_scene(make_scenes("train", 8)[7])
    for path in (folder / THUMBNAILS / "00000007.png", folder / SCENES / "00007.png"):
        assert Image.open(path).tobytes() == scene.tobytes()
    before = times_of(folder)
    assert composed(COUNT) == folder
    assert times_of(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


@pytest.mark.parametrize("lost", [f"{THUMBNAILS}/00000003.png", f"{SCENES}/00003.png", SCENES])
def test_a_world_that_is_no_longer_whole_is_composed_anew(cache, lost):
    folder = composed(COUNT)
    held = folder / lost
    shutil.rmtree(held) if held.is_dir() else held.unlink()
    assert composed(COUNT) == folder
    assert held.exists()
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_processes_that_start_at_once_find_one_whole_world(cache):
    with ThreadPoolExecutor(4) as pool:
        folders = {future.result() for future in [pool.submit(composed, COUNT) for _ in range(4)]}
    (folder,) = folders
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert len(list((folder / SCENES).glob("*.png"))) == COUNT


def test_without_a_cache_that_can_be_written_the_world_is_temporary(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ATTRIBUTION_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    kept = []
    monkeypatch.setattr(files.atexit, "register", lambda *what, **_: kept.append(what))
    folder = composed(COUNT)
    assert tmp_path in folder.parents
    assert len(list((folder / THUMBNAILS).iterdir())) == COUNT
    assert kept == [(shutil.rmtree, folder.parent)]  # gone with the process


def test_a_cache_that_may_only_be_read_is_read(cache, monkeypatch):
    folder = composed(COUNT)
    monkeypatch.setattr(world, "write_imagefolder", lambda *_: pytest.fail("it was composed again"))
    assert composed(COUNT) == folder


@pytest.fixture(scope="module")
def embedded():
    return open_world()


def test_the_shipped_index_is_of_what_is_composed(embedded):
    _, index = embedded
    training = open_training_set(DataSettings(train_data_dir=composed() / SCENES))
    assert (len(training), training.sha256()) == (index.manifest.data.count, index.manifest.data.sha256)
    assert (training.ids, training.captions) == (index.ids, index.captions)
    assert training.digests() == read_digests(EMBEDDED)  # by which `index --update` knows what was changed


def test_a_training_picture_of_the_world_is_the_scene(embedded):
    _, index = embedded
    scene = draw_scene(make_scenes("train", 10)[9])
    assert index.picture(9).tobytes() == scene.tobytes()
    assert index.pictures.small(9).tobytes() == scene.tobytes()


def test_the_worlds_own_folder_is_the_world(embedded, index_folder):
    assert open_world_or(EMBEDDED)[1].id == open_world_or(None)[1].id == embedded[1].id == "8d0d6cbe91dc"
    assert open_world_or(index_folder)[1].id == Index.open(index_folder).id


def test_as_any_other_index_the_shipped_one_lacks_thumbnails():
    with pytest.raises(IndexMismatch, match=r"is unfinished \(thumbnails\)"):
        open_index(EMBEDDED)


def test_how_the_shipped_samples_were_chosen_is_told(embedded):
    steps = embedded[1].manifest.steps
    assert {steps[name].made.order for name in ("fisher", "fisher-all", "ekfac")} == {"permutation"}
