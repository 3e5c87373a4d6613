"""What each method takes of the settings: what it ignores is refused, and what is recorded is what was used."""

from dataclasses import replace
from itertools import product

import pytest

from attribution.errors import InputError
from attribution.methods import METHODS, OPTIONS, attribute, check_settings, fitting
from attribution.methods.answer import AttributeSettings
from attribution.unlearning.race import AMONG, RaceSettings
from attribution.unlearning.step import UnlearnSettings

NEWTON = {"step_size", "damping", "images", "unlearn_timesteps", "unlearn_noises", "unlearn_seed", "noise_seed"}
UNLEARNS = NEWTON | {"exhaustive", "score", "race", "weights", "steps", "rise"}
TAKES = {
    "unlearning": UNLEARNS,
    "unlearning+": UNLEARNS,
    "ensemble": UNLEARNS - {"score", "weights"},
    "unlearning-sgd": UNLEARNS - {"damping", "images"},
    "influence": NEWTON,
    **{name: {"noise_seed"} for name in ("influence+", "trak", "journey-trak", "d-trak")},
    **{name: {"exhaustive"} for name in ("clip", "clip-text", "dino", "dinov2", "fast")},
    "random": {"random_seed"},
}
QUICK = UnlearnSettings(timesteps=2, noises=1)
CHANGES = {
    "exhaustive": {"exhaustive": True},
    "score": {"score": "skew"},
    "race": {"race": RaceSettings(0, 0.5, 1, 3.0, 3)},
    "weights": {"unlearn": replace(QUICK, weights="cross-attn")},
    "curvature": {"unlearn": replace(QUICK, curvature="ek-fac")},
    "steps": {"unlearn": replace(QUICK, steps=2)},
    "step_size": {"unlearn": replace(QUICK, step_size=0.3)},
    "rise": {"unlearn": replace(QUICK, rise=0.02)},
    "damping": {"unlearn": replace(QUICK, damping=3.0)},
    "unlearn_timesteps": {"unlearn": replace(QUICK, timesteps=3)},
    "unlearn_noises": {"unlearn": replace(QUICK, noises=3)},
    "unlearn_seed": {"unlearn": replace(QUICK, seed=9)},
    "images": {"unlearn": replace(QUICK, images=3)},
    "random_seed": {"seed": 3},
    "noise_seed": {"noise_seed": 4},
}


def takes(method):
    return TAKES.get(method, set())


def quick(method):
    """How a method unlearns, quick where it takes that."""
    return QUICK if "unlearn_timesteps" in takes(method) else UnlearnSettings()


def changed(method, option):
    """The settings of a method, quick where it takes a gradient, but for one option."""
    plain = AttributeSettings(method=method, top_k=1)
    unlearn = quick(method)
    part, value = next(iter(CHANGES[option].items()))
    if part != "unlearn":
        return replace(plain, unlearn=unlearn, **{part: value})
    own = {name: each for name, each in vars(value).items() if each != getattr(QUICK, name)}
    return replace(plain, unlearn=replace(unlearn, **own))


def test_every_option_is_tried():
    assert CHANGES.keys() == OPTIONS.keys()
    assert METHODS.keys() >= TAKES.keys()


@pytest.mark.parametrize(("method", "option"), list(product(METHODS, CHANGES)))
def test_a_method_takes_what_it_uses_and_refuses_the_rest(model32, full_index, method, option):
    settings = changed(method, option)
    own = method in ("unlearning+", "ensemble") and option == "curvature"
    if option not in takes(method) and not own:
        with pytest.raises(
            InputError, match=rf"^{method.replace('+', '.')} does not use --{option}(_pool)? \(given: .*\)"
        ):
            check_settings(model32, full_index, settings)
        return
    if (method, option) == ("unlearning+", "weights"):  # an index holds EK-FAC of its own weights alone
        with pytest.raises(InputError, match="holds no ek-fac"):
            check_settings(model32, full_index, settings)
        return
    used = check_settings(model32, full_index, settings)
    assert check_settings(model32, full_index, used) == used
    for name, value in CHANGES[option].items():
        assert name == "unlearn" or getattr(used, name) == value


def outcome(model, index, query, settings):
    """All that an answer says of the ranking, whatever it took, and the settings that it records."""
    *_, last = attribute(model, index, query, settings)
    said = [(result.row, result.score, result.low) for result in last.results]
    return (said, last.ranked, last.typical), last.settings


@pytest.mark.parametrize("method", TAKES)
def test_every_option_that_a_method_takes_changes_its_answer(model32, full_index, query, method):
    base = AttributeSettings(method=method, top_k=1, unlearn=quick(method))
    plain, _ = outcome(model32, full_index, query, base)
    for option in sorted(TAKES[method]):
        if (method, option) != ("unlearning+", "weights"):
            settings = changed(method, option)
            said, recorded = outcome(model32, full_index, query, settings)
            # with fewer images than survivors, a race is exhaustive
            assert (said == plain) == (option == "exhaustive"), option
            assert recorded == check_settings(model32, full_index, settings), option


@pytest.mark.parametrize("method", METHODS)
def test_the_settings_of_any_method_can_be_fitted_to_another(model32, full_index, method):
    full = AttributeSettings(
        method="unlearning",
        top_k=3,
        score="skew",
        seed=0,
        race=RaceSettings(survivors=7),
        unlearn=UnlearnSettings(steps=3, step_size=0.2, damping=0.3, timesteps=7, noises=1, seed=5),
    )
    start = fitting(full, method)
    assert start.method == method
    used = check_settings(model32, full_index, start)
    for other in METHODS:
        again = check_settings(model32, full_index, fitting(used, other))
        assert (again.method, again.top_k) == (other, 3)
        assert check_settings(model32, full_index, fitting(again, other)) == again


def test_fitting_keeps_what_both_methods_use():
    unlearn = UnlearnSettings(steps=3, step_size=0.2, damping=0.3, timesteps=7)
    full = AttributeSettings(method="unlearning", score="skew", exhaustive=True, unlearn=unlearn)
    assert fitting(full, "unlearning") == full
    assert fitting(full, "unlearning+") == replace(full, method="unlearning+", unlearn=replace(unlearn, step_size=None))
    assert fitting(full, "influence").unlearn == replace(unlearn, steps=1)
    assert fitting(full, "trak") == AttributeSettings(method="trak")
    assert fitting(AttributeSettings(method="random", seed=4), "clip") == AttributeSettings(method="clip")


def test_fitting_keeps_a_rise_for_whatever_unlearns():
    """It says the same of every form of the Fisher information, as a step size does not."""
    full = AttributeSettings(unlearn=replace(QUICK, rise=0.1))
    for method in ("unlearning", "unlearning+", "unlearning-sgd"):
        assert fitting(full, method).unlearn == full.unlearn
    assert fitting(full, "influence").unlearn == QUICK


def test_a_rise_and_a_step_size_are_not_both_taken(model32, full_index):
    settings = AttributeSettings(top_k=1, unlearn=replace(QUICK, rise=0.1, step_size=0.3))
    with pytest.raises(InputError, match=r"--rise does not use --step_size \(given: 0.3\); name one of the two"):
        check_settings(model32, full_index, settings)


def test_a_race_is_recorded_with_as_many_survivors_as_it_had(model32, full_index, query):
    settings = AttributeSettings(top_k=3, race=RaceSettings(keep=0.3, survivors=1), unlearn=QUICK)
    *_, last = attribute(model32, full_index, query, settings)
    assert last.settings.race == RaceSettings(8, 0.3, 1, AMONG.growth, 5)
    assert last.ranked == 5


def test_a_race_where_none_is_run_is_refused(model32, full_index):
    settings = AttributeSettings(top_k=1, exhaustive=True, race=RaceSettings(survivors=3))
    with pytest.raises(
        InputError, match=r"--exhaustive does not use --race_survivors \(given: 3\); name one of the two"
    ):
        check_settings(model32, full_index, settings)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (
            AttributeSettings(top_k=1, unlearn=UnlearnSettings(steps=0)),
            "0 steps are not possible; accepted are 1 to 1000",
        ),
        (AttributeSettings(top_k=1, unlearn=UnlearnSettings(damping=-0.1)), "a damping of -0.1 is not possible"),
        (AttributeSettings(top_k=1, unlearn=UnlearnSettings(damping=float("nan"))), "a damping of nan"),
        (AttributeSettings(top_k=1, unlearn=UnlearnSettings(step_size=0.0)), "a step size of 0 is not possible"),
        (AttributeSettings(top_k=1, unlearn=UnlearnSettings(rise=0.0)), "a rise of 0.0 is not possible; accepted are"),
        (AttributeSettings(top_k=1, unlearn=UnlearnSettings(rise=float("nan"))), "a rise of nan is not possible"),
        (AttributeSettings(top_k=1, unlearn=UnlearnSettings(rise=float("inf"))), "a rise of inf is not possible"),
        (AttributeSettings(top_k=1, noise_seed=-1), "seed -1 is not possible"),
        (AttributeSettings(top_k=1, unlearn=UnlearnSettings(batch=0)), "unlearn_batch = 0 is not possible"),
        (AttributeSettings(top_k=1, batch=0), "^batch = 0 is not possible"),
        (AttributeSettings(method="clip", top_k=1, batch=-1), "^batch = -1 is not possible"),
        (AttributeSettings(top_k=1, score="ratio"), "the score 'ratio' is not possible; accepted are difference, skew"),
        (AttributeSettings(top_k=1, unlearn=UnlearnSettings(weights="vae")), "weights 'vae' are not possible"),
        (AttributeSettings(top_k=1, race=RaceSettings(keep=0.0)), "race_keep = 0 is not possible"),
        (AttributeSettings(top_k=1, race=RaceSettings(keep=float("nan"))), "race_keep = nan is not possible"),
        (AttributeSettings(top_k=1, race=RaceSettings(first_columns=0)), "race_first_columns = 0 is not possible"),
        (AttributeSettings(top_k=1, race=RaceSettings(growth=float("inf"))), "race_growth = inf is not possible"),
        (AttributeSettings(top_k=1, race=RaceSettings(survivors=0)), "race_survivors = 0 is not possible"),
        (AttributeSettings(method="random", top_k=1, seed=-1), "seed -1 is not possible"),
        (AttributeSettings(top_k=9), "top_k = 9 is not possible; accepted are 1 to 8"),
        (AttributeSettings(method="magic", top_k=1), "there is no method 'magic'"),
    ],
)
def test_what_is_not_possible_is_refused_before_any_work(model32, full_index, query, settings, told):
    with pytest.raises(InputError, match=told):
        attribute(model32, full_index, query, settings)
