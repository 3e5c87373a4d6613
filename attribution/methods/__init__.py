"""Every way to answer a query, behind one call: `attribute(model, index, query, settings, stop)`."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial, reduce
from threading import Event
from typing import Any

from attribution.diffusion.pipeline import Model
from attribution.diffusion.weights import parameters
from attribution.errors import InputError
from attribution.index.features import FEATURES
from attribution.index.index import Index
from attribution.methods.accepted import check_values, with_search
from attribution.methods.answer import ENSEMBLE, Answer, AttributeSettings, Attribution, default_top_k
from attribution.methods.chance import chance
from attribution.methods.features import feature
from attribution.methods.influence import SIGNED, influence, signed_influence
from attribution.methods.pixel import pixel
from attribution.methods.trak import trak
from attribution.methods.unlearning import unlearning
from attribution.query.encoded import Encoded, encode
from attribution.query.query import Query
from attribution.query.regions import check_query
from attribution.unlearning.race import RaceSettings
from attribution.unlearning.step import Curvature

# Settings that not every method takes, by the names of their flags, and where they are in AttributeSettings.
# How many predictions fit into a batch is not one of them: that changes no answer.
OPTIONS: dict[str, tuple[str, ...]] = {
    "exhaustive": ("exhaustive",),
    "score": ("score",),
    "race": ("race",),
    "weights": ("unlearn", "weights"),
    "curvature": ("unlearn", "curvature"),
    "steps": ("unlearn", "steps"),
    "step_size": ("unlearn", "step_size"),
    "rise": ("unlearn", "rise"),
    "damping": ("unlearn", "damping"),
    "unlearn_timesteps": ("unlearn", "timesteps"),
    "unlearn_noises": ("unlearn", "noises"),
    "unlearn_seed": ("unlearn", "seed"),
    "images": ("unlearn", "images"),
    "random_seed": ("seed",),
    "noise_seed": ("noise_seed",),
}


@dataclass(frozen=True)
class Method:
    """A way to answer.

    Attributes:
        answer: how.
        line: about it.
        source: where it comes from.
        curvature: that it unlearns with; None where that is not its matter.
        rise: the share by which a query's loss rises, where neither that nor a step size is named; None takes the
            curvature's step size.
        artifacts: what the index must hold for it beyond what every index does.
        reads: what it reads of what every index holds.
        uses: the settings, of OPTIONS, that it takes; others are refused.
    """

    answer: Callable[[Model, Index, Encoded, AttributeSettings, Event], Answer]
    line: str
    source: str
    curvature: Curvature | None = None
    artifacts: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    uses: tuple[str, ...] = ()
    rise: float | None = None


def _feature_method(name: str) -> Method:
    entry = FEATURES[name]
    needed = tuple(f"features/{part}" for part in (entry.base, *entry.joins, name) if part)
    uses = () if entry.base else ("exhaustive",)  # instead of looking at the nearest lists, where an index holds them
    return Method(partial(feature, name), entry.line, entry.source, artifacts=needed, uses=uses)


SCORED = ("latents", "base_losses")
NEWTON = ("step_size", "damping", "images", "unlearn_timesteps", "unlearn_noises", "unlearn_seed", "noise_seed")
RISE = 0.5  # of several, the highest LDS and the steadiest
UNLEARNS = ("exhaustive", "score", "race", "weights", "steps", "rise", *NEWTON)
METHODS: dict[str, Method] = {
    "unlearning": Method(
        unlearning,
        "loss change after a Newton step that unlearns the picture",
        "Wang et al. 2024",
        "diagonal",
        reads=(*SCORED, "fisher"),
        uses=UNLEARNS,
    ),
    "unlearning+": Method(
        unlearning,
        "loss change after a Newton step with EK-FAC instead of the Fisher's diagonal",
        "Wang et al. 2025",
        "ek-fac",
        ("ekfac",),
        SCORED,
        UNLEARNS,
        rise=RISE,
    ),
    ENSEMBLE: Method(
        unlearning,
        "mean of the loss change that unlearning+ measures and the one that influence+ foresees",
        "Wang et al. 2025 with Grosse et al. 2023",
        "ek-fac",
        ("ekfac", f"gradients/{SIGNED}"),
        SCORED,
        tuple(name for name in UNLEARNS if name not in ("score", "weights")),
        rise=RISE,
    ),
    "unlearning-sgd": Method(
        unlearning,
        "loss change after gradient ascent, without the Fisher information",
        "ablation of Wang et al. 2024",
        "none",
        reads=SCORED,
        uses=tuple(name for name in UNLEARNS if name not in ("damping", "images")),
    ),
    "influence": Method(
        influence,
        "first-order loss change along the Newton step",
        "Wang et al. 2024, A.3",
        "diagonal",
        ("gradients/influence",),
        ("fisher",),
        NEWTON,
    ),
    SIGNED: Method(
        signed_influence,
        "first-order loss change by EK-FAC, of the signs of training gradients",
        "after Grosse et al. 2023",
        artifacts=("gradients/influence+",),
        reads=("ekfac",),
        uses=("noise_seed",),
    ),
    "trak": Method(
        partial(trak, "loss", False),
        "projected gradients of the loss, through TRAK's kernel",
        "Park et al. 2023",
        artifacts=("gradients/loss",),
        uses=("noise_seed",),
    ),
    "journey-trak": Method(
        partial(trak, "loss", True),
        "projected gradients, the picture's at one denoising step, through TRAK's kernel",
        "Georgiev et al. 2023",
        artifacts=("gradients/loss",),
        uses=("noise_seed",),
    ),
    "d-trak": Method(
        partial(trak, "d-trak", False),
        "projected gradients of the prediction's squared norm, through TRAK's kernel",
        "Zheng et al. 2024",
        artifacts=("gradients/d-trak",),
        uses=("noise_seed",),
    ),
    **{name: _feature_method(name) for name in FEATURES},
    "pixel": Method(
        pixel, "cosine similarity of pixel intensities", "baseline of Wang et al. 2024", reads=("thumbnails",)
    ),
    "random": Method(chance, "an order by chance", "chance", uses=("random_seed",)),
}


# By how well they agree with training again (README, "Proof"): the best that an index can answer by comes first.
PREFERRED = (ENSEMBLE, "unlearning+", "unlearning")
BEST = "best"  # names it


def best_method(index: Index) -> str:
    """The method that is asked where none is named."""
    return next(name for name in PREFERRED if set(METHODS[name].artifacts) <= set(index.artifacts))


def method_named(name: str, index: Index) -> str:
    """The method that a name stands for: itself, but for BEST."""
    return best_method(index) if name == BEST else name


def bytes_read(index: Index, method: str) -> int:
    """Size on disk of what a method reads of an index."""
    return sum(index.bytes_of(part) for part in (*METHODS[method].reads, *METHODS[method].artifacts))


def check_settings(model: Model, index: Index, settings: AttributeSettings) -> AttributeSettings:
    """Settings as they will be used: with K, the method's curvature and step, and how it is searched.

    Raises:
        InputError: there is no such method, the index lacks what it needs, a value is not possible, or the method
            would ignore it.
    """
    method = _named(settings.method)
    if settings.top_k is None:
        settings = replace(settings, top_k=default_top_k(len(index)))
    _refuse_unused(index, settings)
    check_values(settings, len(index), model.train_timesteps)
    for artifact in method.artifacts:
        index.require(artifact)
    if method.curvature is None:
        return settings
    weights = settings.unlearn.weights or index.weights
    index.require_information(parameters(model, weights), method.curvature)
    unlearn = replace(settings.unlearn, curvature=method.curvature, weights=weights)
    if unlearn.rise is None and unlearn.step_size is None:
        unlearn = replace(unlearn, rise=method.rise)
    if unlearn.rise is None:
        unlearn = replace(unlearn, step_size=unlearn.alpha)
    settings = replace(settings, unlearn=unlearn)
    if "race" not in method.uses or settings.exhaustive:
        return settings
    return with_search(settings, index)


def _named(name: str) -> Method:
    if name not in METHODS:
        raise InputError(f"there is no method {name!r}; accepted are {', '.join(METHODS)}")
    return METHODS[name]


def _refuse_unused(index: Index, settings: AttributeSettings) -> None:
    """Refuse a setting that the method would ignore."""
    method, plain = METHODS[settings.method], AttributeSettings()
    own = {"weights": index.weights, "curvature": method.curvature} if method.curvature else {}
    for name, path in OPTIONS.items():
        value: Any = reduce(getattr, path, settings)
        if name not in method.uses and value not in (reduce(getattr, path, plain), own.get(name)):
            using = [each for each, entry in METHODS.items() if name in entry.uses or entry.curvature == value]
            raise InputError(f"{settings.method} does not use {_given(name, value)}; it is for {', '.join(using)}")
    if settings.exhaustive and settings.race != plain.race:
        raise InputError(f"--exhaustive does not use {_given('race', settings.race)}; name one of the two")
    if settings.unlearn.rise is not None and settings.unlearn.step_size is not None:
        raise InputError(f"--rise does not use {_given('step_size', settings.unlearn.step_size)}; name one of the two")


def _given(name: str, value: Any) -> str:
    """A setting's flag and value; of a race, those that are not the default's."""
    if isinstance(value, RaceSettings):
        plain = RaceSettings()
        changed = {key: each for key, each in vars(value).items() if each != getattr(plain, key)}
        return " and ".join(_given(f"race_{key}", each) for key, each in changed.items())
    return f"--{name} (given: {value})"


def fitting(settings: AttributeSettings, name: str) -> AttributeSettings:
    """The same settings for another method; what it does not use is left at its default, and the step size its own.

    Raises:
        InputError: there is no such method.
    """
    plain, uses = AttributeSettings(), set(_named(name).uses)
    if _named(settings.method).curvature != _named(name).curvature:
        uses.discard("step_size")
    if settings.unlearn.rise == _named(settings.method).rise:
        uses.discard("rise")
    for option, path in OPTIONS.items():
        if option not in uses:
            settings = _with(settings, path, reduce(getattr, path, plain))
    return replace(settings, method=name)


def _with(settings: Any, path: tuple[str, ...], value: Any) -> Any:
    """Settings with another value at a path."""
    first, *rest = path
    return replace(settings, **{first: _with(getattr(settings, first), tuple(rest), value) if rest else value})


def attribute(
    model: Model, index: Index, query: Query, settings: AttributeSettings | None = None, stop: Event | None = None
) -> Answer:
    """Answer a query: yields Progress, then one Attribution. Weights are restored whatever happens.

    Args:
        model: the index's.
        index: of the training set to search.
        query: what to attribute.
        settings: how.
        stop: set it to stop; it is checked between calls of the U-Net.

    Raises:
        InputError: before any work, if a value is not acceptable.
        Stopped: after `stop` was set.
    """
    settings = check_settings(model, index, settings or AttributeSettings())
    check_query(query, model, index.center_crop)
    return answer(model, index, encode(model, query, index.center_crop), settings, stop)


def answer(
    model: Model, index: Index, asked: Encoded, settings: AttributeSettings, stop: Event | None = None
) -> Answer:
    """Answer a query that is encoded already, so that several methods share the work; see `attribute`.

    Args:
        model: the index's.
        index: of the training set to search.
        asked: what to attribute.
        settings: as `check_settings` gave them.
        stop: set it to stop.
    """
    for step in METHODS[settings.method].answer(model, index, asked, settings, stop or Event()):
        yield replace(step, evidence=asked.evidence) if isinstance(step, Attribution) else step
