"""How well `fast` finds what the default method ranks first, beside other ways, on pictures that it never saw."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from attribution.evaluate.agreement import estimate, paired_p
from attribution.evaluate.distill import cosines_of, placed_by, precisions, precisions_of
from attribution.evaluate.lessons import Lesson
from attribution.index.towers import Towers
from attribution.unlearning.score import Floats

FAST, JOINED = "fast", "concatenation"
BEATEN = ("dino", "clip", JOINED)  # that `fast` must be better than, where they were asked, to be worth its place
SURE = 0.05


@dataclass(frozen=True)
class Judged:
    """What was found on pictures held out.

    Attributes:
        precisions: by way to rank, the average precision of each picture.
        relevant: K of mAP(K).
    """

    precisions: Mapping[str, Floats]
    relevant: int

    @property
    def beats(self) -> bool:
        """Whether `fast` is better than the features alone and side by side, by a paired bootstrap."""
        found = self.precisions
        return all(paired_p(found[FAST], found[name]) < SURE for name in BEATEN if name in found)

    @property
    def table(self) -> str:
        """A Markdown table, best first, with a sentence."""
        found = self.precisions
        lines = [
            f"| way to rank | mAP({self.relevant}) | standard error | `{FAST}` is no better |",
            "|---|---|---|---|",
        ]
        for name in sorted(found, key=lambda each: -found[each].mean()):
            whole = estimate(found[name])
            chance = "" if name == FAST else f"{paired_p(found[FAST], found[name]):.4f}"
            lines.append(f"| {name} | {whole.mean:.3f} | {whole.error:.3f} | {chance} |")
        count = len(found[FAST])
        told = "beats" if self.beats else "does not beat"
        beaten = ", ".join(name for name in BEATEN if name in found)
        return "\n".join([*lines, "", f"{count} pictures were held out; `{FAST}` {told} {beaten} (p < {SURE})."])


def side_by_side(vectors: Tensor, widths: Sequence[int]) -> Tensor:
    """Joined features, each of a length of one, so that a cosine is the mean of theirs."""
    return torch.cat([normalize(part, dim=-1) for part in vectors.split(list(widths), -1)], -1)


def judge(towers: Towers, images: Tensor, asked: Tensor, lessons: Sequence[Lesson], relevant: int) -> Judged:
    """Judge networks on pictures held out.

    Args:
        towers: the networks.
        images: (N, views, D), joined features of training images.
        asked: (Q, D), those of the pictures.
        lessons: the pictures.
        relevant: K of mAP(K): the default method's first K images are to be found.
    """
    widths = [len(vector) for vector in lessons[0].seen.values()]
    plain = cosines_of(side_by_side(images, widths), side_by_side(asked, widths))
    found = {
        name: precisions(scores, lessons, relevant)
        for name, scores in ((FAST, placed_by(towers, images, asked)), (JOINED, plain))
    }
    for name in lessons[0].ranked:
        found[name] = precisions_of([each.ranked[name] for each in lessons], lessons, relevant)
    return Judged(found, relevant)
