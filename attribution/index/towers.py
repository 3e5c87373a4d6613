"""Two small networks in one file: one places training images, the other queries, in a space that cosines compare.

Each standardises its vectors, (B, D), maps them linearly and adds what a hidden layer makes of them. A query is a
picture, or a box of it, with its prompt; a training image has its caption.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.nn.functional import linear, relu

from attribution.errors import WeightsUnavailable
from attribution.files import write_whole

SIDES = ("images", "queries")
PARTS = ("mean", "scale", "direct", "inner", "bias", "outer")


@dataclass(frozen=True)
class Towers:
    """Both networks.

    Attributes:
        weights: by side and part, such as "images.direct".
        told: what they were trained on: index, method, pictures, settings.
    """

    weights: dict[str, Tensor]
    told: dict[str, Any]

    def place(self, side: str, vectors: Tensor) -> Tensor:
        """Where vectors (B, D) are: (B, E), to be compared by cosine.

        Args:
            side: "images" or "queries".
            vectors: the joined features, side by side.
        """
        mean, scale, direct, inner, bias, outer = (self.weights[f"{side}.{part}"] for part in PARTS)
        standard = (vectors - mean) / scale
        return linear(standard, direct) + linear(relu(linear(standard, inner, bias)), outer)

    def images(self, vectors: Sequence[Any]) -> Tensor:
        """Where training images are: (B, E) float32."""
        return self._placed("images", vectors)

    def queries(self, vectors: Sequence[Any]) -> Tensor:
        """Where queries are: (B, E) float32."""
        return self._placed("queries", vectors)

    def _placed(self, side: str, vectors: Sequence[Any]) -> Tensor:
        with torch.inference_mode():
            return self.place(side, torch.as_tensor(np.asarray(vectors), dtype=torch.float32))

    def write(self, path: Path) -> None:
        """Write them as a safetensors file, whole or not at all."""
        write_whole(path, save(self.weights, {"told": json.dumps(self.told)}))

    @classmethod
    def read(cls, path: str) -> "Towers":
        """Both networks of a file.

        Raises:
            WeightsUnavailable: it is missing, damaged, or holds other networks.
        """
        try:
            with safe_open(path, framework="pt") as file:
                told = json.loads((file.metadata() or {})["told"])
                weights = {f"{side}.{part}": file.get_tensor(f"{side}.{part}") for side in SIDES for part in PARTS}
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise WeightsUnavailable(
                f"{path!r} holds no networks of `fast`; name the file that `python -m attribution distill` wrote"
            ) from error
        return cls(weights, told)


def joined(parts: Sequence[NDArray[np.floating]]) -> NDArray[np.floating]:
    """Vectors (n, views, D) of several features side by side; one without mirrors has the same for both views."""
    views = max(part.shape[1] for part in parts)
    return np.concatenate([np.broadcast_to(part, (len(part), views, part.shape[2])) for part in parts], 2)
