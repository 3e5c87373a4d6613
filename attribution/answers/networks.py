"""Which network a method compares by: the published one, or a small one that ships with the index."""

import math
from functools import lru_cache
from pathlib import Path

from safetensors import SafetensorError, safe_open

from attribution.index.features import FEATURES
from attribution.index.index import Index

SMALL = 20e6  # parameters; the published networks have more
NAMES = {"clip": "CLIP", "clip-text": "CLIP", "dino": "DINO", "dinov2": "DINOv2"}  # of features of their own


def network_behind(index: Index, method: str) -> str:
    """A sentence about the network behind a method, where it lies beside the index; "" where it is the published one.

    Args:
        index: whose features they are.
        method: any of METHODS.
    """
    feature = FEATURES.get(method)
    name = feature.base or method if feature else ""
    if f"features/{name}" not in index.artifacts:
        return ""
    return miniature(NAMES.get(name, name), beside(index, index.feature_weights(name)))


def detector_behind(index: Index) -> str:
    """The same of the GroundingDINO that searches pictures of this index."""
    return miniature("GroundingDINO", beside(index, str(index.path.resolve().parent / "detector")))


def miniature(name: str, folder: Path | None) -> str:
    """A sentence that tells a small network from the published one of the same name."""
    count = 0 if folder is None else parameters_of(folder)
    if not count:
        return ""
    kind = "a miniature" if count < SMALL else "another network"
    return f"This {name} is {kind} of {count / 1e6:.1f} million parameters, not the published one."


def beside(index: Index, weights: str) -> Path | None:
    """The folder of a network that ships beside an index; None where the weights come from elsewhere."""
    folder = Path(weights)
    return folder if folder.is_dir() and folder.resolve().parent == index.path.resolve().parent else None


@lru_cache(maxsize=64)
def parameters_of(folder: Path) -> int:
    """How many parameters a network has, by the header of its weights; 0 where they cannot be read."""
    try:
        with safe_open(folder / "model.safetensors", framework="numpy") as file:
            return sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118
    except (OSError, SafetensorError):
        return 0
