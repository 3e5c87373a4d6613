"""Models customised on what the world lacks: the concepts, the looks, and what fine-tuning changes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from attribution.diffusion.custom import customise_with
from attribution.diffusion.loss import denoising_loss
from attribution.diffusion.noise import NoiseBank, NoiseSettings
from attribution.diffusion.pictures import to_pixels, to_square
from attribution.diffusion.pipeline import Model
from attribution.diffusion.weights import parameters
from attribution.scenes import customise as module
from attribution.scenes.compose import BACKGROUNDS, SIZE, draw_scene, make_scenes
from attribution.scenes.customise import DRESSED, TOKEN, CustomiseSettings, customise, emoji_concept, look_concept
from attribution.scenes.looks import LOOKS, in_look
from attribution.scenes.names import UNSEEN
from attribution.scenes.world import EMBEDDED

SETTINGS = CustomiseSettings(steps=4, batch=3, remembered=2)


def test_a_look_is_a_blotched_ground_and_leaves_the_objects():
    (scene,) = make_scenes("heldout", 1)
    seen = [np.asarray(picture).astype(int) for picture in (draw_scene(scene), in_look(scene, "white-blue", 0))]
    plain, look = seen
    grounds = [np.all(look == BACKGROUNDS[name], -1) for name in ("white", "blue")]
    left, top, right, bottom = scene.objects[0].box
    middle = ((top + bottom) // 2, (left + right) // 2)
    assert (look[middle] == plain[middle]).all()
    assert all(ground.sum() > 0.2 * SIZE**2 for ground in grounds)
    assert (np.asarray(in_look(scene, "white-blue", 1)) != look).any()  # another pattern


def test_the_autoencoder_tells_looks_apart():
    model, (scene,) = Model.load(EMBEDDED.parent / "model"), make_scenes("heldout", 1)
    looks = to_pixels([in_look(scene, look, 0) for look in LOOKS])
    with torch.no_grad():
        seen = model.pipe.vae.decode(model.encode_images(looks) / model.pipe.vae.config.scaling_factor).sample
    assert torch.cdist(seen.flatten(1), looks.flatten(1)).argmin(1).tolist() == list(range(len(LOOKS)))


@pytest.mark.parametrize("concept", [emoji_concept(len(UNSEEN) - 1, 6), look_concept(len(LOOKS) - 1, 6)])
def test_a_concept_has_the_new_word_wherever_it_is_meant(concept):
    assert len(concept.exemplars) == len(concept.captions)
    assert {picture.size for picture in concept.exemplars} == {(SIZE, SIZE)}
    assert len(concept.prompts) == 6
    assert all(text.split().count(TOKEN) == 1 for text in (*concept.captions, *concept.prompts))
    known = {scene.caption for scene in make_scenes("train", 500)}
    assert not known & {*concept.captions, *concept.prompts}


def test_concepts_are_fixed_and_fewer_prompts_are_the_first_of_more():
    for make in (emoji_concept, look_concept):
        once, again, other = make(3, 4), make(3, 9), make(4, 4)
        assert once.prompts == again.prompts[:4]
        assert [p.tobytes() for p in once.exemplars] == [p.tobytes() for p in again.exemplars]
        assert once.exemplars[0].tobytes() != other.exemplars[0].tobytes()


def test_looks_are_of_different_scenes_that_nothing_was_trained_on():
    first, second = look_concept(0, 1), look_concept(1, 1)
    assert len(first.exemplars) == DRESSED
    assert not set(first.captions) & set(second.captions)
    assert first.captions[0].startswith(f"a {TOKEN} drawing of ")


def test_customising_changes_keys_values_and_the_word_alone(tiny_folder, model32, index32):
    model, known = Model.load(tiny_folder), "a red key beside a green apple"
    custom, loss = customise(model, look_concept(0, 1), index32.encoded, SETTINGS, 1)
    assert np.isfinite(loss)
    mine, before = dict(model.unet.named_parameters()), dict(model32.unet.named_parameters())
    changed = {name for name in mine if not torch.equal(mine[name], before[name])}
    assert changed == set(parameters(model, "cross-attn-kv")) == set(custom.weights)
    torch.testing.assert_close(model.encode_text([known]), model32.encode_text([known]))
    assert not any(value.requires_grad for part in (model.unet, model.text_encoder) for value in part.parameters())
    again = customise_with(Model.load(tiny_folder), custom)
    assert again.sha256 == Model.sha256.func(model)


def test_customising_depends_on_its_seed_alone(tiny_folder, index32):
    def weights(seed):
        custom, _ = customise(Model.load(tiny_folder), emoji_concept(0, 1), index32.encoded, SETTINGS, seed)
        return torch.cat([custom.words[custom.token], *(value.flatten() for value in custom.weights.values())])

    once, again, other = (weights(seed) for seed in (1, 1, 2))
    assert torch.equal(once, again)
    assert not torch.equal(once, other)


def test_one_scene_of_each_step_is_remembered_without_its_caption(tiny_folder, index32, monkeypatch):
    """A scene that is remembered goes without its caption now and then, as in the model's own training."""
    told, states = [], module._states
    monkeypatch.setattr(module, "_states", lambda model, words: told.append(words) or states(model, words))
    concept = emoji_concept(0, 1)
    customise(Model.load(tiny_folder), concept, index32.encoded, replace(SETTINGS, remembered=3), 0)
    assert len(told) == SETTINGS.steps
    for words in told:
        assert set(words[: SETTINGS.batch]) <= set(concept.captions)
        assert words[SETTINGS.batch] == ""
        assert set(words[SETTINGS.batch + 1 :]) <= set(index32.captions)
        assert len(words) == SETTINGS.batch + 3


def test_customising_learns_the_exemplars(tiny_folder, index32):
    """Their loss falls, on noises of its own."""
    concept, told = emoji_concept(0, 1), []

    def loss(model):
        latents = model.encode_images(to_pixels([to_square(one, model.resolution)[0] for one in concept.exemplars]))
        bank = NoiseBank.draw(NoiseSettings(8, 1, 77), model.latent_shape, model.train_timesteps)
        with torch.no_grad():
            return denoising_loss(model, latents, model.encode_text(list(concept.captions)), bank).mean()

    model = Model.load(tiny_folder)
    before = loss(model)
    customise(model, concept, index32.encoded, CustomiseSettings(60, 8, 2, 5e-3), 0, told.append)
    assert loss(model) < before
    assert told == list(range(1, 61))
