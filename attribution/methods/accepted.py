"""Which values the settings of an answer may have."""

import math
from dataclasses import replace
from typing import get_args

from attribution.diffusion.pipeline import check_seed
from attribution.diffusion.weights import WEIGHT_PATTERNS
from attribution.errors import InputError
from attribution.index.index import Index
from attribution.methods.answer import TOP_K, AttributeSettings
from attribution.methods.candidates import SOURCES, sources
from attribution.unlearning.best import least
from attribution.unlearning.race import RaceSettings
from attribution.unlearning.score import ScoreKind

POOL = 256  # candidates for the first TOP_K
SPARE = 750  # losses for the first TOP_K that are measured where they decide
HALVING = ("keep", "first_columns", "growth", "survivors")  # settings of a race that has no pool
MAX_STEPS = 1000  # of unlearning


def check_values(settings: AttributeSettings, images: int, timesteps: int) -> None:
    """Refuse values that no method could work with.

    Args:
        settings: of an answer.
        images: in the training set.
        timesteps: of the model's schedule.

    Raises:
        InputError: names the first one, and what is accepted.
    """
    unlearn, race = settings.unlearn, settings.race
    for possible, given, accepted in (
        (1 <= settings.k <= images, f"top_k = {settings.k} is", f"1 to {images}, the training images"),
        (1 <= unlearn.steps <= MAX_STEPS, f"{unlearn.steps} steps are", f"1 to {MAX_STEPS}"),
        (0 < unlearn.alpha < math.inf, f"a step size of {unlearn.alpha:g} is", "numbers above 0"),
        (unlearn.rise is None or 0 < unlearn.rise < math.inf, f"a rise of {unlearn.rise} is", "shares above 0"),
        (unlearn.images is None or unlearn.images >= 1, f"images = {unlearn.images} is", "whole numbers from 1"),
        (0 <= unlearn.damping < math.inf, f"a damping of {unlearn.damping:g} is", "numbers from 0"),
        (1 <= unlearn.timesteps <= timesteps, f"unlearn_timesteps = {unlearn.timesteps} is", f"1 to {timesteps}"),
        (unlearn.noises >= 1, f"unlearn_noises = {unlearn.noises} is", "whole numbers from 1"),
        (settings.score in get_args(ScoreKind), f"the score {settings.score!r} is", ", ".join(get_args(ScoreKind))),
        (unlearn.weights in (None, *WEIGHT_PATTERNS), f"weights {unlearn.weights!r} are", ", ".join(WEIGHT_PATTERNS)),
        (settings.batch >= 1, f"batch = {settings.batch} is", "whole numbers from 1"),
        (unlearn.batch >= 1, f"unlearn_batch = {unlearn.batch} is", "whole numbers from 1"),
        (not race.pool or settings.k <= race.pool <= images, f"race_pool = {race.pool} is", _pools(settings.k, images)),
        (0 < race.confidence < 1, f"race_confidence = {race.confidence:g} is", "numbers between 0 and 1"),
        (0 < race.keep <= 1, f"race_keep = {race.keep:g} is", "shares above 0, up to 1"),
        (race.first_columns >= 1, f"race_first_columns = {race.first_columns} is", "whole numbers from 1"),
        (0 < race.growth < math.inf, f"race_growth = {race.growth:g} is", "numbers above 0"),
        (race.survivors >= 1, f"race_survivors = {race.survivors} is", "whole numbers from 1"),
    ):
        if not possible:
            raise InputError(f"{given} not possible; accepted are {accepted}")
    check_seed(settings.seed)
    check_seed(unlearn.seed)
    if settings.noise_seed is not None:
        check_seed(settings.noise_seed)


def _pools(top_k: int, images: int) -> str:
    return f"{top_k}, as many as are looked for, to {images}, the training images; and 0, which is halving"


def with_search(settings: AttributeSettings, index: Index) -> AttributeSettings:
    """Settings with the pool and budget that their search will have, or with the survivors that halving will have.

    Raises:
        InputError: the budget is too small, the index lacks what gives candidates, or settings of halving are named
            beside those of a pool.
    """
    race, plain = settings.race, RaceSettings()
    changed = [f"race_{name}" for name, value in vars(race).items() if value != getattr(plain, name)]
    halving = [name for name in changed if name.removeprefix("race_") in HALVING]
    has_sources = bool(sources(index, settings.unlearn.weights))
    pool = race.pool
    if pool is None:
        wanted = min(len(index), max(POOL, POOL * settings.k // TOP_K))
        pool = 0 if halving or not has_sources else wanted
    if pool and halving:
        raise InputError(
            f"--{halving[0]} is of halving, which a race among {pool} candidates is not; add --race_pool 0"
        )
    if not pool:
        if beside := [name for name in changed if name in ("race_budget", "race_confidence")]:
            raise InputError(f"halving does not use --{beside[0]}; it is for a race among candidates, --race_pool")
        return replace(settings, race=replace(race, pool=0, survivors=max(race.survivors, 2 * settings.k)))
    if not has_sources:
        index.require(next(iter(SOURCES.values())))
    smallest = least(pool, settings.k, len(index.views) * index.base_losses.shape[-1])
    budget = smallest + SPARE * max(settings.k, TOP_K) // TOP_K if race.budget is None else race.budget
    if budget < smallest:
        raise InputError(
            f"race_budget = {budget} is not possible; accepted are numbers from {smallest}: a look at each of {pool}"
            f" candidates, and all noises for the first {settings.k}"
        )
    return replace(settings, race=replace(race, pool=pool, budget=budget))
