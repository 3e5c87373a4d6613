"""What ships: the embedded pipeline is plain diffusers', and the embedded index is of it and of the scenes."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from attribution.answers.report import read_zip
from attribution.answers.verdict import verdict_of
from attribution.diffusion.pictures import to_pixels
from attribution.evaluate.locality import available
from attribution.index.features import FEATURES
from attribution.index.manifest import FeatureRecord
from attribution.index.towers import Towers, joined
from attribution.methods import METHODS
from attribution.query.grounding import open_detector
from attribution.scenes.compose import SIZE, draw_scene, make_scenes
from attribution.scenes.detected import generated, heldout, recall_of
from attribution.scenes.world import EMBEDDED, open_world
from attribution.unlearning.score import training_losses

MODEL = EMBEDDED.parent / "model"
PROMPT = "an outlined drawing of a motorcycle and a stop sign on a pink background"
TOKENS = f"""
from transformers import CLIPTokenizer
print(CLIPTokenizer.from_pretrained({str(MODEL)!r}, subfolder="tokenizer")({PROMPT!r}).input_ids)
"""


@pytest.fixture(scope="module")
def embedded():
    return open_world()


def bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_plain_diffusers_loads_the_embedded_pipeline_and_draws():
    pipe = StableDiffusionPipeline.from_pretrained(MODEL, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    made = pipe(PROMPT, num_inference_steps=25, generator=torch.Generator().manual_seed(0), output_type="np").images[0]
    assert made.shape == (SIZE, SIZE, 3)
    assert made.std() > 0.05


def test_sizes_are_as_promised():
    assert bytes_in(MODEL) < 20e6
    assert bytes_in(EMBEDDED.parents[1]) < 80e6


def test_the_tokenizer_reads_the_same_in_another_process(embedded):
    model, _ = embedded
    there = subprocess.run([sys.executable, "-c", TOKENS], capture_output=True, text=True, check=True).stdout
    here = model.pipe.tokenizer(PROMPT).input_ids
    assert json.loads(there) == here
    assert model.pipe.tokenizer.decode(here, skip_special_tokens=True) == PROMPT


def test_the_index_is_of_the_scenes_that_the_package_composes(embedded):
    model, index = embedded
    scenes = make_scenes("train", len(index))
    assert index.captions == [scene.caption for scene in scenes]
    rows = [0, 1, 2047, 4095]
    pixels = to_pixels([draw_scene(scenes[row]) for row in rows])
    for view, side in enumerate((pixels, pixels.flip(-1))):
        latents = model.encode_images(side).numpy()
        assert np.abs(latents - index.latents[rows, view].astype(np.float32)).max() < 0.01


def test_base_losses_are_those_of_the_shipped_weights(embedded):
    model, index = embedded
    rows = [5, 999, 4000]
    bank = index.bank(model)
    chunks = training_losses(model, index.encoded, bank, rows, range(len(bank)))
    losses = np.concatenate([losses for _, losses in chunks])
    np.testing.assert_allclose(losses, index.base_losses[rows], rtol=1e-3)


def test_the_embedded_index_answers_by_every_method_but_dinov2(embedded):
    assert set(METHODS) - set(available(*embedded)) == {"dinov2"}


def test_fast_places_the_training_images_as_its_networks_do(embedded):
    _, index = embedded
    rows = [0, 7, 4095]
    parts = [np.asarray(index.array(f"features/{base}")[rows], np.float32) for base in FEATURES["fast"].joins]
    placed = Towers.read(index.feature_weights("fast")).images(joined(parts).reshape(6, -1)).reshape(3, 2, -1)
    np.testing.assert_allclose(index.array("features/fast")[rows], placed, rtol=2e-3, atol=2e-2)
    assert json.loads(index.manifest.made("features/fast", FeatureRecord).distilled)["index"] == index.id


@pytest.mark.filterwarnings("ignore:.*cuda.amp", "ignore:torch.meshgrid", "ignore:Importing from timm")
def test_the_detector_meets_its_bar(embedded):
    """On fewer pictures than `python -m attribution.scenes.detector --stage report`."""
    model, _ = embedded
    detector = open_detector(str(EMBEDDED.parent / "detector"), torch.device("cpu"))
    assert bytes_in(EMBEDDED.parent / "detector") < 13e6
    for asked, bar in ((heldout(40), 0.9), (generated(model, 8), 0.8)):
        found = recall_of(detector, asked, detector.threshold)
        assert found["recall"] >= bar
        assert found["false"] < 0.2


def test_the_examples_are_of_this_index_and_open(embedded):
    _, index = embedded
    paths = sorted((EMBEDDED.parent / "examples").glob("*.zip"))
    assert len(paths) == 3
    grades = []
    for path in paths:
        run = read_zip(path)
        assert path.stem == run.id
        assert (run.answers[0].index_id, run.answers[0].settings.method) == (index.id, "ensemble")
        grades.append(verdict_of(run.answers[0], index).grade)
    assert sorted(grades) == ["clear source", "no source found", "uncertain"]
