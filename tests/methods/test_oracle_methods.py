"""Every method of the table through the public call, against the oracle, which knows pictures, captions and model."""

import json
from dataclasses import dataclass, replace
from statistics import median
from types import SimpleNamespace

import numpy as np
import oracle
import pytest
import torch
from conftest import ALL_GRADIENTS, make_tiny_tokenizer, random_picture, save_tiny_pipeline
from diffusers import StableDiffusionPipeline
from near import assert_close
from networks import tiny_clip, tiny_dinov2, tiny_mappers, tiny_unet, tiny_vit
from PIL import Image, ImageOps
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModel, CLIPModel

from attribution.diffusion.noise import NoiseSettings
from attribution.diffusion.pipeline import Model
from attribution.index.build import build
from attribution.index.data import DataSettings
from attribution.index.index import Index
from attribution.index.work import BuildSettings, ExtendSettings
from attribution.methods import METHODS, attribute
from attribution.methods.answer import AttributeSettings
from attribution.query.query import Query
from attribution.unlearning.fisher import FisherSettings
from attribution.unlearning.projection import GradientSettings
from attribution.unlearning.race import RaceSettings
from attribution.unlearning.step import UnlearnSettings

SHAPE, LENGTH = (4, 8, 8), 1000  # of latents, and of the schedule
KEPT = GradientSettings(dimension=2100, seed=23, damping=0.05, whitening=0.3, journey=0.4, journey_noises=3)
UNLEARN = UnlearnSettings(step_size=0.3, damping=0.1, timesteps=2, noises=1, seed=8, batch=4)
PROMPT = "a red kite and a blue key"  # the kite has several tokens
BOX = ((5.0, 3.0, 19.5, 30.0),)  # px; cells have 4
BOXES = ((2.0, 2.0, 19.0, 14.0), (8.0, 9.0, 31.0, 32.0))  # they share some cells
REGIONS = {"whole": {}, "box": {"boxes": BOX}, "boxes": {"boxes": BOXES}, "word": {"word": "kite"}}


@dataclass(frozen=True)
class World:
    """A prediction type, and whether the model was trained with mirrors."""

    prediction: str
    mirrors: bool

    @property
    def views(self):
        return 1 + self.mirrors


WORLDS = [World("epsilon", True), World("v_prediction", False)]


@pytest.fixture(scope="module", params=WORLDS, ids=lambda world: f"{world.prediction}-{world.views}")
def world(request, pictures, tmp_path_factory, device):
    """An index that holds everything, and what the oracle knows, each with a pipeline of its own."""
    base, kind = tmp_path_factory.mktemp("world"), request.param
    folder = save_tiny_pipeline(base / "model", kind.prediction)
    tiny_unet(folder / "unet")
    model = Model.load(folder, device, torch.float64)
    clip = tiny_clip(base / "clip", make_tiny_tokenizer())
    networks = {"clip": clip, "clip-text": clip, "dino": tiny_vit(base / "dino"), "dinov2": tiny_dinov2(base / "v2")}
    networks |= tiny_mappers(base)
    settings = BuildSettings(
        DataSettings(train_data_dir=pictures, random_flip=kind.mirrors),
        NoiseSettings(2, 2, 15, start=0.1, end=0.9),
        FisherSettings(samples=8 * kind.views * 3, timesteps=3, seed=16),  # each image, view and noise once
        batch=6,
    )
    more = ExtendSettings(
        fisher_all=True,
        ekfac=True,
        features=tuple(networks),
        feature_weights={name: str(path) for name, path in networks.items()},
        gradients=ALL_GRADIENTS,
        projection=KEPT,
    )
    out = base / "index"
    for _ in build(out, model, settings, more):
        pass
    return SimpleNamespace(
        kind=kind, model=model, index=Index.open(out), networks=networks, truth=know(folder, pictures, kind)
    )


def know(folder, pictures, kind):
    """What the oracle knows: pictures, captions, latents as float16 keeps them, losses as float32 does, information."""
    pipe = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float64, safety_checker=None)
    rows = [json.loads(line) for line in (pictures / "metadata.jsonl").read_text().splitlines()]
    training = [Image.open(pictures / row["file_name"]).convert("RGB") for row in rows]
    sides = [(picture, ImageOps.mirror(picture))[: kind.views] for picture in training]
    latents = torch.stack([torch.stack([oracle.see(pipe, side) for side in both]) for both in sides])
    latents, captions = latents.half().double(), [row["text"] for row in rows]
    noises = oracle.draw(15, 2, 2, SHAPE, LENGTH, 0.1, 0.9)
    diagonal, factors = oracle.information(pipe, latents, captions, oracle.draw(16, 3, 1, SHAPE, LENGTH))
    own = oracle.weights(pipe)
    return SimpleNamespace(
        pipe=pipe,
        names=[row["file_name"] for row in rows],
        captions=captions,
        sides=sides,
        latents=latents,
        noises=noises,
        diagonal={name: f if name in own else oracle.eight_bits(f) for name, f in diagonal.items()},
        factors=factors,
        before=oracle.losses(pipe, latents, captions, noises).astype(np.float32),
        start={name: p.detach().clone() for name, p in oracle.weights(pipe, "all").items()},
    )


def asked(region):
    return Query(PROMPT, random_picture(99), **REGIONS[region])


def mask_of(truth, region):
    """How much each latent cell counts, as the oracle sees it."""
    if region == "whole":
        return None
    if region == "word":
        noises = oracle.draw(2, 8, 2, SHAPE, LENGTH, 0.3, 0.9)
        return oracle.attended(truth.pipe, oracle.see(truth.pipe, asked(region).image), PROMPT, "kite", noises)
    return oracle.area(REGIONS[region]["boxes"], 8, 4)


def the_query(truth, region):
    """The oracle's latents, text and mask of a query."""
    return oracle.see(truth.pipe, asked(region).image), oracle.read(truth.pipe, PROMPT), mask_of(truth, region)


def answer(world, region="whole", **settings):
    *_, last = attribute(world.model, world.index, asked(region), AttributeSettings(**{"batch": 6, **settings}))
    return last


def assert_scores(found, expected, rtol, atol=0.0):
    """All images in the order of the expected scores, with their scores; `expected` is by row."""
    assert [result.row for result in found.results] == sorted(range(8), key=lambda row: -expected[row])
    assert_close([result.score for result in found.results], sorted(expected, reverse=True), rtol=rtol, atol=atol)


# What every index holds


def test_the_index_holds_the_oracles_pictures_latents_and_losses(world):
    truth, index, views = world.truth, world.index, world.kind.views
    assert (index.ids, index.captions) == (truth.names, truth.captions)
    assert torch.equal(torch.from_numpy(np.array(index.latents[:, :views])).double(), truth.latents)
    assert_close(np.array(index.base_losses[:, :views]), truth.before, rtol=2e-7, atol=0)
    for name, tensor in index.fisher.items():
        assert_close(tensor, truth.diagonal[name], rtol=1e-9, atol=1e-12 * float(truth.diagonal[name].mean()))


# What methods of gradients know


def gradients(truth, output):
    """Of each image and view, averaged over the noises, in the order of the names: (N, views, P)."""
    rows = [
        [
            flat(oracle.query_gradient(truth.pipe, x, oracle.read(truth.pipe, caption), truth.noises, output=output))
            for x in views
        ]
        for views, caption in zip(truth.latents, truth.captions, strict=True)
    ]
    return np.array(rows)


def flat(by_name):
    return np.concatenate([by_name[name].numpy().ravel() for name in sorted(by_name)])


def filled(rows):
    """Filled up with zeros to the index's dimension."""
    return np.pad(rows, [(0, 0)] * (rows.ndim - 1) + [(0, KEPT.dimension - rows.shape[-1])])


@pytest.fixture(scope="module")
def slopes(world):
    """The oracle's gradients of training images, by what is differentiated."""
    return {name: gradients(world.truth, output) for name, output in (("loss", oracle.loss), ("norm", oracle.norm))}


# Methods that unlearn

EXHAUSTIVE = [
    ("unlearning", "whole", {}, {}),
    ("unlearning", "box", {"steps": 2, "damping": 0.02}, {}),
    ("unlearning", "boxes", {"timesteps": 1, "noises": 3, "seed": 9}, {"score": "skew"}),
    ("unlearning", "word", {"damping": 1.0, "step_size": 1.5}, {}),
    ("unlearning", "whole", {"weights": "cross-attn", "step_size": 0.1}, {}),
    ("unlearning", "box", {"weights": "attn", "step_size": 0.1, "steps": 2}, {}),
    ("unlearning", "whole", {"weights": "all", "step_size": 0.01}, {"score": "skew"}),
    ("unlearning+", "whole", {}, {}),
    ("unlearning+", "word", {"damping": 0.5, "seed": 3}, {}),
    ("unlearning+", "boxes", {"steps": 2, "damping": 1.0, "step_size": 0.1}, {}),
    ("unlearning-sgd", "box", {"step_size": 6.0, "steps": 3, "damping": 0.1}, {}),
    ("unlearning-sgd", "whole", {"weights": "all", "step_size": 0.2, "damping": 0.1}, {"score": "skew"}),
]


def unlearn(truth, method, region, settings):
    """Float32 losses of all images and views with the oracle's weights moved; the weights are put back."""
    subset = settings.weights or "cross-attn-kv"
    x, text, mask = the_query(truth, region)
    noises = oracle.draw(settings.seed, settings.timesteps, settings.noises, SHAPE, LENGTH)
    named = oracle.weights(truth.pipe, subset)
    try:
        for _ in range(settings.steps):
            grads = oracle.query_gradient(truth.pipe, x, text, noises, mask, subset)
            for name, change in direction(truth, method, grads, settings.damping).items():
                named[name].data += settings.step_size * change
        return oracle.losses(truth.pipe, truth.latents, truth.captions, truth.noises).astype(np.float32)
    finally:
        for name, parameter in named.items():
            parameter.data.copy_(truth.start[name])


def direction(truth, method, grads, damping):
    """F^-1 grad / N, by each method's F; the gradient itself without one."""
    if method == "unlearning-sgd":
        return grads
    moved = oracle.ekfac(grads, truth.factors, damping) if method == "unlearning+" else None
    moved = moved or oracle.newton(grads, truth.diagonal, damping)
    return {name: change / len(truth.captions) for name, change in moved.items()}


@pytest.mark.parametrize(("method", "region", "how", "more"), EXHAUSTIVE)
def test_scores_of_methods_that_unlearn_equal_the_oracles(world, slopes, method, region, how, more):
    settings = replace(UNLEARN, **how)
    found = answer(world, region, method=method, top_k=8, exhaustive=True, unlearn=settings, **more)
    after = unlearn(world.truth, method, region, settings)
    expected = oracle.measured(world.truth.before, after, "score" in more)
    largest = max(abs(value) for value, *_ in expected)
    rtol, atol = 1e-5, 1e-6
    if method == "unlearning+" or region == "word":  # eigenbases and maps of attention are kept in float32
        rtol, atol = 1e-3, 2e-3 * largest
    assert largest > 1e-3
    assert_scores(found, [value for value, *_ in expected], rtol, atol)
    for result in found.results:
        _, low, high, flip = expected[result.row]
        assert_close((result.low, result.high), (low, high), rtol=rtol, atol=atol)
        assert result.flip == flip
        pairs = [world.truth.before[result.row, int(flip)], after[result.row, int(flip)]]
        assert_close(np.array(result.losses).T, np.stack(pairs), rtol=rtol, atol=0, check_dtype=False)
    assert found.ranked == 8
    gradients, each = settings.steps * settings.timesteps * settings.noises, 8 * world.kind.views
    assert found.evaluations == len(world.truth.noises) + gradients + each * 4  # first, what tells the likelier view
    at = np.arange(8)[:, None], signed(world, slopes, region).argmax(1)[:, None], oracle.spread(4)[:1]
    typical = median(oracle.score(world.truth.before[at][:, None], after[at][:, None], "score" in more))
    assert found.typical == pytest.approx(typical, rel=rtol, abs=atol)  # here of all images


@pytest.mark.parametrize(
    ("region", "how"),
    [("whole", {}), ("box", {"steps": 2, "damping": 0.5}), ("boxes", {"damping": 1.0}), ("word", {"seed": 3})],
)
def test_scores_of_the_ensemble_are_means_of_the_oracles_changes_and_of_its_signed_influence(
    world, slopes, region, how
):
    settings, truth = replace(UNLEARN, **how), world.truth
    found = answer(world, region, method="ensemble", top_k=8, exhaustive=True, unlearn=settings)
    after, table = unlearn(truth, "unlearning+", region, settings), signed(world, slopes, region)
    likely = list(enumerate(table.argmax(1).tolist()))
    first = oracle.spread(4)[0]
    expected, unit = oracle.mixed(truth.before, after, likely, table, first)
    largest = max(abs(value) for value, *_ in expected)
    assert_scores(found, [value for value, *_ in expected], 1e-3, 3e-3 * largest)
    for result in found.results:
        assert_close((result.low, result.high), expected[result.row][1:], rtol=1e-2, atol=3e-3 * largest)
        assert result.flip == likely[result.row][1]
    predictions = len(truth.noises) + settings.steps * settings.timesteps * settings.noises + 8 * 4
    assert found.evaluations == predictions  # of each image its likelier view
    seen = [(float(after[row, view, first] - truth.before[row, view, first]), table[row, view]) for row, view in likely]
    typical = median((change + unit * value) / 2 for change, value in seen)
    assert found.typical == pytest.approx(typical, rel=1e-2, abs=3e-3 * largest)


@pytest.mark.parametrize(
    ("survivors", "top_k", "score", "schedule"),
    [
        (3, 1, "difference", {"keep": 0.5, "first_columns": 1, "growth": 2.0}),
        (1, 2, "difference", {"keep": 0.5, "first_columns": 1, "growth": 2.0}),
        (2, 3, "skew", {"keep": 0.1, "first_columns": 2, "growth": 1.1}),
    ],
)
def test_who_is_left_after_halving_is_the_oracles_and_has_the_exhaustive_scores(
    world, slopes, survivors, top_k, score, schedule
):
    race = RaceSettings(pool=0, survivors=survivors, **schedule)
    found = answer(world, method="unlearning", top_k=top_k, unlearn=UNLEARN, score=score, race=race)
    before, after, skew = world.truth.before, unlearn(world.truth, "unlearning", "whole", UNLEARN), score == "skew"
    likely = signed(world, slopes, "whole").argmax(1)
    left = oracle.race(before, after, skew, likely, **schedule, survivors=max(survivors, -(-3 * top_k // 2)))
    assert len(left) == max(survivors, -(-3 * top_k // 2))
    assert (list(found.rows), found.ranked) == (left, len(left))
    assert [result.row for result in found.results] == left[:top_k]
    scores = oracle.score(before, after, skew)
    assert_close(
        [result.score for result in found.results], [scores[row] for row in left[:top_k]], rtol=1e-5, atol=1e-6
    )


# Methods of gradients


@pytest.mark.parametrize("region", REGIONS)
@pytest.mark.parametrize("method", ["trak", "journey-trak", "d-trak"])
def test_scores_of_traks_kin_equal_an_explicit_inverse(world, slopes, method, region):
    truth, kind = world.truth, "norm" if method == "d-trak" else "loss"
    phi, _ = oracle.half(filled(slopes[kind].mean(1)))
    x, text, mask = the_query(truth, region)
    noises = truth.noises
    if method == "journey-trak":
        noises = [(400, eps) for _, eps in oracle.draw(23, 1, 3, SHAPE, LENGTH)]
    output = oracle.norm if kind == "norm" else oracle.loss
    wanted = filled(flat(oracle.query_gradient(truth.pipe, x, text, noises, mask, output=output)))
    found = answer(world, region, method=method, top_k=8)
    assert_scores(found, oracle.trak(phi, wanted, KEPT.damping), rtol=1e-4 if region == "word" else 1e-6)
    assert found.evaluations == len(noises)


@pytest.mark.parametrize(
    ("region", "how"),
    [("whole", {}), ("box", {"damping": 0.01, "seed": 4}), ("word", {"step_size": 2.0, "timesteps": 3})],
)
def test_influence_equals_the_oracles_gradients_times_its_newton_step(world, slopes, region, how):
    truth, settings = world.truth, replace(UNLEARN, **how)
    x, text, mask = the_query(truth, region)
    noises = oracle.draw(settings.seed, settings.timesteps, settings.noises, SHAPE, LENGTH)
    grads = oracle.query_gradient(truth.pipe, x, text, noises, mask)
    step = flat(direction(truth, "influence", grads, settings.damping)) * settings.step_size
    roots = {name: torch.sqrt(f + KEPT.whitening * f.mean()) for name, f in truth.diagonal.items() if name in grads}
    root, views = flat(roots), world.kind.views
    kept, scale = oracle.half(filled((slopes["loss"] / root).reshape(8 * views, -1)))  # each view is kept
    table = (kept @ filled(step * root) / scale).reshape(8, views)
    found = answer(world, region, method="influence", top_k=8, unlearn=settings)
    assert_scores(found, table.max(1).tolist(), rtol=1e-4 if region == "word" else 1e-6)
    assert {result.row: result.flip for result in found.results} == dict(enumerate((table.argmax(1) == 1).tolist()))


@pytest.mark.parametrize("region", REGIONS)
def test_signed_influence_equals_the_oracles_sum_over_the_eigenbases_of_its_own_ekfac(world, slopes, region):
    truth, views, table = world.truth, world.kind.views, signed(world, slopes, region)
    found = answer(world, region, method="influence+", top_k=8)
    largest = float(np.abs(table).max())
    assert_scores(found, table.max(1).tolist(), rtol=1e-3, atol=2e-3 * largest)  # eigenbases are kept in float32
    assert {result.row: result.flip for result in found.results} == dict(enumerate((table.argmax(1) == 1).tolist()))
    assert found.evaluations == len(truth.noises)
    assert table.shape == (8, views)


def signed(world, slopes, region):
    """The oracle's scores (N, views) by the signs of whitened gradients."""
    truth = world.truth
    x, text, mask = the_query(truth, region)
    own = oracle.query_gradient(truth.pipe, x, text, truth.noises, mask)
    wanted = flat(oracle.whitened(own, truth.factors, KEPT.whitening))
    wanted = wanted / np.abs(wanted).sum()
    return np.array([[wanted @ np.sign(numbers) for numbers in both] for both in whitened(truth, slopes["loss"])])


def whitened(truth, rows):
    """(N, views, P) gradients in the order of the names, each in the oracle's own eigenbases and over their roots."""
    shapes = {name: truth.start[name].shape for name in sorted(oracle.weights(truth.pipe))}
    ends = np.cumsum([shape.numel() for shape in shapes.values()])[:-1]

    def one(row):
        parts = zip(shapes, np.split(row, ends), strict=True)
        grads = {name: torch.from_numpy(part).reshape(shapes[name]) for name, part in parts}
        return flat(oracle.whitened(grads, truth.factors, KEPT.whitening))

    return np.array([[one(row) for row in both] for both in rows])


# Methods of features


def seen_in(region):
    """What feature baselines look at: the square of the boxes' corners, white around; or the whole picture."""
    image, boxes = asked(region).image, REGIONS[region].get("boxes")
    if not boxes:
        return image
    x0, y0 = (int(min(box[side] for box in boxes)) for side in (0, 1))
    x1, y1 = (-int(-max(box[side] for box in boxes) // 1) for side in (2, 3))
    side = max(x1 - x0, y1 - y0)
    square = Image.new("RGB", (side, side), "white")
    left, top = ((side - length) / 2 for length in (x1 - x0, y1 - y0))
    square.paste(image.crop((x0, y0, x1, y1)), (round(left), round(top)))
    return square


def look(name, networks):
    """A feature's network as a function of one picture or caption, by transformers' own outputs."""
    base, folder = name.removesuffix("-abc"), networks[name.removesuffix("-abc")]
    if base == "clip-text":
        network, tokenizer = CLIPModel.from_pretrained(folder), make_tiny_tokenizer()
        return lambda caption: embed(network, tokenizer([caption], truncation=True, return_tensors="pt").input_ids)
    network, processor = AutoModel.from_pretrained(folder), AutoImageProcessor.from_pretrained(folder)

    def vector(picture):
        pixels = processor(images=[picture], return_tensors="pt").pixel_values
        with torch.no_grad():
            if base == "clip":
                return network.visual_projection(network.vision_model(pixels).pooler_output)[0].numpy()
            return network(pixel_values=pixels).last_hidden_state[0, 0].numpy()

    return vector


def embed(network, ids):
    with torch.no_grad():
        return network.text_projection(network.text_model(ids).pooler_output)[0].numpy()


def mapped(name, networks):
    """The linear map of a mapper; none of others."""
    if not name.endswith("-abc"):
        return lambda vector: vector
    path = networks[name]
    held = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)["state_dict"]
    parts = {key.rpartition(".")[2]: value.numpy() for key, value in held.items()}
    return lambda vector: parts["weight"] @ vector + parts["bias"]


@pytest.mark.parametrize("region", ["whole", "box", "boxes"])
@pytest.mark.parametrize("method", ["clip", "clip-text", "dino", "dinov2", "clip-abc", "dino-abc"])
def test_scores_of_features_are_cosines_of_the_networks_own_outputs(world, method, region):
    truth, see, change = world.truth, look(method, world.networks), mapped(method, world.networks)
    of_captions = method == "clip-text"
    one = change(see(PROMPT if of_captions else seen_in(region)))
    sides = [(caption,) for caption in truth.captions] if of_captions else truth.sides
    expected = [
        max(oracle.cosine(one, change(see(side).astype(np.float16).astype(np.float32))) for side in views)
        for views in sides
    ]
    assert_scores(answer(world, region, method=method, top_k=8), expected, rtol=1e-5)


@pytest.mark.parametrize("region", ["whole", "box"])
def test_scores_of_pixels_are_cosines_of_intensities(world, region):
    one = np.asarray(seen_in(region).resize((32, 32), Image.Resampling.BOX))
    expected = [max(oracle.cosine(one, side) for side in views) for views in world.truth.sides]
    assert_scores(answer(world, region, method="pixel", top_k=8), expected, rtol=1e-5)


@pytest.mark.parametrize("seed", [0, 5])
def test_an_order_by_chance_is_thrown_by_the_seed_and_the_picture(world, seed):
    expected = oracle.dice(seed, asked("whole").image, 8)
    assert_scores(answer(world, method="random", top_k=8, seed=seed), expected, rtol=0)


# Pictures


@pytest.mark.parametrize("guidance", [1.0, 3.0, 7.5])
@pytest.mark.parametrize("steps", [2, 3])
def test_a_generated_picture_is_the_oracles_at_every_guidance(world, guidance, steps):
    from attribution.diffusion.pipeline import GenerateSettings

    made = world.model.generate(PROMPT, 5, GenerateSettings(steps, guidance))
    expected = oracle.picture(world.truth.pipe, PROMPT, 5, steps, guidance)
    assert np.abs(np.asarray(made, np.float64) - expected).max() < 0.51  # rounded to whole numbers


def test_every_method_of_the_table_is_known_to_the_oracle():
    unlearn = {method for method, *_ in EXHAUSTIVE} | {"ensemble"}
    kin, features = {"trak", "journey-trak", "d-trak"}, {"clip", "clip-text", "dino", "dinov2", "clip-abc", "dino-abc"}
    others = {"influence", "influence+", "pixel", "random", "fast"}  # tests/evaluate/test_distill.py knows the last
    assert METHODS.keys() == unlearn | kin | features | others
