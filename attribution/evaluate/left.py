"""What leave-K-out has found, as a file of results: small, and enough for all of its tables."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attribution.diffusion.pipeline import Model
from attribution.evaluate.counterfactual import Evidence, LeaveOutSettings, top
from attribution.evaluate.results import Made, Results, by_method
from attribution.evaluate.retrain import MEASURED, without
from attribution.index.index import Index
from attribution.query.query import Query
from attribution.unlearning.score import Floats

CHANGED = ("change", "moved")  # of the queries, by each training


def made_of(index: Index, model: Model, queries: Sequence[Query], settings: LeaveOutSettings) -> Made:
    """What the results say of themselves."""
    told = [[query.prompt, query.seed, query.boxes] for query in queries]
    fixed = {"training": asdict(settings.training), "together": settings.together, "queries": told}
    fixed |= {"noise": asdict(MEASURED)}
    command = "python -m attribution evaluate counterfactual --folder DIR"
    return Made("counterfactual", index.id, model.sha256, len(index), fixed, asdict(settings), command)


def packed(evidence: Evidence, settings: LeaveOutSettings) -> dict[str, NDArray[Any]]:
    """Evidence as the arrays of a file; of the scores, the rows that they name."""
    removed = np.zeros((len(evidence.changes), evidence.images), bool)
    for gone, removal in zip(removed, evidence.changes, strict=True):
        gone[list(removal.rows)] = True
    first = {
        f"first/{method}": np.stack([top(each, max(settings.ks)) for each in scores]).astype(np.int32)
        for method, scores in evidence.scores.items()
    }
    changed = {
        name: np.stack([held[name] for held in evidence.changes.values()]).astype(np.float32) for name in CHANGED
    }
    unknown = np.full(sum(map(len, evidence.sharing)), np.nan)
    unlearned = np.stack([evidence.unlearned.get(each, unknown) for each in evidence.changes])
    shared = np.concatenate([[(number, group) for number in members] for group, members in enumerate(evidence.sharing)])
    return {
        "removed": np.packbits(removed, axis=1),
        "seeds": np.array([removal.seed for removal in evidence.changes], np.int32),
        "sharing": shared.astype(np.int32),
        "unlearned": unlearned.astype(np.float32),
        **changed,
        **first,
    }


def unpacked(results: Results) -> Evidence:
    """Evidence from a file, whose scores are no more than an order of the rows that are named."""
    arrays, images = results.arrays, results.made.images
    removed = np.unpackbits(arrays["removed"], axis=1, count=images)
    removals_of = [
        without(np.flatnonzero(gone), int(seed)) for gone, seed in zip(removed, arrays["seeds"], strict=True)
    ]
    changed = zip(removals_of, arrays["change"], arrays["moved"], strict=True)
    known = {each: {"change": change.astype(float), "moved": moved.astype(float)} for each, change, moved in changed}
    numbers, group = arrays["sharing"].T
    sharing = [tuple(numbers[group == one].tolist()) for one in range(group.max() + 1)]
    scores = {method: _order(rows, images) for method, rows in by_method(arrays, "first").items()}
    unlearned = zip(removals_of, arrays["unlearned"].astype(float), strict=True)
    return Evidence(known, scores, sharing, {each: rises for each, rises in unlearned if np.isfinite(rises).all()})


def _order(rows: Floats, images: int) -> Floats:
    """Scores (Q, N) with which `top` names these rows (Q, K)."""
    scores = np.zeros((len(rows), images))
    np.put_along_axis(scores, rows.astype(np.int64), np.arange(rows.shape[1], 0, -1.0)[None], 1)
    return scores
