"""The settings of the paper's experiments by name (Wang et al. 2024, section 4 and appendix B): one table.

mscoco        the small model that was trained on MSCOCO from nothing: one Newton step
customised    Stable Diffusion 1.4 with an exemplar each (Custom Diffusion), trained on 400 M images: 100 steps

Where the package asks for more than the paper says, it is this: the gradient's samples are taken as 1000 timesteps of
50 noises, and 160 of one; the Fisher information's timesteps are all 1000; every training image is scored. The paper
averages the losses of MSCOCO's five captions, an index reads the first.
"""

from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Literal, TypeVar

from attribution.diffusion.noise import NoiseSettings
from attribution.index.work import BuildSettings
from attribution.methods.answer import AttributeSettings
from attribution.unlearning.fisher import FisherSettings
from attribution.unlearning.step import UnlearnSettings

Preset = Literal["mscoco", "customised"]
T = TypeVar("T")


@dataclass(frozen=True)
class Experiment:
    """How an index is built for an experiment, and how a query is answered."""

    build: BuildSettings
    answer: AttributeSettings


PRESETS: dict[Preset, Experiment] = {
    "mscoco": Experiment(
        BuildSettings(noise=NoiseSettings(timesteps=20), fisher=FisherSettings(samples=591_435, timesteps=1000)),
        AttributeSettings(
            exhaustive=True,
            unlearn=UnlearnSettings(step_size=0.01, steps=1, timesteps=1000, noises=50, images=118_287),
        ),
    ),
    "customised": Experiment(
        BuildSettings(noise=NoiseSettings(timesteps=10), fisher=FisherSettings(samples=1_000_000, timesteps=1000)),
        AttributeSettings(
            exhaustive=True,
            unlearn=UnlearnSettings(step_size=0.1, steps=100, timesteps=160, noises=1, images=400_000_000),
        ),
    ),
}


def filled(given: T, preset: T) -> T:
    """Settings in which all that was left at its default is a preset's."""
    plain: Any = type(given)()
    held = {each.name: getattr(given, each.name) for each in fields(given)}  # type: ignore[arg-type]
    told = {name: getattr(preset, name) for name in held}
    return replace(
        given,  # type: ignore[type-var]
        **{
            name: filled(value, told[name])
            if is_dataclass(value)
            else told[name]
            if value == getattr(plain, name)
            else value
            for name, value in held.items()
        },
    )
