"""A fine-tune, from its data to an answer: does attribution find the images that taught the model something new?

A LoRA is trained as diffusers' `train_text_to_image_lora.py` trains one, on scenes of objects that the embedded model
never saw. They are indexed together with scenes that it did see, and pictures of the new objects are asked about.

    pip install peft
    python -m attribution.scenes.finetune --out DIR      # resumable: what DIR holds is not made again

DIR/lora       pytorch_lora_weights.safetensors, of diffusers
DIR/scenes     the new scenes and old ones, an imagefolder
DIR/index      of these and the fine-tuned model
DIR/found.json what each method found
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import tyro
from diffusers import StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from torch import nn

from attribution.diffusion.noise import NoiseSettings
from attribution.diffusion.overlaid import open_model
from attribution.diffusion.pictures import to_pixels
from attribution.diffusion.pipeline import Model
from attribution.diffusion.source import ModelFiles
from attribution.errors import InputError
from attribution.files import write_whole
from attribution.index.data import DataSettings
from attribution.index.index import Index, open_index
from attribution.index.work import BuildSettings, ExtendSettings
from attribution.methods import METHODS, attribute
from attribution.methods.answer import TOP_K, AttributeSettings, Attribution
from attribution.query.query import Query
from attribution.scenes.compose import BACKGROUNDS, STYLES, WORLD, Scene, Style, caption, make_scenes, write_scenes
from attribution.scenes.networks import tokenize
from attribution.scenes.pictures import save_sheet
from attribution.scenes.proof import index_scenes, lessons_of
from attribution.scenes.retraining import Lessons, RetrainSettings, lesson_loss
from attribution.scenes.truth import locate
from attribution.scenes.world import EMBEDDED
from attribution.unlearning.fisher import FisherSettings
from attribution.unlearning.step import UnlearnSettings

# Of the objects that no scene of the embedded model has: its autoencoder, which stays as it is, can draw these, in both
# styles on every background, and its text encoder tells their names apart.
NEW = replace(
    WORLD,
    only=(
        *("lemon", "avocado", "wine glass", "ant", "violin"),
        *("television", "magnet", "top hat", "high-heeled shoe", "basketball"),
    ),
)
ADAPTED = {
    "unet": (
        *("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out"),
        *("conv1", "conv2"),
    ),
    "text_encoder": ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"),
}
LORA = "pytorch_lora_weights.safetensors"
NOISE = NoiseSettings(start=0.5, end=0.9)  # as the embedded index measures losses
EVERY = 50  # steps, between two lines


@dataclass(frozen=True)
class FinetuneSettings:
    """How the model is fine-tuned, and what is asked.

    Attributes:
        scenes: of the ten new objects, that the LoRA is trained on.
        rank: of the LoRA.
        steps: of AdamW.
        batch: scenes in a step.
        rate: of learning, at its peak; it rises and falls as that of `RetrainSettings` does.
        old: scenes of the embedded training set that are indexed beside the new ones.
        fisher_samples: of the index's Fisher information.
        pictures: asked about, one new object each.
        tries: pictures that are drawn at most, until so many show their object.
        rise: of a picture's loss, when it is unlearned; see `UnlearnSettings`.
        methods: that are asked.
    """

    scenes: int = 200
    rank: int = 32
    steps: int = 1800
    batch: int = 16
    rate: float = 2e-3
    old: int = 1024
    fisher_samples: int = 4096
    pictures: int = 20
    tries: int = 60
    rise: float = 0.5
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
    """Train a LoRA of the embedded U-Net and text encoder on the new scenes, and keep it as diffusers does."""
    model, generator = Model.load(EMBEDDED.parent / "model"), torch.Generator().manual_seed(0)
    latents = lessons_of(model, settings.scenes, NEW).latents
    captions = [scene.caption for scene in make_scenes("train", settings.scenes, world=NEW)]
    tokens = tokenize(model.pipe.tokenizer, [*captions, ""])
    networks = adapted(model, settings.rank)
    weights = [each for network in networks.values() for each in network.parameters() if each.requires_grad]
    optimizer, recipe = torch.optim.AdamW(weights), RetrainSettings(steps=settings.steps, learning_rate=settings.rate)
    for step in range(settings.steps):
        optimizer.param_groups[0]["lr"] = recipe.rate(step)
        rows = torch.randint(len(captions), (settings.batch,), generator=generator)
        text = model.text_encoder(tokens[[*rows.tolist(), -1]]).last_hidden_state
        lessons = Lessons(latents[rows], text[:-1], text[-1])
        loss = lesson_loss(model.unet, lessons, torch.arange(settings.batch), generator)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        if (step + 1) % EVERY == 0:
            told(step + 1, loss.item())
    save_lora(out, networks)


def adapted(model: Model, rank: int) -> dict[str, nn.Module]:
    """The networks that are trained, by their names, with the layers of a LoRA, which alone require gradients."""
    from peft import LoraConfig, inject_adapter_in_model  # of the tests' requirements, not of the page's

    torch.manual_seed(0)
    networks: dict[str, nn.Module] = {"unet": model.unet, "text_encoder": model.text_encoder}
    for name, network in networks.items():
        lora = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(ADAPTED[name]))
        inject_adapter_in_model(lora, network.requires_grad_(False))
    return networks


def save_lora(out: Path, networks: Mapping[str, nn.Module]) -> None:
    """Keep the layers of a LoRA as diffusers does."""
    from peft import get_peft_model_state_dict

    layers = {
        f"{name}_lora_layers": convert_state_dict_to_diffusers(get_peft_model_state_dict(network))
        for name, network in networks.items()
    }
    StableDiffusionPipeline.save_lora_weights(out, **layers)


def indexed(out: Path, model: Model, fisher_samples: int) -> Iterator[str]:
    """Build the index of all scenes; yields a line for each step."""
    networks = EMBEDDED.parent
    settings = BuildSettings(DataSettings(), NOISE, FisherSettings(samples=fisher_samples))
    added = ExtendSettings(
        ekfac=True,
        features=("clip", "dino"),
        feature_weights={name: str(networks / name) for name in ("clip", "dino")},
        gradients=("d-trak",),
    )
    return index_scenes(out, model, settings, added)


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


def asking(method: str, rise: float) -> AttributeSettings:
    """How a method is asked: those that unlearn are to raise the picture's loss by that share.

    They score by relative changes: the fine-tuned model has forgotten the old scenes, whose losses are many times those
    of the new ones, and so are the changes by which any step of the weights disturbs them.
    """
    if "rise" not in METHODS[method].uses:
        return AttributeSettings(method)
    return AttributeSettings(method, score="skew", unlearn=UnlearnSettings(rise=rise))


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
            *_, last = attribute(model, index, query, asking(method, args.settings.rise))
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
