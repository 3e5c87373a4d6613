"""The proof on the page: from a made-up result in a folder; nothing without one."""

from dataclasses import replace

import gradio as gr
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from near import awaited

from attribution.answers.proof import VERSION, Case, Proof, Retrained
from attribution.ui.page import lay
from attribution.ui.proof import proof_html
from attribution.ui.routes import routes
from attribution.ui.studio import Studio

NAMED = Retrained("d-trak", 64, 64, "0-d-trak-named.png", 8, "0-d-trak.png", 0.314, 0.62)
CHANCE = Retrained("random", 64, 64, "0-random-named.png", 8, "0-random.png", 0.02, -0.01)
CASE = Case("a <b>bus</b>", 3, ((1.0, 2.0, 9.0, 8.0),), (32, 32), "0.png", (NAMED, CHANCE), 0.015)
RISES = {"d-trak": 0.25, "random": 0.031}
PROOF = Proof(VERSION, 1024, (CASE,), 16, RISES, "python -m attribution <evaluate>", "2026", "abc", "def", ("Twemoji",))


def laid(studio):
    async def lay_it():
        with gr.Blocks() as page:
            lay(studio)
        return page

    return {getattr(block, "elem_id", None): block for block in awaited(lay_it()).blocks.values()}


def test_a_row_tells_whose_images_are_gone_and_what_became_of_the_picture():
    html = proof_html(PROOF)
    for told in (
        "Without the 64 that d-trak names",
        "loss +62%, picture changed by 31%",
        "Without 64 at random",
        "loss -1%, picture changed by 2%",
        "Over all 16 pictures the loss rises by 25% without the 64 that d-trak names, by 3% without 64 at random.",
        "Shown are those whose loss rises the most.",
        "and 56 more",
        "1,024 training images",
        "Trained again on all images, with other random numbers, it changes by 2%",
    ):
        assert told in html
    for name in PROOF.files:
        assert f"src='proof/{name}'" in html
    assert "<b>bus" not in html
    assert "<evaluate>" not in html
    assert html.count("<rect") == 1


def test_what_is_not_known_is_not_told():
    bare = replace(CASE, boxes=(), noise=None, retrained=(replace(NAMED, named=8, left_out=8),))
    html = proof_html(replace(PROOF, cases=(bare,), pictures=1))
    assert "Shown are" not in html
    assert "Trained again on all images" not in html
    assert "more" not in html
    assert "<rect" not in html


def test_a_training_that_left_out_more_says_so():
    shared = replace(CASE, retrained=(replace(NAMED, left_out=412),))
    assert "this training left out 412 in all, for several pictures" in proof_html(replace(PROOF, cases=(shared,)))


@pytest.fixture
def proven(studio, monkeypatch, tmp_path):
    """A studio with a proof whose pictures are in a folder."""
    for name in PROOF.files:
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "secret.png").write_bytes(b"secret")
    monkeypatch.setattr("attribution.ui.studio.read_proof", lambda folder: PROOF if folder == tmp_path else None)
    return Studio(studio.model, studio.index, studio.runs, proven=tmp_path)


def test_the_page_shows_it_where_it_is_and_nothing_where_it_is_not(proven, studio, tmp_path):
    assert "Without the 64 that d-trak names" in laid(proven)["proof"].value
    assert "proof" not in laid(Studio(studio.model, studio.index, studio.runs, proven=tmp_path / "none"))


def test_its_pictures_are_served_and_no_other_files(proven, studio, tmp_path):
    def answers(studio, name):
        app = FastAPI(routes=routes(studio))
        return TestClient(app).get(f"/proof/{name}")

    assert answers(proven, "0-d-trak.png").content == b"0-d-trak.png"
    for name in ("secret.png", "proof.json", "..%2Fproof.json"):
        assert answers(proven, name).status_code == 404
    bare = Studio(studio.model, studio.index, studio.runs, proven=tmp_path / "none")
    assert answers(bare, "0.png").status_code == 404
