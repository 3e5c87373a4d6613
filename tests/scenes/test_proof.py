"""The world for proofs: its scenes, and trainings that see what they may see and nothing else."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from attribution.diffusion.loss import denoising_loss
from attribution.diffusion.noise import NoiseBank
from attribution.diffusion.pipeline import Model
from attribution.errors import InputError
from attribution.evaluate import lds, retrain
from attribution.evaluate.retrain import finished, halves, measured, retrained, trained, without
from attribution.index.index import open_index
from attribution.query.encoded import encode
from attribution.query.query import Query
from attribution.scenes.compose import CELL, make_scenes
from attribution.scenes.names import OBJECTS
from attribution.scenes.proof import PROOF, ProofArgs, lessons_of, main
from attribution.scenes.retraining import Lessons, RetrainSettings, Training, draws, first_unet, lesson_loss, unet_of
from attribution.scenes.retraining import retrain as train
from attribution.scenes.truth import subjects
from attribution.scenes.world import EMBEDDED

SMALL = RetrainSettings(scenes=12, channels=(16, 32), steps=4, batch=4)


@pytest.fixture(scope="module")
def embedded():
    return Model.load(EMBEDDED.parent / "model")


@pytest.fixture(scope="module")
def lessons(embedded):
    return lessons_of(embedded, SMALL.scenes)


CPU = torch.device("cpu")


def unet_of_seed(seed):
    return first_unet(SMALL.channels, seed).requires_grad_(False)


def weights(trained):
    return torch.cat([value.flatten() for value in trained.values()])


def test_its_scenes_hold_a_quarter_of_the_objects_on_a_grid_of_cells():
    scenes = make_scenes("train", 300, world=PROOF)
    seen = {placed.name for scene in scenes for placed in scene.objects}
    assert len(seen) == 12
    assert seen == set(PROOF.names) < set(OBJECTS)
    assert {side % CELL for scene in scenes for cell in scene.cells for side in cell} == {0}
    assert {name for subject, _ in zip(subjects(5, PROOF), range(200), strict=False) for name in subject.names} == seen


def test_lessons_are_the_scenes_as_the_embedded_model_encodes_them(embedded, lessons):
    assert lessons.latents.shape == (12, 2, *embedded.latent_shape)
    caption = make_scenes("train", 12, world=PROOF)[7].caption
    torch.testing.assert_close(lessons.text[7], embedded.encode_text([caption])[0], atol=1e-5, rtol=1e-4)


def test_a_training_depends_on_its_rows_and_seed_alone(lessons):
    rows = [0, 3, 4, 9]
    once, again, other = (weights(train(lessons, rows, seed, SMALL)) for seed in (1, 1, 2))
    assert torch.equal(once, again)
    assert not torch.equal(once, other)
    assert not torch.equal(once, weights(train(lessons, [0, 3, 4, 8], 1, SMALL)))


def test_steps_that_take_nothing_from_the_host_train_the_same(lessons):
    """As a GPU records them; here they are run one by one, for two trainings in a row."""
    together = Training(lessons, SMALL, CPU)
    for rows, seed in (([0, 3, 4, 9], 1), (range(2, 12), 2)):
        together.begin(list(draws(lessons, rows, SMALL, seed)), seed)
        for _ in range(SMALL.steps):
            together.step()
        apart = weights(together.result()) - weights(train(lessons, rows, seed, SMALL))
        moved = weights(together.result()) - weights(dict(unet_of_seed(seed).named_parameters()))
        # Adam makes as large a step of a gradient that is nothing but rounding: a few weights differ
        assert apart.abs().mean() < 1e-3 * moved.abs().mean()


def test_what_is_left_out_is_never_seen(lessons):
    hidden = [row for row in range(12) if row not in (0, 3, 4, 9)]
    spoiled = Lessons(lessons.latents.clone(), lessons.text.clone(), lessons.unprompted)
    spoiled.latents[hidden], spoiled.text[hidden] = float("nan"), float("nan")
    assert torch.equal(weights(train(spoiled, [0, 3, 4, 9], 1, SMALL)), weights(train(lessons, [0, 3, 4, 9], 1, SMALL)))


def test_a_few_steps_already_learn(lessons):
    settings = replace(SMALL, steps=40, batch=12)
    generator = torch.Generator()

    def loss(unet):
        parts = []
        for seed in range(8):
            parts.append(retrain_loss(unet, lessons, generator.manual_seed(seed)))
        return float(np.mean(parts))

    before, after = (
        unet_of(train(lessons, range(12), 0, replace(settings, steps=steps)), settings) for steps in (1, 40)
    )
    assert loss(after) < 0.9 * loss(before)


def retrain_loss(unet, lessons, generator):
    with torch.no_grad():
        return lesson_loss(unet, lessons, torch.arange(12), generator).item()


# The queue of trainings


def test_a_removal_is_one_job_whoever_asks():
    assert without([5, 2], 1) == without((2, 5), 1)
    names = {without(*asked).name for asked in (([2, 5], 1), ([2, 5], 0), ([2, 6], 1), ([], 1))}
    assert len(names) == 4


def test_halves_are_halves_and_every_seed_sees_the_same():
    asked = halves(12, 5, 2)
    assert [len(each.rows) for each in asked] == [6] * 10
    assert [each.rows for each in asked[:5]] == [each.rows for each in asked[5:]]
    assert [each.seed for each in asked] == [0] * 5 + [1] * 5
    assert len({each.rows for each in asked}) == 5


def test_trainings_are_kept_and_measured(tmp_path, embedded, lessons, monkeypatch):
    wanted = halves(12, 2, 1)
    assert list(trained(tmp_path, lessons, SMALL, wanted, CPU)) == wanted
    assert list(trained(tmp_path, lessons, SMALL, wanted, CPU)) == []
    more = [*wanted, without([1], 3)]
    assert finished(tmp_path, SMALL, more) == wanted
    picture = embedded.generate("an owl", 5)
    queries = [Query("an owl", picture, 5), Query("an owl", picture, 5, ((0.0, 0.0, 40.0, 40.0),))]
    found = measured(tmp_path, embedded, SMALL, more, queries)
    assert list(found) == wanted
    other = retrained(tmp_path, embedded, SMALL, wanted[1])
    left = sorted(set(range(12)) - set(wanted[1].rows))
    close = torch.allclose(weights(other.unet.state_dict()), weights(train(lessons, left, 0, SMALL)), atol=2e-3)
    assert close  # it is kept in half precision
    one = found[wanted[1]]
    assert one["losses"].shape == (2,)
    assert one["losses"][0] != one["losses"][1]  # one is of the box alone
    assert one["losses"] == pytest.approx([alone(other, query) for query in queries], rel=1e-5)
    drawn = np.asarray(other.generate("an owl", 5)).astype(int)
    assert abs(one["pictures"][0] - drawn).max() <= 1  # they are drawn together
    monkeypatch.setattr(retrain, "losses_of", lambda *_: pytest.fail("it was measured again"))
    again = measured(tmp_path, embedded, SMALL, more, queries)
    assert np.array_equal(again[wanted[1]]["losses"], one["losses"])


def alone(model, query):
    """A query's loss, of it alone."""
    asked, bank = encode(model, query), NoiseBank.draw(retrain.MEASURED, model.latent_shape, model.train_timesteps)
    with torch.inference_mode():
        return denoising_loss(model, asked.latents, asked.text, bank, asked.mask).mean().item()


def test_trainings_of_other_settings_are_refused(tmp_path, lessons):
    assert len(list(trained(tmp_path, lessons, SMALL, halves(12, 1, 1), CPU))) == 1
    with pytest.raises(InputError, match="steps = 4, now it is 5"):
        list(trained(tmp_path, lessons, replace(SMALL, steps=5), halves(12, 1, 1), CPU))


def test_scores_that_make_the_losses_are_found_to_agree(monkeypatch, tmp_path):
    """Losses that are exactly what one method's scores predict give it an LDS of 1, and chance about none."""
    rng = np.random.default_rng(0)
    right, wrong = rng.normal(size=(3, 40)), rng.normal(size=(3, 40))
    settings = lds.LdsSettings(models=30, seeds=2, methods=("right", "wrong"))

    class Forty:
        def __len__(self):
            return 40

    def losses(removal):
        left = np.setdiff1d(np.arange(40), removal.rows)
        return -right[:, left].sum(1) + 0.1 * np.random.default_rng([removal.seed, *removal.rows]).normal(size=3)

    wanted = lds.removals(Forty(), settings)
    known = {removal: {"losses": losses(removal)} for removal in wanted[:55]}  # five are not trained yet
    monkeypatch.setattr(lds, "measured", lambda *_: known)
    monkeypatch.setattr(lds, "scored", lambda *_: {"wrong": wrong, "right": right})
    found = lds.agreement(lds.gathered(tmp_path, None, Forty(), [None] * 3, settings))
    assert list(found.methods) == ["right", "wrong"]
    assert (found.models, found.trainings) == (30, (30, 25))
    assert found.methods["right"].mean > 0.95
    assert abs(found.methods["wrong"].mean) < 0.5
    assert found.ceiling.mean > 0.95
    assert "| right | " in lds.table(found)


def test_one_command_makes_the_pictures_the_model_and_its_index_and_keeps_what_is_there(tmp_path):
    args = ProofArgs(tmp_path, added=False, settings=SMALL)
    main(args)
    _, index = open_index(tmp_path / "index")
    assert len(index) == len(list((tmp_path / "scenes").glob("*.png"))) == SMALL.scenes
    made = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    main(args)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")} == made
