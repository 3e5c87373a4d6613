"""Linear maps that bring a customised model's pictures near its exemplars, away from training images.

As Wang et al. 2023 ("Evaluating Data Attribution for Text-to-Image Models", AbC) train them over CLIP's and DINO's
vectors.

    python -m attribution.scenes.mappers --work DIR    # of the pictures that `customise` made
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear, normalize

from attribution.index.features import open_feature
from attribution.scenes.compose import draw_scene, make_scenes
from attribution.scenes.world import EMBEDDED

HELD_BACK = 10  # of the customised models, which the mappers are judged on


@dataclass(frozen=True)
class MappersArgs:
    """What to train on.

    Attributes:
        work: where the customised models' pictures are.
        out: folder of the embedded world.
    """

    work: Path
    out: Path = EMBEDDED.parent


def main(args: MappersArgs) -> None:
    """Train clip-abc and dino-abc, and write what they are worth on models that they were not trained on."""
    kept = [dict(np.load(path)) for path in sorted(args.work.glob("*.npz"))]
    training = [draw_scene(scene) for scene in make_scenes("train")]
    worth = {}
    for base in ("clip", "dino"):
        vectors = _vectors(base, str(args.out / base), kept, training)
        mapper, worth[base] = fit_mapper(*vectors)
        save_file({f"mapper.{key}": value for key, value in mapper.items()}, args.out / f"{base}-abc.safetensors")
    report = {"models": len(kept), "held_back": HELD_BACK, **worth}
    (args.out / "mappers.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=1))


def _vectors(
    base: str, weights: str, kept: list[dict[str, NDArray[np.uint8]]], training: list[Image.Image]
) -> tuple[Tensor, Tensor, Tensor]:
    """Exemplars (M, E, D), pictures (M, P, D) and training scenes (N, D)."""
    encoder: Callable[[list[Image.Image]], Tensor] = open_feature(base, weights)

    def encoded(key: str) -> Tensor:
        return torch.stack([encoder([Image.fromarray(picture) for picture in each[key]]) for each in kept])

    parts = [encoder(training[start : start + 256]) for start in range(0, len(training), 256)]
    return encoded("exemplars"), encoded("pictures"), torch.cat(parts)


def fit_mapper(
    exemplars: Tensor, pictures: Tensor, training: Tensor, steps: int = 400, temperature: float = 0.07
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """A linear map by the contrastive loss: a picture, its exemplar, and other exemplars and training scenes.

    Args:
        exemplars: (M, E, D).
        pictures: (M, P, D).
        training: (N, D), never right.
        steps: of Adam.
        temperature: of the softmax.

    Returns:
        Weight (D, D) and bias (D,), and the exemplar's recall among the training scenes before and after, on the models
        held back.
    """
    generator, width = torch.Generator().manual_seed(0), training.shape[1]
    mapper = nn.Linear(width, width)
    with torch.no_grad():
        mapper.weight.copy_(torch.eye(width))
        mapper.bias.zero_()
    optimizer = torch.optim.AdamW(mapper.parameters(), lr=1e-3, weight_decay=0.0)
    models = len(exemplars) - HELD_BACK
    for _ in range(steps):
        which = torch.arange(models)
        right = exemplars[which, torch.randint(exemplars.shape[1], (models,), generator=generator)]
        made = pictures[which, torch.randint(pictures.shape[1], (models,), generator=generator)]
        wrong = training[torch.randint(len(training), (512,), generator=generator)]
        candidates = normalize(mapper(torch.cat([right, wrong])), dim=1)
        loss = cross_entropy(normalize(mapper(made), dim=1) @ candidates.T / temperature, which)
        loss = loss + 0.01 * (mapper.weight - torch.eye(width)).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    state = {"weight": mapper.weight.detach(), "bias": mapper.bias.detach()}
    plain = {"weight": torch.eye(width), "bias": torch.zeros(width)}
    kept = (exemplars[-HELD_BACK:], pictures[-HELD_BACK:], training)
    worth = {f"recall@10 {when}": recall(*kept, how) for when, how in (("before", plain), ("after", state))}
    return state, worth


def recall(exemplars: Tensor, pictures: Tensor, training: Tensor, mapper: dict[str, Tensor], k: int = 10) -> float:
    """Share of pictures that one of their model's exemplars is among the k nearest of, all training scenes beside."""

    def mapped(x: Tensor) -> Tensor:
        return normalize(linear(x, mapper["weight"], mapper["bias"]), dim=-1)

    others = mapped(pictures) @ mapped(training).T  # (M, P, N)
    own = torch.einsum("mpd,med->mpe", mapped(pictures), mapped(exemplars)).amax(2)
    return float(((others > own[..., None]).sum(2) < k).double().mean())


if __name__ == "__main__":
    main(tyro.cli(MappersArgs))
