"""Images with several captions: all are kept, and an image's loss is the mean of its losses; against the oracle."""

import json

import numpy as np
import oracle
import pytest
import torch
from conftest import SIDE, build_all, random_picture, save_tiny_pipeline
from diffusers import StableDiffusionPipeline

from attribution.diffusion.noise import NoiseSettings
from attribution.diffusion.pipeline import Model
from attribution.index.build import build
from attribution.index.data import DataSettings, open_training_set
from attribution.index.index import Index
from attribution.index.work import BuildSettings, ExtendSettings
from attribution.methods import attribute
from attribution.methods.answer import AttributeSettings
from attribution.query.query import Query
from attribution.unlearning.fisher import FisherSettings
from attribution.unlearning.projection import GradientSettings
from attribution.unlearning.race import RaceSettings
from attribution.unlearning.step import UnlearnSettings

TEXTS = [
    ["a red bird"],
    ["a green bus", "a bus on a road", "green"],
    ["a blue key", ""],
    ["a kite", "a kite in the sky", "a red kite", "two kites", "sky"],
]
NOISE, FISHER = NoiseSettings(2, 1, 5), FisherSettings(samples=4 * 2 * 3, timesteps=3, seed=6)  # each triple once
SHAPE, LENGTH = (4, 8, 8), 1000


@pytest.fixture(scope="module")
def captioned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("captioned")
    rows = [{"file_name": f"p{row}.png", "text": texts} for row, texts in enumerate(TEXTS)]
    for row, told in enumerate(rows):
        random_picture(row).save(folder / told["file_name"])
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def world(captioned, tmp_path_factory, device):
    """A float64 model, its index, and a pipeline for the oracle."""
    base = tmp_path_factory.mktemp("several")
    folder = save_tiny_pipeline(base / "model", "v_prediction")
    model = Model.load(folder, device, torch.float64)
    settings = BuildSettings(DataSettings(train_data_dir=captioned), NOISE, FISHER, batch=3)
    more = ExtendSettings(ekfac=True, gradients=("loss", "d-trak"), projection=GradientSettings(dimension=8192))
    for _ in build(base / "index", model, settings, more):
        pass
    pipe = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float64, safety_checker=None)
    return model, Index.open(base / "index"), pipe


def latents_of(index):
    return torch.from_numpy(np.asarray(index.latents, np.float64))


def losses(pipe, latents):
    """(N, views, S): of each image the mean over its captions."""
    noises = oracle.draw(5, 2, 1, SHAPE, LENGTH)
    tables = []
    for row, texts in enumerate(TEXTS):
        each = [oracle.losses(pipe, latents[row : row + 1], [text], noises)[0] for text in texts]
        tables.append(sum(each) / len(texts))
    return np.stack(tables)


def gradient(pipe, x, texts, t, eps, output=oracle.loss):
    """Of the mean over an image's captions."""
    return oracle.gradient(
        pipe, lambda: sum(output(pipe, x, oracle.read(pipe, text), t, eps) for text in texts) / len(texts)
    )


def fisher(pipe, latents):
    noises = oracle.draw(6, 3, 1, SHAPE, LENGTH)
    total, count = {}, 0
    for row, texts in enumerate(TEXTS):
        for x in latents[row]:
            for t, eps in noises:
                for name, grad in gradient(pipe, x, texts, t, eps).items():
                    total[name] = total.get(name, 0) + grad**2
                count += 1
    return {name: values / count for name, values in total.items()}


def test_all_captions_are_kept_and_the_first_is_shown(world, captioned):
    _, index, _ = world
    assert index.captions == [first for first, *_ in TEXTS]
    assert index.encoded.several == {row: tuple(texts) for row, texts in enumerate(TEXTS) if len(texts) > 1}
    training = open_training_set(DataSettings(train_data_dir=captioned))
    assert training.notes == (
        "images with several captions (3): their losses are averaged over all of them, of which diffusers' script draws"
        " any each time; the first is shown",
        "blank captions (1): these images count as trained on without a text",
    )


def test_another_caption_makes_other_data(captioned, tmp_path):
    before = open_training_set(DataSettings(train_data_dir=captioned)).sha256()
    for row in range(len(TEXTS)):
        random_picture(row).save(tmp_path / f"p{row}.png")
    told = (captioned / "metadata.jsonl").read_text()
    (tmp_path / "metadata.jsonl").write_text(told)
    assert open_training_set(DataSettings(train_data_dir=tmp_path)).sha256() == before
    (tmp_path / "metadata.jsonl").write_text(told.replace("two kites", "three kites"))
    assert open_training_set(DataSettings(train_data_dir=tmp_path)).sha256() != before


def test_losses_and_fisher_information_equal_the_oracles(world):
    _, index, pipe = world
    np.testing.assert_allclose(index.base_losses, losses(pipe, latents_of(index)), rtol=1e-5)
    for name, values in fisher(pipe, latents_of(index)).items():
        torch.testing.assert_close(index.fisher[name].double(), values, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize(("name", "output"), [("loss", oracle.loss), ("d-trak", oracle.norm)])
def test_gradients_equal_the_oracles(world, name, output):
    _, index, pipe = world
    noises, latents = oracle.draw(5, 2, 1, SHAPE, LENGTH), latents_of(index)
    kept = np.asarray(index.array(f"gradients/{name}"), np.float64)[0, :, 0] / index.gradients(name).scale
    for row, texts in enumerate(TEXTS):
        each = [gradient(pipe, x, texts, t, eps, output) for x in latents[row] for t, eps in noises]
        flat = torch.cat([sum(grad[key] for grad in each).flatten() / len(each) for key in sorted(each[0])]).numpy()
        np.testing.assert_allclose(kept[row, : len(flat)], flat, rtol=2e-3, atol=1e-4 * np.abs(flat).max())


@pytest.mark.parametrize("batch", [2, 7])
def test_scores_equal_the_oracles(world, tmp_path, batch):
    model, index, _ = world
    pipe = StableDiffusionPipeline.from_pretrained(model.source, dtype=torch.float64, safety_checker=None)
    latents, picture = latents_of(index), random_picture(99, (SIDE, SIDE))
    unlearn = UnlearnSettings(step_size=0.3, timesteps=2, noises=1, batch=2)
    asked = AttributeSettings(exhaustive=True, top_k=4, unlearn=unlearn, batch=batch, race=RaceSettings())
    *_, answer = attribute(model, index, Query("a red bird", picture), asked)
    information, before = fisher(pipe, latents), losses(pipe, latents)
    text, noises = oracle.read(pipe, "a red bird"), oracle.draw(1, 2, 1, SHAPE, LENGTH)
    oracle.unlearn(pipe, oracle.see(pipe, picture), text, noises, information, 0.3, 0.1, 4, 1)
    scores = oracle.score(before, losses(pipe, latents), False)
    found = {result.row: result.score for result in answer.results}
    np.testing.assert_allclose([found[row] for row in range(4)], scores, rtol=1e-3, atol=1e-7)


def test_a_built_index_of_several_captions_is_gone_on_with(captioned, model32, tmp_path):
    settings = BuildSettings(DataSettings(train_data_dir=captioned), NOISE, FISHER, batch=3)
    steps = build(tmp_path / "index", model32, settings)
    while next(steps).step != "fisher":
        pass
    steps.close()
    whole = build_all(tmp_path / "whole", model32, settings)
    build_all(tmp_path / "index", model32, settings)
    for name in ("captions.arrow", "base_losses.npy", "fisher.safetensors"):
        assert (tmp_path / "index" / name).read_bytes() == (whole / name).read_bytes()
