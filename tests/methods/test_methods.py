"""Every method of the table on a tiny index that holds all it may hold."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import make_tiny_tokenizer, random_picture, save_tiny_pipeline
from diffusers import StableDiffusionPipeline
from networks import new_vit, tiny_clip, tiny_vit
from PIL import Image, ImageOps
from safetensors.torch import save_file

from attribution.diffusion.pipeline import Model
from attribution.errors import IndexMismatch, InputError, WeightsUnavailable
from attribution.index.build import build
from attribution.index.features import open_feature
from attribution.index.index import Index
from attribution.index.work import ExtendSettings
from attribution.methods import METHODS, attribute, fitting
from attribution.methods.answer import AttributeSettings, Attribution
from attribution.query.query import Query
from attribution.unlearning.projection import GradientSettings
from attribution.unlearning.score import Scores
from attribution.unlearning.step import UnlearnSettings

UNLEARN = UnlearnSettings(timesteps=4, noises=1, batch=3)
IMAGE_FEATURES = ("clip", "dino", "dinov2", "clip-abc", "dino-abc")


def answer(model, index, query, method, **settings) -> Attribution:
    asked = fitting(AttributeSettings(top_k=len(index), unlearn=UNLEARN, batch=6), method)
    *_, last = attribute(model, index, query, replace(asked, **settings))
    assert isinstance(last, Attribution)
    return last


def by_row(attribution):
    return {result.row: result.score for result in attribution.results}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("boxed", [False, True])
def test_every_method_ranks_all_images_and_leaves_the_model_as_it_was(model32, full_index, query, method, boxed):
    query = replace(query, boxes=((0.0, 0.0, 16.0, 32.0),)) if boxed else query
    found = answer(model32, full_index, query, method)
    assert sorted(result.row for result in found.results) == list(range(8))
    scores = [result.score for result in found.results]
    assert np.isfinite(scores).all()
    assert scores == sorted(scores, reverse=True)
    assert [result.rank for result in found.results] == list(range(1, 9))
    assert all(found.seconds.values())
    assert Model.sha256.func(model32) == model32.sha256
    again = answer(model32, full_index, query, method)
    assert [(result.row, result.score, result.flip) for result in again.results] == [
        (result.row, result.score, result.flip) for result in found.results
    ]


def test_a_box_matters_to_every_method_but_those_that_do_not_look(model32, full_index, query):
    boxed = replace(query, boxes=((0.0, 0.0, 12.0, 32.0),))
    blind = {"clip-text", "random"}
    for method in METHODS:
        whole, part = (by_row(answer(model32, full_index, each, method)) for each in (query, boxed))
        assert (whole == part) == (method in blind), method


# Features


@pytest.mark.parametrize("method", [*IMAGE_FEATURES, "pixel"])
@pytest.mark.parametrize("mirrored", [False, True])
def test_a_training_image_is_most_similar_to_itself(model32, full_index, pictures, method, mirrored):
    for row in range(8):
        picture = Image.open(pictures / full_index.ids[row]).convert("RGB")
        query = Query(full_index.captions[row], ImageOps.mirror(picture) if mirrored else picture)
        first = answer(model32, full_index, query, method).results[0]
        assert (first.row, first.flip) == (row, mirrored)
        assert first.score == pytest.approx(1, abs=1e-3)


def test_a_caption_is_most_similar_to_itself(model32, full_index, query):
    for row, caption in enumerate(full_index.captions):
        first = answer(model32, full_index, replace(query, prompt=caption), "clip-text").results[0]
        assert first.row == row
        assert first.score == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("method", IMAGE_FEATURES)
def test_features_are_cosines_by_a_plain_loop(model32, full_index, pictures, query, method):
    base = method.removesuffix("-abc")
    encode = open_feature(base, full_index.feature_weights(base))

    def vector(picture):
        found = encode([picture])[0].double().numpy()
        if method != base:
            found = mapper["weight"].double().numpy() @ found + mapper["bias"].double().numpy()
        return found

    if method != base:
        held = open_mapper_file(full_index.feature_weights(method))
        mapper = {key.rpartition(".")[2]: value for key, value in held.items()}
    one = vector(query.image)
    for row, score in by_row(answer(model32, full_index, query, method)).items():
        picture = Image.open(pictures / full_index.ids[row]).convert("RGB")
        cosines = []
        for side in (picture, ImageOps.mirror(picture)):
            other = vector(side)
            cosines.append(float(one @ other / (np.sqrt(one @ one) * np.sqrt(other @ other))))
        assert score == pytest.approx(max(cosines), abs=2e-3)  # float16 on disk


def open_mapper_file(path):
    from safetensors.torch import load_file

    return load_file(path) if path.endswith(".safetensors") else torch.load(path, weights_only=True)["state_dict"]


def test_a_box_is_seen_as_its_crop_padded_to_a_square(model32, full_index, query):
    box = (4.0, 8.0, 20.0, 32.0)  # 16 x 24
    crop = Image.new("RGB", (24, 24), "white")
    crop.paste(query.image.crop((4, 8, 20, 32)), (4, 0))
    encode = open_feature("dino", full_index.feature_weights("dino"))
    one = encode([crop])[0].numpy()
    vectors = np.array(full_index.array("features/dino"), np.float32)
    expected = (vectors @ one / np.linalg.norm(vectors, axis=-1) / np.linalg.norm(one)).max(1)
    found = by_row(answer(model32, full_index, replace(query, boxes=(box,)), "dino"))
    np.testing.assert_allclose([found[row] for row in range(8)], expected, atol=1e-5)


def test_weights_that_cannot_be_had_are_named(tmp_path):
    with pytest.raises(WeightsUnavailable, match=r"'nobody/nothing'.*--feature_weights"):
        open_feature("dino", "nobody/nothing")
    (tmp_path / "mapper.pth").write_bytes(b"not a checkpoint")
    with pytest.raises(WeightsUnavailable, match=r"mapper\.pth"):
        open_feature("clip-abc", str(tmp_path / "mapper.pth"))
    save_file({"other.weight": torch.eye(3)}, tmp_path / "foreign.safetensors")
    with pytest.raises(WeightsUnavailable, match=r"no `mapper\.weight`"):
        open_feature("clip-abc", str(tmp_path / "foreign.safetensors"))


class Malicious:
    def __reduce__(self):
        return (print, ("unpickled",))


def test_a_mappers_checkpoint_is_not_unpickled(tmp_path, capsys):
    torch.save({"mapper.weight": Malicious()}, tmp_path / "evil.pth")
    with pytest.raises(WeightsUnavailable):
        open_feature("clip-abc", str(tmp_path / "evil.pth"))
    assert "unpickled" not in capsys.readouterr().out


# Unlearning and its kin


@pytest.mark.parametrize("boxed", [False, True])
def test_influence_is_the_limit_of_unlearning_for_a_small_step(model, exact_index, query, boxed):
    """The slope of the loss change at 0, extrapolated from two small steps, within 1 %; no mirrors, no projection."""
    query = replace(query, boxes=((0.0, 0.0, 16.0, 32.0),)) if boxed else query
    index, step = without_mirrors(exact_index), 1e-5
    slope = by_row(answer(model, index, query, "influence", unlearn=replace(UNLEARN, step_size=1.0)))

    def change(size):
        settings = {"unlearn": replace(UNLEARN, step_size=size), "exhaustive": True}
        return by_row(answer(model, index, query, "unlearning", **settings))

    once, twice = change(step), change(2 * step)
    for row in range(8):
        limit = (4 * once[row] - twice[row]) / (2 * step)
        assert slope[row] == pytest.approx(limit, rel=0.01, abs=1e-4 * max(map(abs, slope.values())))


def without_mirrors(index):
    """The index as if the model was trained without them: the better of two views has no slope where they cross."""
    settings = index.manifest.settings
    settings = replace(settings, data=replace(settings.data, random_flip=False))
    return replace(index, manifest=replace(index.manifest, settings=settings))


def test_gradient_ascent_moves_by_the_gradient_alone(model, exact_index, query):
    """For a small step, unlearning without Fisher scores by the dot product of gradients."""
    exact_index, size = without_mirrors(exact_index), 0.01  # the index keeps float32
    found = by_row(
        answer(model, exact_index, query, "unlearning-sgd", unlearn=replace(UNLEARN, step_size=size), exhaustive=True)
    )
    other = by_row(
        answer(
            model, exact_index, query, "unlearning-sgd", unlearn=replace(UNLEARN, step_size=2 * size), exhaustive=True
        )
    )
    for row, score in found.items():
        assert other[row] == pytest.approx(2 * score, rel=0.05, abs=1e-6)


@pytest.mark.parametrize("weights", ["cross-attn", "attn", "all"])
def test_larger_subsets_of_weights_are_unlearned_with_the_wide_fisher(model32, full_index, query, weights):
    own = by_row(answer(model32, full_index, query, "unlearning"))
    wide = by_row(answer(model32, full_index, query, "unlearning", unlearn=replace(UNLEARN, weights=weights)))
    assert wide != own
    assert Model.sha256.func(model32) == model32.sha256


@pytest.fixture(scope="module")
def dead(tiny_settings, tmp_path_factory, device):
    """A model whose last cross-attention goes nowhere, so that no loss depends on its K and V; and its index."""
    folder = save_tiny_pipeline(tmp_path_factory.mktemp("dead") / "model", "epsilon")
    pipe = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    torch.nn.init.zeros_(pipe.unet.up_blocks[1].attentions[1].transformer_blocks[0].attn2.to_out[0].weight)
    pipe.save_pretrained(folder)
    model, more = Model.load(folder, device), ExtendSettings(ekfac=True, gradients=("loss", "influence"))
    more = replace(more, projection=GradientSettings(dimension=64))
    for _ in build(folder.parent / "index", model, tiny_settings, more):
        pass
    return model, Index.open(folder.parent / "index")


@pytest.mark.parametrize("damping", [0.0, 0.1])
@pytest.mark.parametrize("method", ["unlearning", "unlearning+", "influence"])
def test_weights_that_no_loss_depends_on_stay_where_they_are(dead, query, method, damping):
    model, index = dead
    name = "up_blocks.1.attentions.1.transformer_blocks.0.attn2.to_v.weight"
    assert not index.fisher[name].any()
    unlearn = replace(UNLEARN, damping=damping, step_size=1e-6)
    scores = by_row(answer(model, index, query, method, unlearn=unlearn))
    assert np.isfinite(list(scores.values())).all()
    assert any(scores.values())


@pytest.mark.parametrize("method", METHODS)
def test_a_model_in_half_precision_answers_nearly_alike(model32, model16, full_index, query, method):
    boxed = replace(query, boxes=((0.0, 0.0, 16.0, 32.0),))
    steps = {"step_size": 3.0} if METHODS[method].curvature == "diagonal" else {}  # smaller ones are lost in rounding
    unlearn = replace(fitting(AttributeSettings(unlearn=UNLEARN), method).unlearn, **steps)
    half, single = (by_row(answer(model, full_index, boxed, method, unlearn=unlearn)) for model in (model16, model32))
    assert np.isfinite(list(half.values())).all()
    if METHODS[method].curvature is None or method == "influence":
        correlation = np.corrcoef([half[row] for row in range(8)], [single[row] for row in range(8)])[0, 1]
        assert correlation > 0.95


@pytest.fixture(scope="module")
def model16(tiny_folder, device):
    """The float32 model in half precision."""
    return Model.load(tiny_folder, device, torch.bfloat16)


def test_without_the_wide_fisher_larger_subsets_are_refused(model32, index32, query):
    with pytest.raises(InputError, match=r"no diagonal Fisher information of \d+ of these weights.*--fisher_all"):
        answer(model32, index32, query, "unlearning", unlearn=replace(UNLEARN, weights="all"))


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.artifacts])
def test_a_method_whose_part_was_not_built_says_how_to_build_it(model32, index32, query, method):
    with pytest.raises(InputError, match=r"holds no .*; add it with `python -m attribution index \.\.\. --"):
        answer(model32, index32, query, method)


def test_skew_and_steps_change_the_scores(model32, full_index, query):
    plain = by_row(answer(model32, full_index, query, "unlearning"))
    assert by_row(answer(model32, full_index, query, "unlearning", score="skew")) != plain
    assert by_row(answer(model32, full_index, query, "unlearning", unlearn=replace(UNLEARN, steps=2))) != plain


def test_random_is_seeded(model32, full_index, query):
    first = by_row(answer(model32, full_index, query, "random"))
    assert by_row(answer(model32, full_index, query, "random")) == first
    assert by_row(answer(model32, full_index, query, "random", seed=1)) != first
    assert by_row(answer(model32, full_index, replace(query, image=random_picture(98)), "random")) != first


@pytest.mark.parametrize("method", ["trak", "d-trak", "journey-trak"])
def test_several_checkpoints_are_averaged(model32, two_checkpoints, query, method):
    """Two checkpoints' scores are the mean of each one's alone."""
    both = by_row(answer(model32, two_checkpoints["both"], query, method))
    alone = [by_row(answer(model32, two_checkpoints[name], query, method)) for name in ("first", "second")]
    for row in range(8):
        assert both[row] == pytest.approx((alone[0][row] + alone[1][row]) / 2, rel=1e-6)
    assert alone[0] != alone[1]
    assert Model.sha256.func(model32) == model32.sha256


def test_the_best_view_is_the_one_with_the_higher_score():
    found = Scores.exact(np.array([[1.0, 2.0], [4.0, 3.0]]))
    assert found.value.tolist() == [2, 4]
    assert found.flip.tolist() == [True, False]


@pytest.mark.parametrize("count", [1, 3, 7, 50, 99, 100, 200])
@pytest.mark.parametrize("kinds", [1, 4, 1000])
def test_the_first_are_those_of_the_whole_order_whatever_the_ties(count, kinds):
    values = np.random.default_rng(0).integers(0, kinds, (100, 1)) / 7
    found = Scores.exact(values)
    assert found.first(count).tolist() == found.best_first(range(100))[:count].tolist()


# What an index holds


def test_an_addition_with_other_settings_is_refused_and_changes_nothing(full_folder, model32, extend_all):
    before = {path: path.read_bytes() for path in sorted(full_folder.rglob("*")) if path.is_file()}
    with pytest.raises(IndexMismatch, match="gradients/loss with dimension = 64, now it is 32"):
        extend_all(full_folder, model32, dimension=32)
    assert {path: path.read_bytes() for path in sorted(full_folder.rglob("*")) if path.is_file()} == before


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"features": ("sift",)}, "no feature 'sift'; accepted are clip"),
        ({"gradients": ("hessian",)}, r"no gradients 'hessian'; accepted are loss, d-trak, influence, influence\+$"),
        ({"gradients": ("influence+",)}, r"^--gradients influence\+ are whitened by EK-FAC, which .*; add --ekfac$"),
        ({"features": ("clip-abc",)}, "needs a mapper's file"),
        (
            {"features": ("clip-abc",), "feature_weights": {"clip-abc": "m.pth"}},
            "maps 'clip', which the index does not",
        ),
    ],
)
def test_bad_additions_are_refused_in_words(plain_copy, model32, extend_all, asked, told):
    with pytest.raises(InputError, match=told):
        extend_all(plain_copy, model32, **asked)
    assert Index.open(plain_copy).artifacts == {}


def test_a_feature_that_is_not_finite_is_refused_and_the_index_stays(plain_copy, model32, extend_all, tmp_path):
    network = new_vit()
    with torch.no_grad():
        network.layernorm.bias.fill_(torch.nan)
    weights = tiny_vit(tmp_path / "nan", network)
    with pytest.raises(InputError, match=r"features/dino of training image p0.png is not finite"):
        extend_all(plain_copy, model32, features=("dino",), feature_weights={"dino": str(weights)})
    assert Index.open(plain_copy).artifacts == {}


def test_what_cannot_be_had_leaves_what_was_added_before(plain_copy, model32, extend_all, tmp_path):
    clip = tiny_clip(tmp_path / "clip", make_tiny_tokenizer())
    with pytest.raises(WeightsUnavailable):
        extend_all(
            plain_copy,
            model32,
            features=("clip", "dino"),
            feature_weights={"clip": str(clip), "dino": str(tmp_path / "nothing")},
        )
    assert list(Index.open(plain_copy).artifacts) == ["features/clip"]


@pytest.mark.exact_bits
def test_an_interrupted_addition_goes_on(full_folder, plain_copy, model32, extend_all):
    """Stopped after each block in turn, the arrays end as those of a build in one go, bit for bit."""
    steps = extend_all(plain_copy, model32, lazily=True, gradients=("influence",), ekfac=True)
    for _ in range(60):
        try:
            next(steps)
        except StopIteration:
            break
        steps.close()
        steps = extend_all(plain_copy, model32, lazily=True, gradients=("influence",), ekfac=True)
    else:
        pytest.fail("it does not end")
    for name in ("gradients/influence.npy", "ekfac.safetensors"):
        assert (plain_copy / name).read_bytes() == (full_folder / name).read_bytes(), name


def test_a_manifest_records_what_was_added(full_folder):
    steps = json.loads((full_folder / "manifest.json").read_text())["steps"]
    assert all(step["finished"] for step in steps.values())
    held = {name: step["made"] for name, step in steps.items()}
    assert {name for name in held if name.startswith("features/")} == {
        f"features/{name}" for name in ("clip", "clip-text", "dino", "dinov2", "clip-abc", "dino-abc", "fast")
    }
    assert held["gradients/loss"]["shape"] == [1, 8, 1, 64]
    assert held["gradients/influence"]["shape"] == [1, 8, 2, 64]
    assert held["features/clip"]["weights"] == "../clip"  # moves with the index
    assert not [key for key in held if key.endswith(".partial")]


def test_a_moved_index_still_finds_its_networks(full_folder, model32, query, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.copytree(full_folder.parent, moved)
    index = Index.open(moved / full_folder.name)
    assert index.feature_weights("clip") == str((moved / "clip").resolve())
    assert index.feature_weights("clip-abc") == str((moved / "clip-abc.safetensors").resolve())
    assert by_row(answer(model32, index, query, "clip"))
