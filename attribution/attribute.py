"""The use case: a query goes in, progress comes out, and an attribution at the end."""

import math
from dataclasses import replace
from pathlib import Path
from threading import Event

from attribution.answer import Answer, AttributeSettings, Attribution, Progress, Result
from attribution.errors import InputError
from attribution.index import EMBEDDED, Index
from attribution.methods import METHODS, Method, bytes_read, likely_first, unlearn_query
from attribution.model import Model
from attribution.query import Box, Query, check_box, check_query, image_sha256, region_mask

__all__ = [
    "METHODS",
    "Answer",
    "AttributeSettings",
    "Attribution",
    "Box",
    "Method",
    "Progress",
    "Query",
    "Result",
    "attribute",
    "bytes_read",
    "check_box",
    "check_settings",
    "image_sha256",
    "likely_first",
    "open_index",
    "region_mask",
    "unlearn_query",
]

MAX_STEPS = 1000  # of unlearning


def open_index(path: Path | None = None) -> tuple[Model, Index]:
    """An index, the embedded one by default, and its model.

    Raises:
        IndexMismatch: the index cannot be used, or is of another model.
        WeightsUnavailable: the model cannot be had.
    """
    index = Index.open(path or EMBEDDED)
    model = Model.load(index.model_source)
    index.check(model)
    return model, index


def check_settings(model: Model, index: Index, settings: AttributeSettings) -> AttributeSettings:
    """Settings as they will be used: with the method's curvature and step size.

    Raises:
        InputError: there is no such method, the index lacks what it needs, or K is not possible.
    """
    if settings.method not in METHODS:
        raise InputError(f"there is no method {settings.method!r}; accepted are {', '.join(METHODS)}")
    if not 1 <= settings.top_k <= len(index):
        raise InputError(
            f"top_k = {settings.top_k} is not possible; accepted are 1 to {len(index)}, the training images"
        )
    method = METHODS[settings.method]
    for artifact in method.artifacts:
        index.require(artifact)
    if method.curvature is None:
        return settings
    if not 1 <= settings.unlearn.steps <= MAX_STEPS:
        raise InputError(f"{settings.unlearn.steps} steps are not possible; accepted are 1 to {MAX_STEPS}")
    if not 0 < settings.unlearn.alpha < math.inf:
        raise InputError(f"a step size of {settings.unlearn.alpha:g} is not possible; accepted are numbers above 0")
    weights = settings.unlearn.weights or index.weights
    index.information(model.parameters(weights), method.curvature)
    unlearn = replace(settings.unlearn, curvature=method.curvature, weights=weights)
    return replace(settings, unlearn=replace(unlearn, step_size=unlearn.alpha))


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
    return METHODS[settings.method].answer(model, index, query, settings, stop or Event())
