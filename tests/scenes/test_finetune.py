"""The fine-tune, start to end: a LoRA of scenes of new objects, whose pictures are asked about."""

from dataclasses import replace

import pytest
import torch
from PIL import Image

from attribution.diffusion.overlaid import open_model
from attribution.diffusion.pictures import to_pixels
from attribution.diffusion.pipeline import Model
from attribution.diffusion.source import ModelFiles
from attribution.errors import InputError
from attribution.index.index import open_index
from attribution.methods.answer import AttributeSettings
from attribution.query.query import Query
from attribution.scenes import finetune
from attribution.scenes.compose import draw_scene, make_scenes
from attribution.scenes.finetune import (
    LORA,
    NEW,
    NOISE,
    FinetuneArgs,
    FinetuneSettings,
    asking,
    main,
    new_pictures,
    train_lora,
)
from attribution.scenes.names import NEW_OBJECTS, OBJECTS
from attribution.scenes.truth import locate
from attribution.scenes.world import EMBEDDED

pytest.importorskip("peft")
MODEL = str(EMBEDDED.parent / "model")
SMALL = FinetuneSettings(scenes=4, rank=2, steps=3, batch=2, old=4, fisher_samples=8, pictures=2, tries=2)


def test_new_scenes_hold_objects_that_no_old_scene_has_and_they_are_found_where_they_stand():
    scenes = make_scenes("train", 40, world=NEW)
    names = {placed.name for scene in scenes for placed in scene.objects}
    assert names == set(NEW.names) <= set(NEW_OBJECTS)
    assert not names & set(OBJECTS)
    for scene in scenes[:6]:
        for placed in scene.objects:
            assert locate(draw_scene(scene), placed.name, scene.style) == tuple(map(float, placed.box))
        absent = next(name for name in NEW.names if name not in {placed.name for placed in scene.objects})
        assert locate(draw_scene(scene), absent, scene.style) is None


def test_the_embedded_autoencoder_can_draw_the_new_objects():
    """Whatever else is fine-tuned, it draws the pictures in which they are looked for."""
    model = Model.load(EMBEDDED.parent / "model")
    alone = [scene for scene in make_scenes("train", 800, world=NEW) if len(scene.objects) == 1]
    by_kind = {(scene.objects[0].name, scene.style): scene for scene in alone}
    assert len(by_kind) == 2 * len(NEW.names)
    for (name, style), scene in by_kind.items():
        with torch.inference_mode():
            drawn = model.vae.decode(model.encode_images(to_pixels([draw_scene(scene)]))).sample[0]
        picture = Image.fromarray((drawn / 2 + 0.5).clamp(0, 1).mul(255).byte().permute(1, 2, 0).numpy())
        assert locate(picture, name, style), f"{style} {name}"


def test_methods_that_unlearn_are_asked_to_raise_the_pictures_loss_and_for_relative_changes():
    for method in ("unlearning", "unlearning+"):
        settings = asking(method, 0.5)
        assert (settings.unlearn.rise, settings.score) == (0.5, "skew")
    assert asking("d-trak", 0.5) == AttributeSettings("d-trak")  # it takes neither, and would refuse them


def test_a_lora_is_kept_as_diffusers_keeps_one_and_changes_the_model(tmp_path):
    told = []
    train_lora(tmp_path, replace(SMALL, steps=50), lambda step, loss: told.append((step, loss)))
    assert [step for step, _ in told] == [50]
    plain, tuned = Model.load(EMBEDDED.parent / "model"), open_model(ModelFiles(MODEL, lora_weights=str(tmp_path)))
    changed = [
        name
        for (name, one), other in zip(plain.unet.state_dict().items(), tuned.unet.state_dict().values(), strict=True)
        if not torch.equal(one, other)
    ]
    for layer in ("attn2.to_k", "attn1.to_q", "resnets.0.conv1"):
        assert any(layer in name for name in changed)
    assert not [name for name in changed if "norm" in name or "bias" in name]
    assert not torch.equal(plain.encode_text(["a lemon"]), tuned.encode_text(["a lemon"]))


def test_only_pictures_that_show_their_object_are_asked_about(monkeypatch):
    scene = next(each for each in make_scenes("train", 40, world=NEW) if each.objects[0].name == NEW.names[0])

    class Draws:
        """A model that draws one scene, whatever it is asked for."""

        def generate(self, prompt, seed):
            return draw_scene(scene)

    monkeypatch.setattr(finetune, "STYLES", (scene.style,) * 2)
    found = list(new_pictures(Draws(), replace(SMALL, tries=len(NEW.names))))
    shown = {placed.name for placed in scene.objects}
    assert [name for name, _ in found] == [name for name in NEW.names if name in shown][:2]


def test_start_to_end(tmp_path, monkeypatch, capsys):
    """What is there already is not made again, and the table counts new scenes among the first ten."""
    args = FinetuneArgs(tmp_path / "tuned", replace(SMALL, methods=("clip", "random")))
    queries = [("lemon", Query("a lemon", draw_scene(scene))) for scene in make_scenes("train", 2, world=NEW)]
    monkeypatch.setattr(finetune, "new_pictures", lambda model, settings: iter(queries))
    main(args)
    assert open_index(args.out / "index")[1].manifest.settings.noise == NOISE
    assert sorted(path.name for path in args.out.iterdir()) == ["found.json", "index", "lora", "pictures.png", "scenes"]
    first, made = capsys.readouterr().out, (args.out / "lora" / LORA).stat().st_mtime_ns
    assert "| clip | " in first
    monkeypatch.setattr(finetune, "train_lora", lambda *given: pytest.fail("trained again"))
    main(args)
    assert (args.out / "lora" / LORA).stat().st_mtime_ns == made
    assert capsys.readouterr().out.splitlines()[-2:] == first.splitlines()[-2:]
    assert [row.split("|")[3].strip() for row in first.splitlines()[-2:]] == ["0.50", "0.50"]  # 4 of all 8


def test_a_model_that_draws_no_new_object_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(finetune, "new_pictures", lambda model, settings: iter(()))
    with pytest.raises(InputError, match="none of 2 pictures shows its new object"):
        main(FinetuneArgs(tmp_path / "tuned", SMALL))
