"""A fine-tune, from its data to an answer: does attribution find the images that taught the model something new?

A LoRA is trained as diffusers' `train_text_to_image_lora.py` trains one, on scenes of objects that the embedded model
never saw. They are indexed together with scenes that it did see, and pictures of the new objects are asked about.

    pip install peft
    python -m attribution.scenes.finetune --out DIR      # resumable: what DIR holds is not made again

DIR/new        the scenes of new objects, an imagefolder
DIR/lora       pytorch_lora_weights.safetensors, of diffusers
DIR/scenes     the new scenes and old ones, an imagefolder
DIR/index      of these and the fine-tuned model
DIR/found.json what each method found
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import tyro
from diffusers import StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers

from attribution.diffusion.overlaid import open_model
from attribution.diffusion.pictures import to_pixels
from attribution.diffusion.pipeline import Model
from attribution.diffusion.source import ModelFiles
from attribution.errors import InputError
from attribution.files import write_whole
from attribution.index.build import build
from attribution.index.data import DataSettings
from attribution.index.index import Index, open_index
from attribution.index.work import BuildSettings, ExtendSettings
from attribution.methods import attribute
from attribution.methods.answer import TOP_K, AttributeSettings, Attribution
from attribution.query.query import Query
from attribution.scenes.compose import BACKGROUNDS, STYLES, WORLD, Scene, Style, caption, make_scenes, write_scenes
from attribution.scenes.pictures import save_sheet
from attribution.scenes.proof import lessons_of
from attribution.scenes.retraining import Lessons, lesson_loss
from attribution.scenes.truth import locate
from attribution.scenes.world import EMBEDDED
from attribution.unlearning.fisher import FisherSettings

NEW = replace(WORLD, kinds=10, new=True)
ADAPTED = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out")
LORA = "pytorch_lora_weights.safetensors"
EVERY = 50  # steps, between two lines


@dataclass(frozen=True)
class FinetuneSettings:
    """How the model is fine-tuned, and what is asked.

    Attributes:
        scenes: of the ten new objects, that the LoRA is trained on.
        rank: of the LoRA.
        steps: of AdamW.
        batch: scenes in a step.
        learning_rate: constant.
        old: scenes of the embedded training set that are indexed beside the new ones.
        fisher_samples: of the index's Fisher information.
        pictures: asked about, one new object each.
        tries: pictures that are drawn at most, until so many show their object.
        methods: that are asked.
    """

    scenes: int = 200
    rank: int = 16
    steps: int = 1500
    batch: int = 16
    learning_rate: float = 1e-3
    old: int = 1024
    fisher_samples: int = 4096
    pictures: int = 20
    tries: int = 60
    methods: tuple[str, ...] = ("unlearning", "unlearning+", "d-trak", "clip", "dino", "random")


@dataclass(frozen=True)
class FinetuneArgs:
    """Fine-tune the embedded model, index what it was trained on, and ask.

    Attributes:
        out: a folder.
        settings: how.
    """

    out: Path
    settings: FinetuneSettings = field(default_factory=FinetuneSettings)


def main(args: FinetuneArgs) -> None:
    """Make what the folder lacks, and print the table."""
    if find_spec("peft") is None:
        raise SystemExit("training a LoRA needs the package peft; install it with `pip install peft`")
    new, lora = make_scenes("train", args.settings.scenes, world=NEW), args.out / "lora"
    if not (args.out / "new").exists():
        write_scenes(args.out / "new", new)
    if not (lora / LORA).exists():
        train_lora(lora, args.settings, lambda step, loss: print(f"step {step} loss {loss:.3f}", flush=True))
    files = ModelFiles(str(EMBEDDED.parent / "model"), lora_weights=str(lora))
    old = make_scenes("train", len(new) + args.settings.old)[len(new) :]  # the first ones have the new ones' places
    together = [*new, *old]
    if not (args.out / "scenes").exists():
        write_scenes(args.out / "scenes", together)
    for step in indexed(args.out, open_model(files), args.settings.fisher_samples):
        print(step, flush=True)
    found = asked(*open_index(args.out / "index"), together, args)
    kept = json.dumps({"settings": asdict(args.settings), "found": found}, indent=1) + "\n"
    write_whole(args.out / "found.json", kept.encode())
    print(table(found))


def train_lora(out: Path, settings: FinetuneSettings, told: Callable[[int, float], None]) -> None:
    """Train a LoRA of the embedded U-Net on the new scenes, and keep it as diffusers does."""
    from peft import LoraConfig, get_peft_model_state_dict  # of the tests' requirements, not of the page's

    model, generator = Model.load(EMBEDDED.parent / "model"), torch.Generator().manual_seed(0)
    lessons: Lessons = lessons_of(model, settings.scenes, NEW)
    torch.manual_seed(0)
    unet = model.unet.requires_grad_(False)
    unet.add_adapter(LoraConfig(r=settings.rank, lora_alpha=settings.rank, target_modules=list(ADAPTED)))
    optimizer = torch.optim.AdamW([each for each in unet.parameters() if each.requires_grad], settings.learning_rate)
    for step in range(settings.steps):
        rows = torch.randint(len(lessons.text), (settings.batch,), generator=generator)
        loss = lesson_loss(unet, lessons, rows, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % EVERY == 0:
            told(step + 1, loss.item())
    StableDiffusionPipeline.save_lora_weights(out, convert_state_dict_to_diffusers(get_peft_model_state_dict(unet)))


def indexed(out: Path, model: Model, fisher_samples: int) -> Iterator[str]:
    """Build the index of all scenes; yields a line now and then."""
    networks = EMBEDDED.parent
    settings = BuildSettings(DataSettings(train_data_dir=out / "scenes"), fisher=FisherSettings(samples=fisher_samples))
    added = ExtendSettings(
        ekfac=True,
        features=("clip", "dino"),
        feature_weights={name: str(networks / name) for name in ("clip", "dino")},
        gradients=("d-trak",),
    )
    last = ""
    for step in build(out / "index", model, settings, added):
        if step.step != last:
            yield f"index: {step.step}"
        last = step.step


def new_pictures(model: Model, settings: FinetuneSettings) -> Iterator[tuple[str, Query]]:
    """Pictures that show one new object each, and its name."""
    rng, made = np.random.default_rng(20), 0
    for seed in range(settings.tries):
        name = NEW.names[seed % len(NEW.names)]
        style: Style = STYLES[int(rng.integers(len(STYLES)))]
        prompt = caption((name,), style, str(rng.choice(list(BACKGROUNDS))))
        picture = model.generate(prompt, seed)
        if locate(picture, name, style) and made < settings.pictures:
            made += 1
            yield name, Query(prompt, picture, seed)


def asked(model: Model, index: Index, together: Sequence[Scene], args: FinetuneArgs) -> dict[str, dict[str, float]]:
    """For each method: the mean share of the first ten that hold the picture's new object, and that are new scenes."""
    holds = [{placed.name for placed in scene.objects} for scene in together]
    queries = list(new_pictures(model, args.settings))
    if not queries:
        raise InputError(
            f"none of {args.settings.tries} pictures shows its new object; train for more --settings.steps"
        )
    save_sheet(to_pixels([query.image for _, query in queries]), args.out / "pictures.png", columns=10, zoom=1)
    found = {}
    for method in args.settings.methods:
        shares = []
        for name, query in queries:
            *_, last = attribute(model, index, query, AttributeSettings(method))
            assert isinstance(last, Attribution)
            shares.append([(name in holds[row], row < args.settings.scenes) for row in last.rows[:TOP_K]])
        its, new = np.mean(shares, (0, 1)).tolist()
        found[method] = {"pictures": len(queries), "its object": its, "a new scene": new}
        print(method, found[method], flush=True)
    return found


def table(found: dict[str, dict[str, float]]) -> str:
    """Markdown: a line a method."""
    lines = ["| method | of the first ten: hold the new object | are new scenes |", "|---|---|---|"]
    lines += [f"| {method} | {each['its object']:.2f} | {each['a new scene']:.2f} |" for method, each in found.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main(tyro.cli(FinetuneArgs))
