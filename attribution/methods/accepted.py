"""Which values the settings of an answer may have."""

import math
from dataclasses import replace
from typing import get_args

from attribution.diffusion.pipeline import check_seed
from attribution.diffusion.weights import WEIGHT_PATTERNS
from attribution.errors import InputError
from attribution.index.index import Index
from attribution.methods.answer import AttributeSettings
from attribution.methods.candidates import require_source, sources
from attribution.methods.rehearsed import rehearsed
from attribution.unlearning.race import RaceSettings, fewest
from attribution.unlearning.score import ScoreKind

POOL = 512  # candidates, at least
POOL_EACH = 8  # for each image that is looked for, where that is more
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
    keep, growth, survivors = race.keep, race.growth, race.survivors
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
        (keep is None or 0 < keep <= 1, f"race_keep = {keep or 0:g} is", "shares above 0, up to 1"),
        (race.first_columns >= 1, f"race_first_columns = {race.first_columns} is", "whole numbers from 1"),
        (growth is None or 0 < growth < math.inf, f"race_growth = {growth or 0:g} is", "numbers above 0"),
        (survivors is None or survivors >= 1, f"race_survivors = {survivors} is", "whole numbers from 1"),
    ):
        if not possible:
            raise InputError(f"{given} not possible; accepted are {accepted}")
    check_seed(settings.seed)
    check_seed(unlearn.seed)
    if settings.noise_seed is not None:
        check_seed(settings.noise_seed)


def _pools(top_k: int, images: int) -> str:
    return f"{top_k}, as many as are looked for, to {images}, the training images; and 0, which is all of them"


def with_search(settings: AttributeSettings, index: Index) -> AttributeSettings:
    """Settings with the pool and the schedule that their race will have, and with as many survivors as K needs.

    What is not named is what was measured to suit the index, where that was rehearsed.

    Raises:
        InputError: a pool is named, and the index lacks what gives candidates; or columns are not the noise bank's.
        IndexMismatch: what was measured is damaged, or of another model.
    """
    race = settings.race
    if race.pool:
        require_source(index)
    everyone = race.pool == 0 or not sources(index)
    held = None if everyone and race.columns else rehearsed(index, settings.method)  # nothing is open then
    suits = held.race if held else RaceSettings(POOL)
    race = replace(race, pool=0) if everyone else _suiting(race, suits, len(index), settings.k)
    race = replace(race, columns=race.columns or suits.columns)
    _check_columns(race.columns, index.base_losses.shape[-1])
    keep, growth, survivors = race.pace
    return replace(settings, race=replace(race, keep=keep, growth=growth, survivors=max(survivors, fewest(settings.k))))


def _suiting(race: RaceSettings, suits: RaceSettings, images: int, top_k: int) -> RaceSettings:
    """A race among candidates, with what it leaves open as it was found to suit the index."""
    wanted = min(images, max(suits.pool or POOL, POOL_EACH * top_k))
    return RaceSettings(
        wanted if race.pool is None else race.pool,
        race.keep or suits.keep,
        race.first_columns,
        race.growth or suits.growth,
        race.survivors or suits.survivors,
        race.columns,
    )


def _check_columns(columns: tuple[int, ...], count: int) -> None:
    if columns and sorted(columns) != list(range(count)):
        told = " ".join(map(str, columns))
        raise InputError(
            f"race_columns = {told} is not possible; accepted are 0 to {count - 1}, each once, in any order"
        )
