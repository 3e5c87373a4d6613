"""A world of few training images: the embedded model over the first of its scenes, asked in seconds."""

from dataclasses import replace
from pathlib import Path

from attribution.answers.kept import RunFolder
from attribution.answers.run import Run
from attribution.diffusion.noise import NoiseSettings
from attribution.diffusion.pipeline import Model
from attribution.index.build import build
from attribution.index.data import DataSettings
from attribution.index.index import Index
from attribution.index.work import BuildSettings, ExtendSettings
from attribution.methods import attribute, fitting
from attribution.methods.answer import AttributeSettings, Attribution
from attribution.query.query import Query
from attribution.scenes.world import EMBEDDED, SCENES, composed
from attribution.unlearning.fisher import FisherSettings
from attribution.unlearning.projection import GradientSettings
from attribution.unlearning.step import UnlearnSettings

COUNT = 40  # scenes
PROMPT = "a flat drawing of a red apple and a motorcycle on a blue background"


def build_few(folder: Path) -> Path:
    """Make the index, with what the page compares with, in a folder where the detector and an example lie beside it."""
    world, out = EMBEDDED.parent, folder / "index"
    model = Model.load(world / "model")
    training = DataSettings(train_data_dir=composed(COUNT) / SCENES)
    settings = BuildSettings(training, NoiseSettings(2, 1, 0, 0.5, 0.9), FisherSettings(samples=64))
    networks = {name: str(world / name) for name in ("clip", "dino")}
    added = ExtendSettings(
        features=tuple(networks),
        feature_weights=networks,
        gradients=("d-trak",),
        projection=GradientSettings(dimension=64),
    )
    for _ in build(out, model, settings, added):
        pass
    (folder / "detector").symlink_to(world / "detector")
    index = Index.open(out)
    RunFolder(folder / "examples").keep(example(model, index), index, model)
    return out


def example(model: Model, index: Index) -> Run:
    """A question about the whole picture that the page begins with, answered by two methods after few gradients."""
    main = AttributeSettings(unlearn=UnlearnSettings(timesteps=4, noises=1))
    query = Query(PROMPT, model.generate(PROMPT, 7), 7)
    answers: list[Attribution] = []
    for settings in (main, fitting(replace(main, unlearn=UnlearnSettings()), "pixel")):
        *_, answer = attribute(model, index, query, settings)
        assert isinstance(answer, Attribution)
        answers.append(answer)
    return Run(tuple(answers))
