"""EmojiScenes: deterministic, well placed, and named by their captions."""

import json
import os
import subprocess
import sys
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from attribution.errors import InputError
from attribution.index.data import DataSettings, open_training_set
from attribution.scenes import compose
from attribution.scenes.autoencoder import picture_loss
from attribution.scenes.compose import (
    BACKGROUNDS,
    CELL,
    LATTICE,
    MARGIN,
    SEEN,
    SIZE,
    STYLES,
    WORLD,
    WORLDS,
    Scene,
    caption,
    draw_scene,
    make_scene,
    make_scenes,
    metadata,
    scenes_sha256,
    sprite,
    write_imagefolder,
)
from attribution.scenes.denoiser import shifted
from attribution.scenes.judge import Judge
from attribution.scenes.names import OBJECTS
from attribution.scenes.networks import grown, make_autoencoder, make_unet
from attribution.scenes.pictures import save_beside
from attribution.scenes.stages import TrainArgs
from attribution.scenes.train import status
from attribution.scenes.trainer import Recipe, Trainer, keep


@pytest.fixture(scope="module")
def scenes():
    return make_scenes("train", 300)


def test_the_same_seed_gives_the_same_bytes_here_and_in_another_process(scenes):
    code = "from attribution.scenes.compose import *; print(scenes_sha256(make_scenes('train', 24)))"
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert scenes_sha256(make_scenes("train", 24)) == other.stdout.strip() == scenes_sha256(scenes[:24])


def test_a_scene_depends_on_seed_split_and_number_alone(scenes):
    assert make_scene(123) == scenes[123] == make_scenes("train", 124)[123]
    assert make_scenes("train", 10, seed=1) != scenes[:10]
    assert len(set(scenes)) > 290


def test_the_splits_differ(scenes):
    heldout = make_scenes("heldout", 300)
    assert not set(heldout) & set(scenes)


def test_the_splits_have_the_sizes_promised():
    assert (compose.TRAIN_SCENES, compose.HELDOUT_SCENES) == (4096, 512)
    assert len(make_scenes("heldout")) == 512


def test_the_papers_own_example_is_in_the_world():
    assert {"motorcycle", "stop sign"} <= set(OBJECTS)
    assert len(OBJECTS) == 48


def test_boxes_lie_inside_the_picture_and_hold_all_the_pixels_of_their_sprite(scenes):
    for scene in scenes[:120]:
        empty = np.asarray(draw_scene(Scene(scene.caption, (), (), scene.style, scene.background)))
        for placed, cell in zip(scene.objects, scene.cells, strict=True):
            alone = np.asarray(draw_scene(Scene("", (placed,), (cell,), scene.style, scene.background)))
            rows, columns = np.nonzero((alone != empty).any(-1))
            x0, y0, x1, y1 = placed.box
            assert 0 <= x0 < x1 <= SIZE
            assert 0 <= y0 < y1 <= SIZE
            assert x0 <= columns.min() <= columns.max() < x1
            assert y0 <= rows.min() <= rows.max() < y1
            assert max(x1 - x0, y1 - y0) == CELL - 2 * MARGIN


def test_cells_stand_on_the_lattice_and_never_overlap(scenes):
    for scene in scenes:
        for x, y in scene.cells:
            assert x % LATTICE == y % LATTICE == 0
            assert 0 <= min(x, y) <= max(x, y) <= SIZE - CELL
        for (ax, ay), (bx, by) in combinations(scene.cells, 2):
            assert abs(ax - bx) >= CELL or abs(ay - by) >= CELL


def test_captions_name_exactly_the_objects(scenes):
    for scene in scenes:
        rest, names = scene.caption, [placed.name for placed in scene.objects]
        for name in sorted(names, key=len, reverse=True):
            assert rest.count(name) == 1
            rest = rest.replace(name, "")
        assert not [name for name in OBJECTS if f" {name} " in rest]
        assert f" {scene.style} drawing of " in scene.caption
        assert scene.caption.endswith(f" on a {scene.background} background")
        places = [scene.caption.index(name) for name in names]
        assert all(a < b for a, b in pairwise(places))


def test_captions_read_as_promised():
    assert caption(("red apple", "motorcycle"), "flat", "pink") == (
        "a flat drawing of a red apple and a motorcycle on a pink background"
    )
    assert caption(("owl",), "outlined", "gray") == "an outlined drawing of an owl on a gray background"
    assert caption(("scissors", "key", "frog"), "flat", "blue") == (
        "a flat drawing of scissors, a key and a frog on a blue background"
    )


def test_objects_styles_and_backgrounds_all_occur(scenes):
    assert {placed.name for scene in scenes for placed in scene.objects} == set(OBJECTS)
    assert {scene.style for scene in scenes} == set(STYLES)
    assert {scene.background for scene in scenes} == set(BACKGROUNDS)
    assert {len(scene.objects) for scene in scenes} == {1, 2, 3}


def test_every_object_has_a_picture_of_its_own_in_both_styles():
    drawn = {(name, style): sprite(name, style).tobytes() for name in OBJECTS for style in STYLES}
    assert len(set(drawn.values())) == 2 * len(OBJECTS)


def test_an_imagefolder_round_trips_through_datasets(tmp_path, scenes):
    write_imagefolder(tmp_path / "scenes", "train", 30)
    training = open_training_set(DataSettings(train_data_dir=tmp_path / "scenes"))
    assert training.captions == [scene.caption for scene in scenes[:30]]
    assert training.ids == [f"{row:05d}.png" for row in range(30)]
    for row, scene in enumerate(scenes[:30]):
        assert training.image(row).tobytes() == draw_scene(scene).tobytes()


def test_metadata_hold_the_ground_truth(tmp_path, scenes):
    folder = write_imagefolder(tmp_path / "scenes", "train", 5)
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    assert [set(row) for row in rows] == [{"file_name", "text", "objects", "style", "background"}] * 5
    for row, scene in zip(rows, scenes, strict=False):
        found = [(thing["name"], tuple(thing["box"])) for thing in row["objects"]]
        assert found == [(placed.name, placed.box) for placed in scene.objects]
    assert rows == json.loads(json.dumps(list(metadata(scenes[:5]))))


def test_a_folder_that_is_not_empty_is_refused_and_left_alone(tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="is not empty"):
        write_imagefolder(tmp_path, "train", 3)
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


# The world of 64 px, which the embedded one grows from and its networks see, and that of 128 px


@pytest.fixture(scope="module")
def small_scenes():
    return make_scenes("train", 60, world=WORLDS[64])


@pytest.fixture(scope="module")
def large_scenes():
    return make_scenes("train", 60, world=WORLDS[128])


def test_the_embedded_world_is_the_larger_one(scenes, large_scenes):
    assert scenes[:60] == large_scenes
    assert WORLDS[128] == WORLD
    assert WORLDS[64] == SEEN


def test_the_worlds_differ_in_size_alone(small_scenes, large_scenes):
    for small, large in zip(small_scenes, large_scenes, strict=True):
        assert (small.caption, small.style, small.background) == (large.caption, large.style, large.background)
        assert [placed.name for placed in small.objects] == [placed.name for placed in large.objects]
        assert [(2 * x, 2 * y) for x, y in small.cells] == list(large.cells)


def test_both_worlds_stand_on_one_latent_grid():
    assert {world.latent_side for world in WORLDS.values()} == {8} == {make_unet(WORLDS[128]).config.sample_size}


def test_a_large_scene_halved_looks_like_the_small_one(small_scenes, large_scenes):
    """Nearer to its own small scene than to any other, and near: sprites are drawn anew, so that edges differ."""
    small = np.stack([np.asarray(draw_scene(scene), float) for scene in small_scenes[:20]])
    for number, large in enumerate(large_scenes[:20]):
        picture = draw_scene(large)
        assert picture.size == (128, 128)
        away = np.abs(np.asarray(picture.reduce(2), float) - small).mean((1, 2, 3))  # of 255
        assert away.argmin() == number
        assert away[number] < 12


def test_large_boxes_hold_their_sprites_and_keep_the_margin(large_scenes):
    for scene in large_scenes:
        for placed, (x, y) in zip(scene.objects, scene.cells, strict=True):
            x0, y0, x1, y1 = placed.box
            assert x + 2 <= x0 < x1 <= x + 62
            assert y + 2 <= y0 < y1 <= y + 62
            assert max(x1 - x0, y1 - y0) == 60


def test_an_autoencoder_grows_by_the_level_of_full_size_alone():
    torch.manual_seed(0)
    small = make_autoencoder(WORLDS[64])
    large = grown(small, WORLDS[128])
    pictures = torch.zeros(1, 3, 128, 128)
    latents = large.encode(pictures).latent_dist.mean
    assert latents.shape == (1, 16, 8, 8)
    assert large.decode(latents).sample.shape == pictures.shape
    for ours, theirs in ((large.encoder.down_blocks[i + 1], small.encoder.down_blocks[i]) for i in (1, 2, 3)):
        torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
    torch.testing.assert_close(large.decoder.mid_block.state_dict(), small.decoder.mid_block.state_dict())
    taken = sum(p.numel() for p in small.parameters()) / sum(p.numel() for p in large.parameters())
    assert taken > 0.9


@pytest.mark.parametrize("side", [64, 128])
def test_the_judge_looks_at_cells_whatever_their_size(side):
    judge = Judge(WORLDS[side]).eval()
    assert judge.layers(torch.zeros(1, 3, side, side)).shape == (1, len(OBJECTS), 4, 4)


def test_the_picture_loss_is_least_without_error_and_dislikes_edges():
    flat, striped = torch.full((1, 3, 8, 8), 0.5), torch.full((1, 3, 8, 8), 0.5)
    striped[..., ::2] *= -1
    assert picture_loss(torch.zeros(1, 3, 8, 8)) == 0
    assert picture_loss(flat) == pytest.approx(0.25 + 0.2 * 0.5)
    assert picture_loss(striped) == pytest.approx(0.25 + 0.2 * 0.5 + 0.1 * 1)


def test_shifted_timesteps_multiply_the_odds_of_their_share():
    u = torch.rand(100_000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(shifted(u, 1), (1000 * u).long())
    t = shifted(u, 2)
    assert t.min() >= 0
    assert t.max() == 999
    for share in (0.25, 0.5, 0.75):
        plain = share / (1 - share) / 2  # the odds before the shift
        assert abs((t < 1000 * share).double().mean() - plain / (1 + plain)) < 0.01
    assert shifted(torch.tensor([1 - 1e-9]), 2).item() == 999


def test_learning_rates_rise_then_fall_as_their_shape_says():
    shapes = {shape: Recipe(1, 8, 1.0, 10, shape) for shape in ("cosine", "constant", "linear")}
    assert [recipe.rate(4, 0) for recipe in shapes.values()] == pytest.approx([0.5] * 3)
    assert [recipe.rate(99, 30) for recipe in shapes.values()] == pytest.approx([0.51, 1, 0.5])
    assert [recipe.rate(99, 60) for recipe in shapes.values()] == pytest.approx([0.02, 1, 0])


def test_a_training_goes_on_where_it_stopped(tmp_path):
    def trained(name, sittings):
        for minutes in sittings:
            layer = torch.nn.Linear(2, 1)
            torch.nn.init.ones_(layer.weight)
            torch.nn.init.zeros_(layer.bias)
            recipe = Recipe(minutes, 1, 0.1, 1, "constant")
            trainer = Trainer({"layer": layer}, tmp_path / name, recipe, 0)
            steps = iter(range(trainer.step, round(60 * minutes)))

            def loss(generator, trainer=trainer, layer=layer, steps=steps, minutes=minutes):
                if next(steps, None) == round(60 * minutes) - 1:
                    trainer.recipe = Recipe(0, 1, 0.1, 1, "constant")
                return layer(torch.randn(4, 2, generator=generator)).square().mean()

            trainer.run(loss, lambda path: None)
        return trainer

    whole, halves = trained("whole.pt", [0.2]), trained("halves.pt", [0.1, 0.2])
    assert whole.step == halves.step == 12
    torch.testing.assert_close(halves.modules.state_dict(), whole.modules.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(halves.ema, whole.ema, rtol=0, atol=0)


def test_the_steps_are_listed_with_what_is_next(tmp_path):
    steps = status(TrainArgs(work=tmp_path / "work", kept=tmp_path / "kept", out=tmp_path / "out" / "model"))
    assert list(steps)[:5] == ["autoencoder", "diffusion", "cooldown", "judge", "save"]
    assert not any(done for done, _ in steps.values())
    (tmp_path / "out" / "clip").mkdir(parents=True)
    (tmp_path / "out" / "clip" / "model.safetensors").touch()
    steps = status(TrainArgs(work=tmp_path / "work", kept=tmp_path / "kept", out=tmp_path / "out" / "model"))
    assert [step for step, (done, _) in steps.items() if done] == ["clip"]


def test_what_is_kept_is_gone_on_from_without_the_optimiser(tmp_path):
    recipe = Recipe(0.0, 1, 0.1, 1, "constant")
    first = Trainer({"layer": torch.nn.Linear(3, 2)}, tmp_path / "first.pt", recipe, 0)
    first.step, first.seconds = 7, 60.0
    first.ema = {name: value + 1 for name, value in first.ema.items()}
    first.save()
    keep(torch.load(first.path, weights_only=True), tmp_path / "kept.safetensors")
    second = Trainer({"layer": torch.nn.Linear(3, 2)}, tmp_path / "second.pt", recipe, 0)
    second.load_kept(tmp_path / "kept.safetensors")
    assert (second.step, second.seconds) == (7, 60.0)
    torch.testing.assert_close(second.modules.state_dict(), first.modules.state_dict(), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(second.ema, first.ema, rtol=1e-3, atol=1e-3)


def test_the_judge_is_passed_at_both_bars_alone(tmp_path):
    args = TrainArgs(work=tmp_path, kept=tmp_path / "kept", out=tmp_path / "out" / "model")
    for recognised, both, passed in ((0.96, 0.85, False), (0.94, 0.95, False), (0.95, 0.9, True)):
        found = {"judge_on_generated": {"recognised": recognised}, "both_objects": both}
        (tmp_path / "judged.json").write_text(json.dumps(found))
        assert status(args)["judge"][0] == passed


def test_the_large_world_says_where_it_looked_for_the_small_one(tmp_path):
    args = TrainArgs(work=tmp_path, small=tmp_path / "64" / "model")
    assert args.world == WORLDS[128]
    with pytest.raises(
        InputError, match=r"grows from the finished model of 64 px, and '.*64.model' holds no vae; .* --small"
    ):
        args.part("vae")
    (args.small / "vae").mkdir(parents=True)
    assert args.part("vae") == args.small / "vae"


def test_two_grids_stand_beside_each_other(tmp_path):
    left, right = torch.full((4, 3, 8, 8), -1.0), torch.full((4, 3, 8, 8), 1.0)
    save_beside(left, right, tmp_path / "sheet.png", columns=2)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (2 * 20 + 2, 20)
        pixels = np.asarray(sheet.convert("RGB"))
    assert (pixels[1:9, 1:9] == 0).all()
    assert (pixels[:, 20:] == 255).all()
