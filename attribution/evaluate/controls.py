"""Controls of the linear datamodelling score: what is left of a method's agreement where there should be none."""

from collections.abc import Sequence

import numpy as np

from attribution.evaluate.agreement import Floats, estimate, lds
from attribution.evaluate.lds import CONTROLLED, Evidence, aligned
from attribution.scenes.names import named_in


def controls(evidence: Evidence, prompts: Sequence[str]) -> str:
    """What is left of a method's agreement when there should be none, in words.

    Args:
        evidence: what the methods are judged by.
        prompts: of the queries.
    """
    losses, told = np.nanmean(aligned(evidence.losses), 0), []
    if CONTROLLED in evidence.scores and (others := unrelated(prompts[: losses.shape[1]])):
        scores = evidence.scores[CONTROLLED][list(others.values())]
        told.append(("the scores of another picture, of other objects", scores, list(others)))
    if evidence.shuffled is not None:
        told.append(("the model with shuffled weights", evidence.shuffled, list(range(len(evidence.shuffled)))))
    figures = (
        f"{words} {_figure(lds(scores, evidence.kept, losses[:, asked]))} ({len(asked)} queries)"
        for words, scores, asked in told
    )
    return f"Controls, by {CONTROLLED}: {'; '.join(figures)}." if told else ""


def unrelated(prompts: Sequence[str]) -> dict[int, int]:
    """For each query, by number, the next one that names none of its objects; without those that have none."""
    named, count = list(map(named_in, prompts)), len(prompts)
    found = {}
    for number in range(count):
        after = ((number + further) % count for further in range(1, count))
        if (other := next((each for each in after if not named[each] & named[number]), None)) is not None:
            found[number] = other
    return found


def _figure(values: Floats) -> str:
    mean = estimate(values)
    return f"{mean.mean:.3f} ± {mean.error:.3f}"
