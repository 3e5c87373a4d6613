"""The world for proofs, in which a model is trained from nothing in minutes, again and again, without some images.

As the paper does with Stable Diffusion (Section 5.1), the autoencoder and the text encoder stay as they are, here the
embedded model's: pictures and captions are encoded once, and the U-Net alone is trained. The scenes hold a quarter of
the objects, on a grid of whole cells. In 1,000 steps, three and a half minutes of one core, the judge finds 87 % of the
objects that 80 prompts name (with half of the objects 72 %, and 84 to 89 % after 2,000 steps).

    python -m attribution.scenes.proof --out DIR    # DIR/scenes, DIR/model, trained on all of them, and DIR/index
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import tyro
from diffusers import UNet2DConditionModel

from attribution.diffusion.overlaid import open_model
from attribution.diffusion.pipeline import Model
from attribution.diffusion.source import ModelFiles
from attribution.index.build import build
from attribution.index.data import DataSettings
from attribution.index.work import BuildSettings, ExtendSettings
from attribution.scenes.autoencoder import both_views
from attribution.scenes.compose import WORLD, WorldSettings, make_scenes, write_imagefolder
from attribution.scenes.networks import make_pipeline
from attribution.scenes.pictures import load_pixels, to_unit
from attribution.scenes.retraining import Lessons, RetrainSettings, retrain, unet_of
from attribution.scenes.world import EMBEDDED
from attribution.unlearning.projection import GradientSettings

PROOF = replace(WORLD, step=WORLD.cell, kinds=12)
ADDED = ExtendSettings(  # what every method reads
    ekfac=True,
    features=("clip", "clip-text", "dino"),
    feature_weights={
        name: str(EMBEDDED.parent / of) for name, of in (("clip", "clip"), ("clip-text", "clip"), ("dino", "dino"))
    },
    gradients=("loss", "d-trak", "influence", "influence+"),
    projection=GradientSettings(dimension=512),
)


def lessons_of(model: Model, count: int, world: WorldSettings = PROOF) -> Lessons:
    """The first training scenes of a world, that for proofs by default, encoded by the embedded model."""
    scenes = make_scenes("train", count, world=world)
    latents = both_views(model.vae, to_unit(load_pixels("train", world, count)))
    captions = [scene.caption for scene in scenes]
    text = torch.cat([model.encode_text(captions[i : i + 64]) for i in range(0, len(captions), 64)])
    return Lessons(latents.cpu(), text.cpu(), model.encode_text([""])[0].cpu())


def with_unet(model: Model, unet: UNet2DConditionModel, source: str) -> Model:
    """A model that draws with another U-Net."""
    return Model(make_pipeline(model.vae, model.text_encoder, model.pipe.tokenizer, unet), source)


@dataclass(frozen=True)
class ProofArgs:
    """Make the world for proofs: its pictures, and the model of all of them.

    Attributes:
        out: a folder; what it holds already is kept.
        seed: of the training.
        added: index what every method reads, not only what "unlearning" and "random" do.
        settings: the recipe.
    """

    out: Path
    seed: int = 0
    added: bool = True
    settings: RetrainSettings = field(default_factory=RetrainSettings)


def main(args: ProofArgs) -> None:
    """Write DIR/scenes, DIR/model and DIR/index."""
    if not (args.out / "scenes").exists():
        write_imagefolder(args.out / "scenes", count=args.settings.scenes, world=PROOF)
    if not (args.out / "model").exists():
        train(args)
    model = open_model(ModelFiles(str(args.out / "model")))
    for line in index_scenes(args.out, model, BuildSettings(DataSettings()), ADDED if args.added else ExtendSettings()):
        print(line, flush=True)


def train(args: ProofArgs) -> None:
    """Train the model of all scenes, and write it when it is whole."""
    embedded = Model.load(EMBEDDED.parent / "model")
    lessons = lessons_of(embedded, args.settings.scenes)

    def told(step: int) -> None:
        if step % 100 == 0:
            print(f"step {step} of {args.settings.steps}", flush=True)

    weights = retrain(lessons, range(len(lessons.text)), args.seed, args.settings, told)
    half = with_unet(embedded, unet_of(weights, args.settings), "").pipe.to(torch.float16)
    half.save_pretrained(args.out / "model.partial")
    (args.out / "model.partial").rename(args.out / "model")


def index_scenes(out: Path, model: Model, settings: BuildSettings, added: ExtendSettings) -> Iterator[str]:
    """Build OUT/index of the pictures in OUT/scenes, or the rest of it; yields a line for each step.

    Args:
        out: the folder of both.
        model: that the pictures are of.
        settings: of the build; where the pictures lie is filled in.
        added: to what every index holds.
    """
    placed, last = replace(settings, data=replace(settings.data, train_data_dir=out / "scenes")), ""
    for step in build(out / "index", model, placed, added):
        if step.step != last:
            yield f"index: {step.step}"
        last = step.step


if __name__ == "__main__":
    main(tyro.cli(ProofArgs))
