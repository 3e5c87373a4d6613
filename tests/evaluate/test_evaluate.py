"""What the figures of the README are made with: objects located in pictures, tables, mappers."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from attribution.errors import InputError
from attribution.evaluate.locality import ROWS, LocalitySettings, available, measure, summary
from attribution.index.features import open_feature
from attribution.methods import METHODS
from attribution.scenes.compose import SIZE, draw_scene, make_scenes
from attribution.scenes.customise import exemplar
from attribution.scenes.mappers import fit_mapper, recall
from attribution.scenes.names import OBJECTS, UNSEEN
from attribution.scenes.truth import locate, subjects
from attribution.scenes.world import open_world


def test_objects_are_located_where_the_scene_has_them():
    for scene in make_scenes("heldout", 24):
        picture = draw_scene(scene)
        for placed in scene.objects:
            assert locate(picture, placed.name, scene.style) == tuple(map(float, placed.box)), scene.caption


def test_objects_that_are_not_there_are_not_located():
    for scene in make_scenes("heldout", 6):
        picture, there = draw_scene(scene), {placed.name for placed in scene.objects}
        assert not [name for name in OBJECTS if name not in there and locate(picture, name, scene.style)]
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8))
    assert not [name for name in OBJECTS if locate(noise, name, "flat")]


def test_subjects_are_fixed_by_their_seed():
    first, again, other = (next(subjects(seed)) for seed in (1, 1, 0))
    assert first == again != other
    assert all(name in first.prompt for name in first.names)


def test_every_method_has_a_row_and_only_what_is_held_is_available(model32, index32, full_index):
    assert set(METHODS) < set(ROWS)
    assert "unlearning, all" not in available(model32, index32)
    without = [label for label, row in ROWS.items() if METHODS[row.method].artifacts]
    assert not set(without) & set(available(model32, index32))


def row(found=True, box=1.0):
    figures = {"box": box, "box_other": 0.1, "whole_either": 0.6, "whole_both": 0.2, "seconds": 2.0}
    return {"found": found, "unlearning": figures, "unlearning, skew": {**figures, "box": 0.0}}


def test_a_table_holds_the_means_of_what_was_measured(index32, tmp_path):
    out = tmp_path / "locality.jsonl"
    rows = [row(), row(box=0.5), {"found": False}, {**row(box=0.0), "spearman": 0.5, "bank_overlap": 0.4}]
    rows[0]["pixel"] = rows[0]["unlearning"]  # not of all pictures: left out
    out.write_text("\n".join(json.dumps(line) for line in ({}, *rows)) + "\n")
    table = summary(out, index32)
    assert "| unlearning | 0.50 | 0.10 | 0.60 | 0.20 | 2 |" in table
    assert "| unlearning, skew | 0.00 | 0.10 |" in table
    assert "pixel" not in table
    assert "3 pictures; 1 others lacked an object" in table
    assert "rho 0.500; two noise banks share 40%" in table


def test_a_file_of_other_settings_is_refused(model32, index32, tmp_path):
    out = tmp_path / "locality.jsonl"
    out.write_text(json.dumps({"settings": {"seed": 9}, "index": "another"}) + "\n")
    with pytest.raises(InputError, match="measured with other settings or another index"):
        next(measure(model32, index32, LocalitySettings(pictures=1), out))


def test_a_run_goes_on_and_rows_are_added_to_it(tmp_path):
    """On the embedded world: two rows at once are the same as one after the other, in two runs."""
    model, index = open_world()
    settings = LocalitySettings(pictures=2, studied=0, rows=("pixel", "dino"))
    at_once, in_turn = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    list(measure(model, index, settings, at_once))
    first = measure(model, index, replace(settings, rows=("pixel",)), in_turn)
    next(first)
    first.close()
    list(measure(model, index, replace(settings, rows=("pixel",)), in_turn))
    list(measure(model, index, settings, in_turn))

    def figures(path):
        rows = [json.loads(line) for line in path.read_text().splitlines()[1:]]
        for held in rows:
            for label in settings.rows:
                held.get(label, {}).pop("seconds", None)
        return rows

    assert figures(at_once) == figures(in_turn)
    assert sum(held["found"] for held in figures(at_once)) == 2
    assert list(measure(model, index, settings, at_once)) == []


# The mappers


def test_exemplars_are_of_emoji_that_the_world_does_not_have():
    assert not set(UNSEEN) & set(OBJECTS.values())
    assert len(set(UNSEEN)) == len(UNSEEN) >= 50
    for name in UNSEEN:
        for style in ("flat", "outlined"):
            assert np.asarray(exemplar(name, style, "white", (8, 24))).std() > 5, name


def test_recall_counts_pictures_whose_exemplar_is_among_the_nearest():
    training = torch.eye(4)[:3]
    exemplars = torch.tensor([[[0.0, 0.0, 0.0, 1.0]]])
    pictures = torch.tensor([[[0.0, 0.0, 0.1, 1.0], [1.0, 0.9, 0.8, 0.1]]])
    identity = {"weight": torch.eye(4), "bias": torch.zeros(4)}
    assert recall(exemplars, pictures, training, identity, k=1) == 0.5
    assert recall(exemplars, pictures, training, identity, k=4) == 1.0


def test_a_mapper_learns_which_directions_matter_and_is_read_back(tmp_path):
    """What says who it is lies in the first four of eight numbers; the rest is louder noise."""
    generator = torch.Generator().manual_seed(0)
    who = torch.randn(40, 1, 4, generator=generator)

    def seen(views):
        noise = 3 * torch.randn(40, views, 4, generator=generator)
        return torch.cat([who.expand(-1, views, -1) + 0.1 * torch.randn(40, views, 4, generator=generator), noise], 2)

    training = torch.cat([torch.randn(600, 4, generator=generator), 3 * torch.randn(600, 4, generator=generator)], 1)
    mapper, worth = fit_mapper(seen(4), seen(8), training)
    assert worth["recall@10 after"] > worth["recall@10 before"] + 0.2
    save_file({f"mapper.{key}": value for key, value in mapper.items()}, tmp_path / "mapper.safetensors")
    encode = open_feature("clip-abc", str(tmp_path / "mapper.safetensors"))
    vector = torch.arange(8.0)
    torch.testing.assert_close(encode([vector.numpy()])[0], mapper["weight"] @ vector + mapper["bias"])
