"""Which numbers the settings of an answer may have."""

import math

from attribution.errors import InputError
from attribution.methods.answer import AttributeSettings

MAX_STEPS = 1000  # of unlearning


def check_numbers(settings: AttributeSettings, images: int, timesteps: int) -> None:
    """Refuse numbers that no method could use.

    Args:
        settings: of an answer.
        images: in the training set.
        timesteps: of the model's schedule.

    Raises:
        InputError: names the first one, and what is accepted.
    """
    unlearn, race = settings.unlearn, settings.race
    if not 1 <= settings.k <= images:
        raise InputError(f"top_k = {settings.k} is not possible; accepted are 1 to {images}, the training images")
    if not 1 <= unlearn.steps <= MAX_STEPS:
        raise InputError(f"{unlearn.steps} steps are not possible; accepted are 1 to {MAX_STEPS}")
    if not 0 < unlearn.alpha < math.inf:
        raise InputError(f"a step size of {unlearn.alpha:g} is not possible; accepted are numbers above 0")
    if not 0 <= unlearn.damping < math.inf:
        raise InputError(f"a damping of {unlearn.damping:g} is not possible; accepted are numbers from 0")
    if not 1 <= unlearn.timesteps <= timesteps:
        raise InputError(f"unlearn_timesteps = {unlearn.timesteps} is not possible; accepted are 1 to {timesteps}")
    if not 0 < race.keep < 1:
        raise InputError(f"race_keep = {race.keep:g} is not possible; accepted are numbers between 0 and 1")
    if not 1 < race.growth < math.inf:
        raise InputError(f"race_growth = {race.growth:g} is not possible; accepted are numbers above 1")
    for name, whole in (
        ("batch", settings.batch),
        ("unlearn_noises", unlearn.noises),
        ("unlearn_batch", unlearn.batch),
        ("race_first_columns", race.first_columns),
        ("race_survivors", race.survivors),
    ):
        if whole < 1:
            raise InputError(f"{name} = {whole} is not possible; accepted are whole numbers from 1")
