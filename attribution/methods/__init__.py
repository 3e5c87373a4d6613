"""Every way to answer a query, behind one call: `attribute(model, index, query, settings, stop)`."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from threading import Event
from typing import Any

from attribution.diffusion.pipeline import Model
from attribution.diffusion.weights import parameters
from attribution.errors import InputError
from attribution.index.features import FEATURES
from attribution.index.index import Index
from attribution.methods.answer import Answer, AttributeSettings
from attribution.methods.chance import chance
from attribution.methods.features import feature
from attribution.methods.influence import influence
from attribution.methods.pixel import pixel
from attribution.methods.trak import trak
from attribution.methods.unlearning import unlearning
from attribution.query.encoded import Encoded, encode
from attribution.query.query import Query
from attribution.query.regions import check_query
from attribution.unlearning.step import Curvature

MAX_STEPS = 1000  # of unlearning

# Settings that not every method takes, by the names of their flags
OPTIONS: dict[str, Callable[[AttributeSettings], Any]] = {
    "exhaustive": lambda settings: settings.exhaustive,
    "score": lambda settings: settings.score,
    "weights": lambda settings: settings.unlearn.weights,
    "steps": lambda settings: settings.unlearn.steps,
    "step_size": lambda settings: settings.unlearn.step_size,
    "damping": lambda settings: settings.unlearn.damping,
}


@dataclass(frozen=True)
class Method:
    """A way to answer.

    Attributes:
        answer: how.
        line: about it.
        source: where it comes from.
        curvature: that it unlearns with; None where that is not its matter.
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


def _feature_method(name: str) -> Method:
    entry = FEATURES[name]
    needed = tuple(f"features/{part}" for part in (entry.base, name) if part)
    return Method(partial(feature, name), entry.line, entry.source, artifacts=needed)


SCORED = ("latents", "base_losses")
UNLEARNS = ("exhaustive", "score", "weights", "steps", "step_size", "damping")
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
    ),
    "unlearning-sgd": Method(
        unlearning,
        "loss change after gradient ascent, without the Fisher information",
        "ablation of Wang et al. 2024",
        "none",
        reads=SCORED,
        uses=tuple(name for name in UNLEARNS if name != "damping"),
    ),
    "influence": Method(
        influence,
        "first-order loss change along the Newton step",
        "Wang et al. 2024, A.3",
        "diagonal",
        ("gradients/influence",),
        ("fisher",),
        ("step_size", "damping"),
    ),
    "trak": Method(
        partial(trak, "loss", False),
        "projected gradients of the loss, through TRAK's kernel",
        "Park et al. 2023",
        artifacts=("gradients/loss",),
    ),
    "journey-trak": Method(
        partial(trak, "loss", True),
        "projected gradients, the picture's at one denoising step, through TRAK's kernel",
        "Georgiev et al. 2023",
        artifacts=("gradients/loss",),
    ),
    "d-trak": Method(
        partial(trak, "d-trak", False),
        "projected gradients of the prediction's squared norm, through TRAK's kernel",
        "Zheng et al. 2024",
        artifacts=("gradients/d-trak",),
    ),
    **{name: _feature_method(name) for name in FEATURES},
    "pixel": Method(
        pixel, "cosine similarity of pixel intensities", "baseline of Wang et al. 2024", reads=("thumbnails",)
    ),
    "random": Method(chance, "an order by chance", "chance"),
}


def bytes_read(index: Index, method: str) -> int:
    """Size on disk of what a method reads of an index."""
    return sum(index.bytes_of(part) for part in (*METHODS[method].reads, *METHODS[method].artifacts))


def check_settings(model: Model, index: Index, settings: AttributeSettings) -> AttributeSettings:
    """Settings as they will be used: with the method's curvature and step size.

    Raises:
        InputError: there is no such method, the index lacks what it needs, or K is not possible.
    """
    method = _named(settings.method)
    if not 1 <= settings.top_k <= len(index):
        raise InputError(
            f"top_k = {settings.top_k} is not possible; accepted are 1 to {len(index)}, the training images"
        )
    _refuse_unused(index, settings)
    for artifact in method.artifacts:
        index.require(artifact)
    if method.curvature is None:
        return settings
    if not 1 <= settings.unlearn.steps <= MAX_STEPS:
        raise InputError(f"{settings.unlearn.steps} steps are not possible; accepted are 1 to {MAX_STEPS}")
    if not 0 < settings.unlearn.alpha < math.inf:
        raise InputError(f"a step size of {settings.unlearn.alpha:g} is not possible; accepted are numbers above 0")
    weights = settings.unlearn.weights or index.weights
    index.require_information(parameters(model, weights), method.curvature)
    unlearn = replace(settings.unlearn, curvature=method.curvature, weights=weights)
    return replace(settings, unlearn=replace(unlearn, step_size=unlearn.alpha))


def _named(name: str) -> Method:
    if name not in METHODS:
        raise InputError(f"there is no method {name!r}; accepted are {', '.join(METHODS)}")
    return METHODS[name]


def _refuse_unused(index: Index, settings: AttributeSettings) -> None:
    """Refuse a setting that the method would ignore."""
    method, plain = METHODS[settings.method], AttributeSettings()
    for name, value_of in OPTIONS.items():
        value = value_of(settings)
        if name not in method.uses and value != value_of(plain) and (name, value) != ("weights", index.weights):
            using = [each for each, entry in METHODS.items() if name in entry.uses]
            raise InputError(f"{settings.method} does not use --{name} (given: {value}); it is for {', '.join(using)}")


def fitting(settings: AttributeSettings, name: str) -> AttributeSettings:
    """The same settings for another method; what it does not use is left at its default.

    Raises:
        InputError: there is no such method.
    """
    plain, uses = AttributeSettings(), _named(name).uses
    unlearn = replace(
        settings.unlearn,
        curvature=plain.unlearn.curvature,
        **{
            each: getattr(plain.unlearn, each)
            for each in ("weights", "steps", "step_size", "damping")
            if each not in uses or each == "step_size"  # each method has a step size of its own
        },
    )
    own = {each: getattr(plain, each) for each in ("exhaustive", "score") if each not in uses}
    return replace(settings, method=name, unlearn=unlearn, **own)


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
    return METHODS[settings.method].answer(model, index, asked, settings, stop or Event())
