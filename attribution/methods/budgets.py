"""How much of a search somebody wants to pay for: a few settings by name, from a quick look to every image."""

from dataclasses import replace
from typing import Literal, get_args

from attribution.index.index import Index
from attribution.methods import METHODS
from attribution.methods.accepted import with_search
from attribution.methods.answer import AttributeSettings
from attribution.methods.unlearning import choosing, predicted
from attribution.unlearning.race import Pace, RaceSettings

Budget = Literal["quick", "normal", "thorough", "all"]
BUDGETS: tuple[Budget, ...] = get_args(Budget)
NORMAL: Budget = "normal"
SHARES: dict[Budget, float] = {"quick": 0.25, "thorough": 4}  # of the candidates that a search has otherwise
# Where the index has nothing to choose candidates with, everyone takes part, and more or fewer go on.
EVERYONE: dict[Budget, Pace] = {"quick": Pace(0.04, 5.0, 32), "thorough": Pace(0.35, 2.0, 128)}


def within(settings: AttributeSettings, index: Index, budget: Budget) -> AttributeSettings:
    """Settings of a method that unlearns, within a budget.

    Args:
        settings: with the number of results.
        index: of the training set.
        budget: "normal" leaves the search as it is; "all" scores every image on all noises.
    """
    if budget == NORMAL:
        return settings
    if budget == "all":
        return replace(settings, exhaustive=True)
    if normal := with_search(settings, index).race.pool:
        pool = min(len(index), max(settings.k, round(SHARES[budget] * normal)))
        return replace(settings, race=RaceSettings(pool=pool))
    return replace(settings, race=RaceSettings(**EVERYONE[budget]._asdict()))


def calls(index: Index, settings: AttributeSettings) -> tuple[int, int]:
    """Predictions of the U-Net that an answer takes: for the query and its gradients, and of training images.

    Args:
        index: of the training set.
        settings: as `check_settings` gives them; of a method that reads vectors there are none worth telling.
    """
    method, unlearn = METHODS[settings.method], settings.unlearn.predictions
    if "race" in method.uses:
        asked = unlearn + choosing(index, settings)
        return asked, predicted(index, settings) - asked
    return (unlearn if method.curvature else 0), 0
