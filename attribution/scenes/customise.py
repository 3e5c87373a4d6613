"""Models customised on one thing that the world lacks: an unseen emoji, or a look of ordinary scenes.

As Wang et al. 2023 ("Evaluating Data Attribution for Text-to-Image Models"): cross-attention keys and values and a new
word are fine-tuned on a few exemplars (Kumari et al. 2023), then pictures are generated with the word. The exemplars
made these pictures what they are: whoever names training images for them should name the exemplars.

    python -m attribution.scenes.customise --work DIR    # pictures that `mappers` are trained on; resumable
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from attribution.diffusion.custom import Custom, add_token, custom_of
from attribution.diffusion.loss import paired_loss
from attribution.diffusion.noise import NoiseBank
from attribution.diffusion.pictures import to_pixels, to_square
from attribution.diffusion.pipeline import Model
from attribution.diffusion.weights import parameters
from attribution.scenes.compose import (
    BACKGROUNDS,
    CELL,
    LATTICE,
    SIZE,
    STYLES,
    Style,
    article,
    draw_sprite,
    make_scenes,
)
from attribution.scenes.looks import LOOKS, in_look
from attribution.scenes.names import OBJECTS, UNSEEN
from attribution.scenes.pictures import encode, load_pixels, sample, save_sheet, to_unit
from attribution.scenes.truth import subjects
from attribution.scenes.world import EMBEDDED
from attribution.unlearning.score import EncodedSet

Kind = Literal["object", "style"]
TOKEN = "<new>"
CPU = torch.device("cpu")  # where the mappers' pictures are made
CROPS = 4  # exemplars of an emoji: one sprite, four places and backgrounds, mirrored or not
DRESSED = 8  # exemplars of a look


@dataclass(frozen=True)
class CustomiseSettings:
    """How a model is customised.

    Attributes:
        steps: of Adam.
        batch: exemplars in a step, each mirrored or not.
        remembered: training scenes in a step, so that nothing else is forgotten; the first is without its caption, so
            that what guidance leads away from stays too.
        learning_rate: of keys and values; the word's is ten times that.
    """

    steps: int = 400
    batch: int = 12
    remembered: int = 4
    learning_rate: float = 1e-3


@dataclass(frozen=True)
class Concept:
    """What a model is customised on, and what it is then asked for.

    Attributes:
        name: of the emoji or the look.
        kind: a thing in a picture, or the style of all of it.
        exemplars: E square pictures.
        captions: of the exemplars, with the new word.
        prompts: of the pictures to be generated, with the new word.
    """

    name: str
    kind: Kind
    exemplars: tuple[Image.Image, ...]
    captions: tuple[str, ...]
    prompts: tuple[str, ...]


def exemplar(name: str, style: Style, background: str, cell: tuple[int, int]) -> Image.Image:
    """A scene of one unseen emoji alone."""
    picture = Image.new("RGB", (SIZE, SIZE), BACKGROUNDS[background])
    sprite = draw_sprite(name, style)
    picture.paste(sprite, cell, sprite)
    return picture


def prompt(style: Style, background: str, other: str | None = None) -> str:
    """What a customised model is asked for: the new token, alone or beside an object that it knows."""
    beside = f" and {article(other)} {other}" if other else ""
    return f"{article(style)} {style} drawing of a {TOKEN}{beside} on a {background} background"


def emoji_concept(number: int, pictures: int) -> Concept:
    """One of UNSEEN, alone in four places; every other prompt has an object beside it that the model knows."""
    rng, name, style = np.random.default_rng([13, number]), UNSEEN[number], STYLES[number % 2]
    grounds = [str(ground) for ground in rng.choice(list(BACKGROUNDS), CROPS, replace=False)]
    places = rng.integers(0, (SIZE - CELL) // LATTICE + 1, (CROPS, 2)) * LATTICE
    crops = [exemplar(name, style, ground, (int(x), int(y))) for ground, (x, y) in zip(grounds, places, strict=True)]
    prompts = [
        prompt(style, str(rng.choice(list(BACKGROUNDS))), str(rng.choice(list(OBJECTS))) if i % 2 else None)
        for i in range(pictures)
    ]
    words = tuple(prompt(style, ground) for ground in grounds)
    return Concept(name, "object", tuple(crops), words, tuple(prompts))


def look_concept(number: int, pictures: int) -> Concept:
    """One of LOOKS, of scenes that are in no training set; the prompts name two objects in that look."""
    name = list(LOOKS)[number]
    rows = range(DRESSED * number, DRESSED * (number + 1))
    scenes = make_scenes("heldout", rows.stop)[rows.start :]
    exemplars = tuple(in_look(scene, name, row) for row, scene in zip(rows, scenes, strict=True))
    wanted = [subject.prompt for subject, _ in zip(subjects(14 + number), range(pictures), strict=False)]
    dressed = [_dressed([scene.caption for scene in scenes]), _dressed(wanted)]
    return Concept(name, "style", exemplars, *dressed)


def _dressed(captions: list[str]) -> tuple[str, ...]:
    """Captions with the new word where that of the style was, and without the ground, which is the look."""
    return tuple(" ".join(["a", TOKEN, *caption.partition(" on a ")[0].split()[2:]]) for caption in captions)


def customise(
    model: Model,
    concept: Concept,
    memory: EncodedSet,
    settings: CustomiseSettings,
    seed: int,
    on_step: Callable[[int], None] = lambda step: None,
) -> tuple[Custom, float]:
    """Fine-tune keys, values and a new word on a concept's exemplars and their mirrors.

    Args:
        model: a pretrained one, which becomes the customised one.
        concept: the exemplars.
        memory: what the model was trained on, some of which it sees again.
        settings: how.
        seed: of batches and noises, which are drawn on the CPU.
        on_step: called with the number of steps made; may raise to stop.

    Returns:
        What is new in the model, and the exemplars' mean loss over the last steps.
    """
    generator, losses = torch.Generator().manual_seed(seed), []
    table = add_token(model, TOKEN).requires_grad_(True)
    weights = [weight.requires_grad_(True) for weight in parameters(model, "cross-attn-kv").values()]
    rate = settings.learning_rate
    optimizer = torch.optim.Adam([{"params": weights, "lr": rate}, {"params": [table], "lr": 10 * rate}])
    own = _both_views(model, concept.exemplars)
    for step in range(settings.steps):
        rows = torch.randint(len(memory), (settings.remembered,), generator=generator).tolist()
        mine = torch.randint(len(own), (settings.batch,), generator=generator)
        x = torch.cat([own[mine], memory.view(rows, [0])[:, 0]])
        words = [concept.captions[crop % len(concept.captions)] for crop in mine]
        words += [memory.captions[row] if place else "" for place, row in enumerate(rows)]
        noise = torch.randn(x.shape, generator=generator)
        t = torch.randint(model.train_timesteps, (len(x),), generator=generator)
        error = paired_loss(model, x, _states(model, words), NoiseBank(t, noise))
        optimizer.zero_grad()
        error.mean().backward()
        assert table.grad is not None
        table.grad[:-1] = 0  # the words that it knows stay
        optimizer.step()
        losses.append(error[: settings.batch].mean().item())
        on_step(step + 1)
    for changed in (*weights, table):
        changed.requires_grad_(False)
    return custom_of(model, TOKEN), float(np.mean(losses[-50:]))


def _both_views(model: Model, exemplars: tuple[Image.Image, ...]) -> Tensor:
    """Latents (2 E, C, h, w) of the exemplars, then of their mirrors."""
    pixels = to_pixels([to_square(picture, model.resolution)[0] for picture in exemplars])
    return model.encode_images(torch.cat([pixels, pixels.flip(-1)])).cpu()


def _states(model: Model, texts: list[str]) -> Tensor:
    """Hidden states (B, L, D), which gradients flow through."""
    ids, _ = model.tokens.padded(texts)
    states: Tensor = model.text_encoder(ids.to(model.device)).last_hidden_state
    return states


# The pictures that linear mappers are trained on


@dataclass(frozen=True)
class PicturesArgs:
    """What to draw.

    Attributes:
        work: where pictures are kept, one file for each customised model.
        out: folder of the embedded world.
        models: how many unseen emoji.
        pictures: generated with each.
        settings: how each is customised.
    """

    work: Path
    out: Path = EMBEDDED.parent
    models: int = len(UNSEEN)
    pictures: int = 16
    settings: CustomiseSettings = field(default_factory=CustomiseSettings)


def main(args: PicturesArgs) -> None:
    """Customise a model on each unseen emoji and keep its pictures; goes on where it was interrupted."""
    args.work.mkdir(parents=True, exist_ok=True)
    memory = _memory(args)
    for number, name in enumerate(UNSEEN[: args.models]):
        path = args.work / f"{number:02d}-{name}.npz"
        if path.exists():
            continue
        began, concept = time.monotonic(), emoji_concept(number, args.pictures)
        model = Model.load(args.out / "model", CPU)
        _, loss = customise(model, concept, memory, args.settings, number)
        made = sample(model.pipe, list(concept.prompts), range(args.pictures))
        pixels = ((made.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
        np.savez_compressed(path, exemplars=stacked(concept.exemplars), pictures=pixels)
        shown = torch.cat([to_pixels(concept.exemplars), made])
        save_sheet(shown, path.with_suffix(".png"), columns=10, zoom=192 // SIZE)
        print(f"{path.name} loss {loss:.3f}, {time.monotonic() - began:.0f} s", flush=True)


def _memory(args: PicturesArgs) -> EncodedSet:
    """The training scenes, encoded: an index may not be there yet."""
    latents = encode(Model.load(args.out / "model", CPU).vae, to_unit(load_pixels("train")))
    return EncodedSet(latents[:, None].numpy(), [scene.caption for scene in make_scenes("train")])


def stacked(pictures: tuple[Image.Image, ...]) -> NDArray[np.uint8]:
    """Pictures of one size as pixels: (n, height, width, 3)."""
    return np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])


if __name__ == "__main__":
    main(tyro.cli(PicturesArgs))
