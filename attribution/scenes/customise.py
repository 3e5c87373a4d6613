"""Models customised on one unseen emoji each, and the linear mappers that are trained on their pictures.

As Wang et al. 2023 ("Evaluating Data Attribution for Text-to-Image Models"): fine-tune cross-attention keys and values
and a new token on an exemplar (Kumari et al. 2023), generate pictures with the token, and learn a linear map of feature
vectors that brings each picture near its exemplar, away from training images.

    python -m attribution.scenes.customise --work DIR --stage pictures    # resumable, about a minute a model
    python -m attribution.scenes.customise --work DIR --stage mappers --out assets/emoji-scenes
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from diffusers import DDPMScheduler, StableDiffusionPipeline
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear, normalize

from attribution.diffusion.pipeline import Model
from attribution.diffusion.weights import layers
from attribution.scenes.compose import (
    BACKGROUNDS,
    CELL,
    LATTICE,
    OBJECTS,
    SIZE,
    STYLES,
    Style,
    article,
    draw_scene,
    draw_sprite,
    make_scenes,
)
from attribution.scenes.pictures import encode, load_pixels, sample, save_sheet, to_unit
from attribution.scenes.world import EMBEDDED

TOKEN = "<new>"
CPU = torch.device("cpu")  # where all of this is done: noises, words and pictures are made there
UNSEEN = (
    *("lemon", "cherries", "peach", "tomato", "eggplant", "avocado", "pretzel", "cheese_wedge", "ice_cream", "cookie"),
    *("teapot", "wine_glass", "lion", "tiger_face", "cow_face", "pig_face", "rabbit_face", "bear", "koala", "monkey"),
    *("duck", "bat", "crocodile", "whale", "dolphin", "crab", "shrimp", "lady_beetle", "spider", "ant"),
    *("taxi", "fire_engine", "ambulance", "canoe", "anchor", "house", "castle", "tent", "violin", "drum"),
    *("accordion", "telephone", "camera", "television", "candle", "envelope", "pencil", "magnet", "axe", "gem_stone"),
    *(
        "top_hat",
        "glasses",
        "t-shirt",
        "high-heeled_shoe",
        "backpack",
        "basketball",
        "trophy",
        "bullseye",
        "kite",
        "dna",
    ),
)
CROPS = 4  # exemplars of each emoji: one sprite, four places and backgrounds, mirrored or not
HELD_BACK = 10  # of the customised models, which the mappers are judged on


@dataclass(frozen=True)
class CustomiseArgs:
    """What to do.

    Attributes:
        work: where pictures are kept, one file for each customised model.
        stage: make pictures, or train mappers on them.
        out: folder of the embedded world.
        models: how many unseen emoji.
        steps: of fine-tuning.
        batch: exemplars in a step.
        remembered: training scenes in a step, so that nothing else is forgotten.
        learning_rate: of keys and values; the token's is ten times that.
        pictures: generated with each.
    """

    work: Path
    stage: Literal["pictures", "mappers"] = "pictures"
    out: Path = EMBEDDED.parent
    models: int = 60
    steps: int = 400
    batch: int = 12
    remembered: int = 4
    learning_rate: float = 1e-3
    pictures: int = 16


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


def make_pictures(args: CustomiseArgs) -> None:
    """Customise a model on each unseen emoji and keep its pictures; goes on where it was interrupted."""
    args.work.mkdir(parents=True, exist_ok=True)
    scenes, vae = make_scenes("train"), Model.load(args.out / "model", CPU).pipe.vae
    latents = encode(vae, to_unit(load_pixels("train")))
    for number, name in enumerate(UNSEEN[: args.models]):
        path = args.work / f"{number:02d}-{name}.npz"
        if path.exists():
            continue
        began = time.monotonic()
        rng = np.random.default_rng([13, number])
        style = STYLES[number % 2]
        grounds = [str(ground) for ground in rng.choice(list(BACKGROUNDS), CROPS, replace=False)]
        places = rng.integers(0, (SIZE - CELL) // LATTICE + 1, (CROPS, 2)) * LATTICE
        crops = [
            exemplar(name, style, ground, (int(x), int(y))) for ground, (x, y) in zip(grounds, places, strict=True)
        ]
        words = [prompt(style, ground) for ground in grounds]
        pipe, loss = customise(args, crops, words, latents, [scene.caption for scene in scenes], number)
        prompts = [
            prompt(style, str(rng.choice(list(BACKGROUNDS))), str(rng.choice(list(OBJECTS))) if i % 2 else None)
            for i in range(args.pictures)
        ]
        made = sample(pipe, prompts, range(args.pictures))
        pixels = ((made.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
        np.savez_compressed(path, exemplars=np.stack([np.asarray(crop) for crop in crops]), pictures=pixels)
        save_sheet(torch.cat([_to_unit(crops), made]), path.with_suffix(".png"), columns=10, zoom=192 // SIZE)
        print(f"{path.name} loss {loss:.3f}, {time.monotonic() - began:.0f} s", flush=True)


def _to_unit(pictures: list[Image.Image]) -> Tensor:
    return to_unit(torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).permute(0, 3, 1, 2))


def customise(
    args: CustomiseArgs, crops: list[Image.Image], words: list[str], latents: Tensor, captions: list[str], seed: int
) -> tuple[StableDiffusionPipeline, float]:
    """Fine-tune keys, values and a new token on the crops and their mirrors: the pipeline, and its last mean loss."""
    torch.manual_seed(seed)
    model = Model.load(args.out / "model", CPU)
    pipe, generator = model.pipe, torch.Generator().manual_seed(seed)
    pipe.tokenizer.add_tokens([TOKEN])
    text_encoder: Any = pipe.text_encoder
    text_encoder.resize_token_embeddings(len(pipe.tokenizer), mean_resizing=False)
    table = text_encoder.get_input_embeddings().weight
    with torch.no_grad():
        table[-1] = table[:-1].mean(0)
    table.requires_grad_(True)
    keys_values = [
        p.requires_grad_(True) for layer in layers(model, "cross-attn-kv").values() for p in layer.parameters()
    ]
    optimizer = torch.optim.Adam(
        [{"params": keys_values, "lr": args.learning_rate}, {"params": [table], "lr": 10 * args.learning_rate}]
    )
    scheduler: Any = DDPMScheduler.from_config(pipe.scheduler.config)
    exemplars = _to_unit(crops)
    own = encode(model.vae, torch.cat([exemplars, exemplars.flip(-1)]))
    losses = []
    for _ in range(args.steps):
        rows = torch.randint(len(latents), (args.remembered,), generator=generator)
        mine = torch.randint(len(own), (args.batch,), generator=generator)
        x = torch.cat([own[mine], latents[rows]])
        text = [words[crop % len(words)] for crop in mine] + [captions[row] for row in rows]
        ids = pipe.tokenizer(text, padding="max_length", truncation=True, return_tensors="pt").input_ids
        noise = torch.randn(x.shape, generator=generator)
        t = torch.randint(len(scheduler.alphas_cumprod), (len(x),), generator=generator)
        hidden = text_encoder(ids).last_hidden_state
        predicted = model.unet(scheduler.add_noise(x, noise, t), t, encoder_hidden_states=hidden).sample
        error = (predicted - scheduler.get_velocity(x, noise, t)).square().mean((1, 2, 3))
        optimizer.zero_grad()
        error.mean().backward()
        table.grad[:-1] = 0  # the words that it knows stay
        optimizer.step()
        losses.append(error[: args.batch].mean().item())
    return pipe, float(np.mean(losses[-50:]))


# The mappers


def train_mappers(args: CustomiseArgs) -> None:
    """Train clip-abc and dino-abc, and write what they are worth on models that they were not trained on."""
    kept = [dict(np.load(path)) for path in sorted(args.work.glob("*.npz"))]
    training = [draw_scene(scene) for scene in make_scenes("train")]
    worth = {}
    for base in ("clip", "dino"):
        vectors = _vectors(base, str(args.out / base), kept, training)
        mapper, worth[base] = fit_mapper(*vectors)
        save_file({f"mapper.{key}": value for key, value in mapper.items()}, args.out / f"{base}-abc.safetensors")
    report = {"models": len(kept), "held_back": HELD_BACK, **worth}
    (args.out / "mappers.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=1))


def _vectors(
    base: str, weights: str, kept: list[dict[str, NDArray[np.uint8]]], training: list[Image.Image]
) -> tuple[Tensor, Tensor, Tensor]:
    """Exemplars (M, E, D), pictures (M, P, D) and training scenes (N, D)."""
    from attribution.index.features import open_feature

    encoder: Callable[[list[Image.Image]], Tensor] = open_feature(base, weights)

    def encoded(key: str) -> Tensor:
        return torch.stack([encoder([Image.fromarray(picture) for picture in each[key]]) for each in kept])

    parts = [encoder(training[start : start + 256]) for start in range(0, len(training), 256)]
    return encoded("exemplars"), encoded("pictures"), torch.cat(parts)


def fit_mapper(
    exemplars: Tensor, pictures: Tensor, training: Tensor, steps: int = 400, temperature: float = 0.07
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """A linear map by the contrastive loss: a picture, its exemplar, and other exemplars and training scenes.

    Args:
        exemplars: (M, E, D).
        pictures: (M, P, D).
        training: (N, D), never right.
        steps: of Adam.
        temperature: of the softmax.

    Returns:
        Weight (D, D) and bias (D,), and the exemplar's recall among the training scenes before and after, on the models
        held back.
    """
    generator, width = torch.Generator().manual_seed(0), training.shape[1]
    mapper = nn.Linear(width, width)
    with torch.no_grad():
        mapper.weight.copy_(torch.eye(width))
        mapper.bias.zero_()
    optimizer = torch.optim.AdamW(mapper.parameters(), lr=1e-3, weight_decay=0.0)
    models = len(exemplars) - HELD_BACK
    for _ in range(steps):
        which = torch.arange(models)
        right = exemplars[which, torch.randint(exemplars.shape[1], (models,), generator=generator)]
        made = pictures[which, torch.randint(pictures.shape[1], (models,), generator=generator)]
        wrong = training[torch.randint(len(training), (512,), generator=generator)]
        candidates = normalize(mapper(torch.cat([right, wrong])), dim=1)
        loss = cross_entropy(normalize(mapper(made), dim=1) @ candidates.T / temperature, which)
        loss = loss + 0.01 * (mapper.weight - torch.eye(width)).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    state = {"weight": mapper.weight.detach(), "bias": mapper.bias.detach()}
    plain = {"weight": torch.eye(width), "bias": torch.zeros(width)}
    kept = (exemplars[-HELD_BACK:], pictures[-HELD_BACK:], training)
    worth = {f"recall@10 {when}": recall(*kept, how) for when, how in (("before", plain), ("after", state))}
    return state, worth


def recall(exemplars: Tensor, pictures: Tensor, training: Tensor, mapper: dict[str, Tensor], k: int = 10) -> float:
    """Share of pictures that one of their model's exemplars is among the k nearest of, all training scenes beside."""

    def mapped(x: Tensor) -> Tensor:
        return normalize(linear(x, mapper["weight"], mapper["bias"]), dim=-1)

    others = mapped(pictures) @ mapped(training).T  # (M, P, N)
    own = torch.einsum("mpd,med->mpe", mapped(pictures), mapped(exemplars)).amax(2)
    return float(((others > own[..., None]).sum(2) < k).double().mean())


def main(args: CustomiseArgs) -> None:
    """Run one stage."""
    (make_pictures if args.stage == "pictures" else train_mappers)(args)


if __name__ == "__main__":
    main(tyro.cli(CustomiseArgs))
