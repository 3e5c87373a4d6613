"""What matters in the method (Appendix C of the paper): its variants, judged by the models that random halves trained.

Most variants are other settings of unlearning, named by the flags of `python -m attribution attribute`. Others are the
default's with training losses at other timesteps, with the mean of an image and its mirror, or with the changes at
each timestep divided by their spread over all images: these are computed from the losses at LONG timesteps, which are
measured once.

python -m attribution evaluate ablations                # prints the results that come with this program
python -m attribution evaluate ablations --folder DIR   # scores what is missing; several processes share the work
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from attribution.diffusion.noise import NoiseBank
from attribution.diffusion.pipeline import Model
from attribution.errors import InputError
from attribution.evaluate import lds as halves
from attribution.evaluate.results import Made
from attribution.evaluate.scored import (
    exhaustively,
    held,
    is_held,
    job_name,
    jobs,
    losses_after,
    losses_now,
    score_all,
)
from attribution.index.index import Index
from attribution.methods.answer import AttributeSettings
from attribution.query.query import Query
from attribution.scenes.retraining import RetrainSettings
from attribution.unlearning.score import Floats, score
from attribution.unlearning.step import UnlearnSettings

DEFAULT = "unlearning+ --rise 0.5"
BY_FLAGS: dict[str, tuple[str, UnlearnSettings]] = {
    DEFAULT: ("unlearning+", UnlearnSettings(rise=0.5)),
    "unlearning+ --rise 0.1": ("unlearning+", UnlearnSettings(rise=0.1)),
    "unlearning+ --rise 2": ("unlearning+", UnlearnSettings(rise=2.0)),
    "unlearning+ --step_size 0.005": ("unlearning+", UnlearnSettings(step_size=0.005)),
    "unlearning+ --rise 0.5 --steps 10": ("unlearning+", UnlearnSettings(rise=0.5, steps=10)),
    "unlearning --rise 0.1": ("unlearning", UnlearnSettings(rise=0.1)),
    "unlearning --step_size 0.01": ("unlearning", UnlearnSettings(step_size=0.01)),
    "unlearning --rise 0.1 --weights cross-attn": ("unlearning", UnlearnSettings("cross-attn", rise=0.1)),
    "unlearning --rise 0.1 --weights attn": ("unlearning", UnlearnSettings("attn", rise=0.1)),
    "unlearning --rise 0.1 --weights all": ("unlearning", UnlearnSettings("all", rise=0.1)),
    "unlearning --step_size 0.01 --weights all": ("unlearning", UnlearnSettings("all", step_size=0.01)),
    "unlearning-sgd --rise 0.1": ("unlearning-sgd", UnlearnSettings(rise=0.1)),
    "unlearning-sgd --rise 0.1 --steps 10": ("unlearning-sgd", UnlearnSettings(rise=0.1, steps=10)),
}
LONG = 50
LONG_JOB = f"{DEFAULT} at {LONG}"  # the name of its losses among jobs
MEAN_OF_MIRRORS = f"{DEFAULT}, mean of image and mirror"
ALIKE = f"{DEFAULT}, timesteps of equal weight"
BY_LOSSES = {f"{DEFAULT}, {count} timesteps": count for count in (2, 5, 10, 20, LONG)}
VARIANTS = (*BY_FLAGS, *BY_LOSSES, MEAN_OF_MIRRORS, ALIKE)


@dataclass(frozen=True)
class AblationSettings:
    """What is compared.

    Attributes:
        queries: the first of those that `lds` asks about.
        variants: of the method; none is all.
        models: random halves.
        seeds: trainings of each half.
        training: how each model was trained.
    """

    queries: int = 16
    variants: tuple[str, ...] = ()
    models: int = 64
    seeds: int = 2
    training: RetrainSettings = field(default_factory=RetrainSettings)

    @property
    def named(self) -> tuple[str, ...]:
        """The variants that are asked for.

        Raises:
            InputError: there is no such variant.
        """
        if unknown := [variant for variant in self.variants if variant not in VARIANTS]:
            raise InputError(f"there is no variant {unknown[0]!r}; accepted are {', '.join(map(repr, VARIANTS))}")
        return self.variants or VARIANTS

    @property
    def judged(self) -> halves.LdsSettings:
        """By what they are judged."""
        return halves.LdsSettings(self.models, self.seeds, self.queries, self.named, training=self.training)


def asked_by_flags(index: Index, settings: AblationSettings) -> dict[str, AttributeSettings]:
    """How the variants that are other settings are asked for."""
    wanted = {name: BY_FLAGS[name] for name in settings.named if name in BY_FLAGS}
    return {name: replace(exhaustively(index, method), unlearn=unlearn) for name, (method, unlearn) in wanted.items()}


def compute(
    folder: Path, model: Model, index: Index, queries: Sequence[Query], settings: AblationSettings
) -> Iterator[str]:
    """Score what is missing; yields each job that this process has done.

    Args:
        folder: of the world for proofs.
        model: of that world, which ends as it was.
        index: of that world.
        queries: that are asked about.
        settings: which variants.
    """
    yield from score_all(folder, model, index, queries, asked_by_flags(index, settings))
    if set(settings.named) - set(BY_FLAGS):
        yield from _measure_long(folder, model, index, queries)


def _measure_long(folder: Path, model: Model, index: Index, queries: Sequence[Query]) -> Iterator[str]:
    """How losses change at LONG timesteps when the default unlearns each query: (N, views, LONG), a job each."""
    queue, bank, before = jobs(folder, index), long_bank(model, index), None
    names = {job_name(LONG_JOB, query): query for query in queries}
    for name in queue.claimed(list(names)):
        before = losses_now(model, index, bank) if before is None else before
        queue.touch(name)
        method, unlearn = BY_FLAGS[DEFAULT]
        after = losses_after(model, index, names[name], AttributeSettings(method, unlearn=unlearn), bank)
        queue.keep(name, {"before": before, "after": after})
        yield name


def long_bank(model: Model, index: Index) -> NoiseBank:
    """Noises like the index's at LONG timesteps."""
    noise = replace(index.manifest.settings.noise, timesteps=LONG, noises=1)
    return NoiseBank.draw(noise, model.latent_shape, model.train_timesteps)


def strided(count: int) -> list[int]:
    """The columns of LONG timesteps that are nearest to the middles of `count` equal strides."""
    return [int((place + 0.5) * LONG / count) for place in range(count)]


def by_losses(variant: str, before: Floats, after: Floats) -> Floats:
    """A variant's scores (N,) of losses (N, views, LONG) before and after unlearning."""
    if variant in (MEAN_OF_MIRRORS, ALIKE):
        changes = (after - before)[..., strided(BY_LOSSES[f"{DEFAULT}, 10 timesteps"])]
        if variant == ALIKE:
            return np.asarray((changes / changes.std((0, 1))).mean(2).max(1))
        return np.asarray(changes.mean((1, 2)))
    columns = strided(BY_LOSSES[variant])
    return score(before[..., columns], after[..., columns]).value


def known(folder: Path, index: Index, queries: Sequence[Query], settings: AblationSettings) -> dict[str, Floats]:
    """Scores (Q, N) of the variants that are done for all queries."""
    found = {}
    queue, long = jobs(folder, index), is_held(folder, index, queries, LONG_JOB)
    losses = [queue.result(job_name(LONG_JOB, query)) for query in queries] if long else []
    for name in settings.named:
        if name in BY_FLAGS and is_held(folder, index, queries, name):
            found[name] = held(folder, index, queries, name)
        elif name not in BY_FLAGS and long:
            found[name] = np.stack([by_losses(name, each["before"], each["after"]) for each in losses])
    return found


def gathered(
    folder: Path, model: Model, index: Index, queries: Sequence[Query], settings: AblationSettings
) -> halves.Evidence:
    """What is trained and scored so far.

    Args:
        folder: of the world for proofs.
        model: of that world.
        index: of that world.
        queries: all that `lds` asks about, of which the trained models' losses are measured.
        settings: which variants, and how many of the queries.

    Raises:
        InputError: fewer than two halves are trained.
    """
    asked = queries[: settings.queries]
    trained = halves.trained_evidence(folder, model, index, queries, settings.judged)
    return replace(trained, losses=trained.losses[..., : len(asked)], scores=known(folder, index, asked, settings))


def made_of(index: Index, model: Model, queries: Sequence[Query], settings: AblationSettings) -> Made:
    """What the results say of themselves."""
    plain = halves.made_of(index, model, queries, settings.judged)
    command = "python -m attribution evaluate ablations --folder DIR"
    return replace(plain, kind="ablations", settings=asdict(settings), command=command)
