"""The embedded feature networks: what ships loads and finds, and how they are trained."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, CLIPModel, CLIPTokenizer, ViTModel

from attribution.index.features import pixel_vectors
from attribution.query.regions import crop
from attribution.scenes.compose import SEEN, WORLD, draw_scene, make_scenes
from attribution.scenes.encoders import EncoderArgs, contrastive_loss, train_clip, train_dino
from attribution.scenes.names import OBJECTS
from attribution.scenes.nearest import effort, object_purity, object_queries, scene_purity
from attribution.scenes.views import look, pools

ASSETS = Path(__file__).parents[2] / "assets" / "emoji-scenes"
STAGES = {"clip": train_clip, "dino": train_dino}


def tiny(folder, stage):
    """A configuration of one step: its minutes are used up when the step is done."""
    return EncoderArgs(
        stage, work=folder, minutes=1e-6, out=folder / "out", batch=4, width=32, layers=1, scenes=16, heldout=16
    )


@pytest.fixture(scope="module")
def heldout():
    return make_scenes("heldout", 64)


@pytest.mark.parametrize("name", ["clip", "dino"])
def test_a_picture_as_networks_see_it_passes_the_processor_unchanged(name):
    picture = draw_scene(make_scenes("heldout", 1, world=SEEN)[0])
    processed = AutoImageProcessor.from_pretrained(ASSETS / name)(picture, return_tensors="pt").pixel_values[0]
    expected = torch.from_numpy(np.asarray(picture) / 127.5 - 1).permute(2, 0, 1).float()
    torch.testing.assert_close(processed, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["clip", "dino"])
def test_a_picture_of_the_world_is_reduced_by_the_processor(name):
    picture = draw_scene(make_scenes("heldout", 1)[0])
    processed = AutoImageProcessor.from_pretrained(ASSETS / name)(picture, return_tensors="pt").pixel_values[0]
    assert processed.shape == (3, SEEN.side, SEEN.side)
    mean = np.asarray(picture.reduce(WORLD.side // SEEN.side)) / 127.5 - 1
    assert np.abs(processed.permute(1, 2, 0).numpy() - mean).mean() < 0.05


@pytest.mark.parametrize("name", ["clip", "dino"])
def test_shipped_folders_are_small(name):
    assert sum(path.stat().st_size for path in (ASSETS / name).iterdir()) < 5e6


def test_shipped_clip_finds_the_scene_of_a_caption(heldout):
    clip = CLIPModel.from_pretrained(ASSETS / "clip", dtype=torch.float32).eval()
    processor, tokenizer = (
        AutoImageProcessor.from_pretrained(ASSETS / "clip"),
        CLIPTokenizer.from_pretrained(ASSETS / "clip"),
    )
    text = tokenizer([scene.caption for scene in heldout], padding=True, return_tensors="pt")
    pixels = processor([draw_scene(scene) for scene in heldout], return_tensors="pt").pixel_values
    with torch.inference_mode():
        like = clip(input_ids=text.input_ids, attention_mask=text.attention_mask, pixel_values=pixels).logits_per_text
    rank = (like > like.diagonal()[:, None]).sum(1)
    assert float((rank < 10).float().mean()) > 0.9


def test_shipped_dino_finds_objects_better_than_pixels(heldout):
    vit = ViTModel.from_pretrained(ASSETS / "dino", dtype=torch.float32, add_pooling_layer=False).eval()
    processor = AutoImageProcessor.from_pretrained(ASSETS / "dino")
    pictures = [draw_scene(scene) for scene in heldout]
    with torch.inference_mode():
        tokens = vit(processor(pictures, return_tensors="pt").pixel_values).last_hidden_state[:, 0]
    assert tokens.shape[1] <= 192
    plain = torch.from_numpy(pixel_vectors(pictures)).flatten(1).float()
    found, pixels = (scene_purity(x, heldout) for x in (tokens, plain))
    assert found["jaccard"] > pixels["jaccard"]


def test_the_report_is_of_what_ships():
    measured = json.loads((ASSETS / "encoders.json").read_text(encoding="utf-8"))
    assert measured["clip_text_to_image"]["recall@10"] > 0.9
    nearest = measured["heldout_scenes_nearest_10"]
    assert nearest["dino"]["jaccard"] > 3 * nearest["pixels"]["jaccard"] > 3 * nearest["chance"]["jaccard"]
    for name in STAGES:
        assert 0 < measured[name]["minutes"] <= 30.1
        assert measured[name]["parameters"] < 2e6


@pytest.mark.parametrize("stage", STAGES)
def test_training_takes_a_step_and_goes_on_from_it(tmp_path, stage):
    args = tiny(tmp_path, stage)
    first = STAGES[stage](args)
    assert first.step == 1
    assert all(value.isfinite().all() for value in first.modules.state_dict().values())
    again = STAGES[stage](args)  # no minutes are left
    assert again.step == 1
    for name, value in first.modules.state_dict().items():
        torch.testing.assert_close(again.modules.state_dict()[name], value, rtol=0, atol=0)
    further = STAGES[stage](replace(args, minutes=(again.seconds + 1e-6) / 60))
    assert further.step == 2
    assert sorted(path.name for path in (tmp_path / "out" / stage).glob("*.json"))


def test_a_view_is_a_box_on_a_white_square():
    picture = draw_scene(make_scenes("train", 1, world=SEEN)[0])
    pixels = torch.tensor(np.asarray(picture)).permute(2, 0, 1)[None]
    whole = look(pixels, torch.tensor([[0.0, 0, 64, 64]]))
    torch.testing.assert_close(whole, pixels / 127.5 - 1, rtol=0, atol=1e-4)
    box = (8, 16, 40, 32)  # 32 px wide, 16 high: a band of white above and below, enlarged twice
    square = Image.new("RGB", (32, 32), "white")
    square.paste(picture.crop(box), (0, 8))
    expected = torch.from_numpy(np.asarray(square.resize((64, 64), Image.Resampling.BILINEAR)) / 127.5 - 1).float()
    view = look(pixels, torch.tensor([box], dtype=torch.float32))[0].permute(1, 2, 0)
    assert (view[:16] == 1).all()
    assert (view[48:] == 1).all()
    torch.testing.assert_close(view[18:46, 2:-2], expected[18:46, 2:-2], rtol=0, atol=0.02)


def test_equal_captions_share_their_target():
    features = torch.eye(3)
    scale = torch.tensor(4.0)
    apart = contrastive_loss(features, features, ["a", "b", "c"], scale)
    assert apart < 1e-6
    two = contrastive_loss(features[[0, 0, 1]], features[[0, 0, 1]], ["a", "a", "b"], scale)
    torch.testing.assert_close(two, torch.tensor(np.log(2) * 2 / 3, dtype=torch.float32), rtol=1e-4, atol=1e-4)


def test_purity_equals_a_loop():
    scenes = make_scenes("train", 20)
    features = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
    sets = [{placed.name for placed in scene.objects} for scene in scenes]
    common, jaccard = [], []
    for i, query in enumerate(features):
        others = [j for j in range(20) if j != i]
        others.sort(key=lambda j: -float(torch.cosine_similarity(query, features[j], 0)))
        common += [bool(sets[i] & sets[j]) for j in others[:10]]
        jaccard += [len(sets[i] & sets[j]) / len(sets[i] | sets[j]) for j in others[:10]]
    measured = scene_purity(features, scenes)
    assert measured["shares_an_object"] == pytest.approx(np.mean(common))
    assert measured["jaccard"] == pytest.approx(np.mean(jaccard))


def test_object_queries_are_found_by_their_own_label(heldout):
    crops, columns = object_queries(heldout)
    placed = [placed for scene in heldout for placed in scene.objects]
    assert [list(OBJECTS)[column] for column in columns] == [one.name for one in placed]
    assert crops[0].tobytes() == crop(draw_scene(heldout[0]), [placed[0].box]).tobytes()
    assert all(one.width == one.height == WORLD.cell - 2 * WORLD.margin for one in crops)
    told = torch.nn.functional.one_hot(columns, len(OBJECTS)).float()
    held = torch.eye(len(OBJECTS)).repeat_interleave(10, 0)
    assert object_purity(told, held, columns, held) == 1


def test_networks_are_trained_on_scenes_as_large_as_they_see_them():
    training, heldout = pools(3, 2)
    assert training.pixels.shape == (3, 3, SEEN.side, SEEN.side)
    assert heldout.scenes == make_scenes("heldout", 2, world=SEEN)


def test_without_its_checkpoint_a_training_is_reported_as_before(tmp_path):
    assert effort(ASSETS, "clip", tmp_path / "clip.pt") == json.loads((ASSETS / "encoders.json").read_text())["clip"]
