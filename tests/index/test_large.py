"""An index of very many images, simulated: what is opened and asked grows by no more than it must."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from large import stretch

from attribution.files import let_go
from attribution.index.index import Index
from attribution.methods import attribute
from attribution.methods.answer import MOST_RANKS, AttributeSettings

ROWS = 400_000


@pytest.fixture
def many(plain_copy):
    return stretch(plain_copy, ROWS)


def test_opening_many_images_holds_nothing_of_each(many):
    Index.open(many)  # what is imported or made once
    tracemalloc.start()
    index = Index.open(many)
    held, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(index) == ROWS
    assert most < 300_000 < ROWS
    assert held < 100_000


def test_any_row_of_many_is_read_alone(many, index32):
    index = Index.open(many)
    assert index.captions[ROWS - 1] == index32.captions[(ROWS - 1) % 65536 % 8]
    assert index.ids[3] == "p3.png"
    assert index.thumbnail(7) == index32.thumbnail(7)
    assert len(index.thumbnail(ROWS - 1)) == (many / "thumbnails.bin").stat().st_size // (ROWS - 7)
    np.testing.assert_array_equal(index.encoded.view([3, ROWS - 1], [0])[0], index32.encoded.view([3], [0])[0])


def test_an_answer_over_many_images_keeps_its_first(many, model32, query):
    *_, found = attribute(model32, Index.open(many), query, AttributeSettings(method="random"))
    assert (len(found.rows), found.ranked) == (MOST_RANKS, ROWS)


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="the system does not tell")
def test_what_was_read_of_an_array_does_not_stay_in_memory(tmp_path):
    """Resident pages of this one file, as the system counts them."""

    def resident():
        told = Path("/proc/self/smaps").read_text()
        part = told[told.index(str(tmp_path / "a.npy")) :]
        return int(part[part.index("Rss:") :].split()[1])

    np.save(tmp_path / "a.npy", np.ones((4000, 1000), np.float32))
    array = np.load(tmp_path / "a.npy", mmap_mode="r")
    assert float(array.sum()) == 4e6
    assert resident() > 10_000
    let_go(array[:, 3:7])
    assert resident() == 0
    assert float(array.sum()) == 4e6
    let_go(np.ones(3))
