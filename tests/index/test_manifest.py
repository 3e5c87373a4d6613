"""The manifest: read strictly, written whole, and the one place that tells what was made with what."""

import json
from dataclasses import replace

import pytest

from attribution.errors import IndexMismatch
from attribution.index.manifest import (
    DataRecord,
    FeatureRecord,
    FisherRecord,
    GradientRecord,
    IndexSettings,
    Manifest,
    ModelRecord,
    StepRecord,
)
from attribution.index.work import BuildSettings


@pytest.fixture
def manifest(tiny_settings):
    """Of an index half way."""
    made_of = ModelRecord("../model", "abc", (4, 8, 8), 1000, "epsilon"), DataRecord(8, "def")
    begun = Manifest.begin(*made_of, IndexSettings(tiny_settings.data, tiny_settings.noise, tiny_settings.fisher))
    for name, step in {
        "captions": StepRecord(finished=True),
        "latents": StepRecord(blocks=((0, 3), (5, 6))),
        "fisher": StepRecord(finished=True, made=FisherRecord(samples=37)),
        "features/clip": StepRecord(finished=True, made=FeatureRecord("../clip", (8, 2, 64))),
        "gradients/loss": StepRecord(
            finished=True, made=GradientRecord(weights="attn", checkpoints=(None, "../other"), scale=0.5, shape=(2, 8))
        ),
    }.items():
        begun = begun.having(name, step)
    return begun


def test_what_is_written_is_read_back(manifest, tmp_path):
    manifest.write(tmp_path)
    assert Manifest.read(tmp_path) == manifest
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


def pop(*keys):
    def change(told):
        for key in keys[:-1]:
            told = told[key]
        del told[keys[-1]]

    return change


def put(value, *keys):
    def change(told):
        for key in keys[:-1]:
            told = told[key]
        told[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (pop("model"), "its manifest lacks 'model'"),
        (pop("settings", "noise", "seed"), "its manifest settings noise lacks 'seed'"),
        (pop("data", "sha256"), "its manifest data lacks 'sha256'"),
        (pop("steps", "latents", "blocks"), "its manifest steps latents lacks 'blocks'"),
        (pop("steps", "fisher", "made", "order"), "its manifest steps fisher made is"),
        (put(1, "artifacts"), "its manifest has an unknown 'artifacts'"),
        (put(64, "settings", "data", "resolution"), "its manifest settings data has an unknown 'resolution'"),
        (put("8", "data", "count"), "its manifest data count is '8'"),
        (put(True, "data", "count"), "its manifest data count is 'True'"),
        (put([4, 8], "model", "latent_shape"), "its manifest model latent_shape is '[4, 8]'"),
        (put("kv", "settings", "fisher", "weights"), "its manifest settings fisher weights is 'kv'"),
        (put([], "steps"), "its manifest steps is '[]'"),
        (put(None, "id"), "its manifest id is 'None'"),
    ],
)
def test_a_manifest_of_another_form_is_refused_in_one_line(manifest, tmp_path, change, told):
    manifest.write(tmp_path)
    held = json.loads((tmp_path / "manifest.json").read_text())
    change(held)
    (tmp_path / "manifest.json").write_text(json.dumps(held))
    with pytest.raises(IndexMismatch) as caught:
        Manifest.read(tmp_path)
    assert f"damaged or of another program ({told}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_a_step_was_made_with_is_told_or_refused_in_words(manifest):
    assert manifest.made("features/clip", FeatureRecord).weights == "../clip"
    for name, kind in (
        ("features/clip", GradientRecord),
        ("captions", FeatureRecord),
        ("features/dino", FeatureRecord),
    ):
        with pytest.raises(IndexMismatch, match=f"does not say how {name} was made"):
            manifest.made(name, kind)


def test_the_place_of_model_and_data_is_no_other_setting(manifest, tmp_path):
    moved = replace(manifest.settings, data=replace(manifest.settings.data, train_data_dir=tmp_path))
    wanted = Manifest.begin(replace(manifest.model, source="elsewhere"), manifest.data, moved)
    manifest.refuse_other(wanted, tmp_path)
    assert wanted.id == manifest.id
    with pytest.raises(IndexMismatch, match="was built with data sha256 = 'def', now it is 'xyz'"):
        manifest.refuse_other(replace(wanted, data=DataRecord(8, "xyz")), tmp_path)


def test_the_id_is_of_model_data_and_settings(manifest):
    settings = manifest.settings
    others = [
        Manifest.begin(replace(manifest.model, sha256="x"), manifest.data, settings),
        Manifest.begin(manifest.model, DataRecord(9, "def"), settings),
        Manifest.begin(manifest.model, manifest.data, replace(settings, noise=BuildSettings().noise)),
    ]
    assert len({manifest.id, *(other.id for other in others)}) == 4


@pytest.mark.parametrize(
    ("added", "blocks", "gaps"),
    [
        ([range(0, 4)], ((0, 4),), [range(4, 10)]),
        ([range(4, 6), range(0, 4)], ((0, 6),), [range(6, 10)]),
        ([range(8, 10), range(2, 4)], ((2, 4), (8, 10)), [range(0, 2), range(4, 8)]),
        ([range(0, 4), range(8, 10), range(4, 8)], ((0, 10),), []),
        ([range(0, 6), range(2, 4)], ((0, 6),), [range(6, 10)]),
    ],
)
def test_blocks_are_done_in_any_order(added, blocks, gaps):
    step = StepRecord()
    for rows in added:
        step = step.with_block(rows)
    assert (step.blocks, list(step.gaps(range(10)))) == (blocks, gaps)
    assert step.done == 10 - sum(map(len, gaps))
    assert list(step.gaps(range(3, 5))) == [
        range(max(3, g.start), min(5, g.stop)) for g in gaps if g.start < 5 and g.stop > 3
    ]
