"""How well a detector finds the objects of held-out scenes and of generated pictures, and what it sees beside them."""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torchvision.ops import box_iou

from attribution.diffusion.pipeline import Model
from attribution.query.grounding import Detector
from attribution.query.query import Box
from attribution.scenes.compose import draw_scene, make_scenes
from attribution.scenes.names import OBJECTS
from attribution.scenes.truth import locate, subjects


@dataclass(frozen=True)
class Asked:
    """A picture with the boxes of the names in it, and names that are not."""

    picture: Image.Image
    there: dict[str, Box]
    absent: list[str]


def heldout(count: int) -> list[Asked]:
    """Held-out scenes."""
    found = []
    for number, scene in enumerate(make_scenes("heldout", count)):
        there = {placed.name: tuple(map(float, placed.box)) for placed in scene.objects}
        found.append(Asked(draw_scene(scene), there, _absent(set(there), number)))  # type: ignore[arg-type]
    return found


def generated(model: Model, count: int) -> list[Asked]:
    """Generated pictures of two objects, where they are by their sprites; pictures that lack one ask for the other."""
    found: list[Asked] = []
    for subject in subjects(seed=2):
        picture = model.generate(subject.prompt, subject.seed)
        places = {name: locate(picture, name, subject.style) for name in subject.names}
        there = {name: box for name, box in places.items() if box is not None}
        found.append(Asked(picture, there, _absent(set(subject.names), len(found))))
        if len(found) == count:
            break
    return found


def _absent(there: set[str], number: int) -> list[str]:
    rng = np.random.default_rng([number, 3])
    return [str(name) for name in rng.choice([name for name in OBJECTS if name not in there], 3, replace=False)]


def recall_of(detector: Detector, asked: list[Asked], threshold: float) -> dict[str, float]:
    """Share of names found at IoU 0.5, and boxes a picture of names that are not there."""
    found, names, false = 0, 0, 0
    for each in asked:
        made = detector.detect(each.picture, [*each.there, *each.absent], threshold)
        false += sum(one.label in each.absent for one in made)
        for name, box in each.there.items():
            mine = [one.box for one in made if one.label == name]
            names += 1
            found += bool(mine) and float(box_iou(torch.tensor(mine), torch.tensor([box])).max()) >= 0.5
    return {"threshold": threshold, "recall": round(found / names, 3), "false": round(false / len(asked), 3)}
