"""Feature baselines: cosine similarity to the training images, the better of each image and its mirror.

The networks are transformers' own, from a folder or the hub; only this file and `model.py` load any.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import linear
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, CLIPModel

from attribution.diffusion.pipeline import default_device
from attribution.errors import HUB, InputError, WeightsUnavailable, reason
from attribution.index.checksums import sha256_of
from attribution.index.towers import Towers

PIXEL_SIDE = 32  # px, side of the pictures that the pixel baseline compares

Encode = Callable[[Sequence[Any]], Tensor]  # B pictures, or captions, to (B, D) float32 on the CPU


@dataclass(frozen=True)
class Encoder:
    """A loaded network: what it makes of pictures or captions, and its weights.

    Attributes:
        encode: places pictures or captions, or training images by their joined features.
        weights: of the network.
        ask: places queries, where they are placed in another way.
        told: what it was distilled from.
    """

    encode: Encode
    weights: dict[str, Tensor]
    ask: Encode | None = None
    told: str = ""

    def __call__(self, items: Sequence[Any]) -> Tensor:
        """(B, D) float32 on the CPU of B pictures, or captions."""
        return self.encode(items)

    @cached_property
    def sha256(self) -> str:
        """A hash of the weights."""
        return sha256_of(self.weights)


@dataclass(frozen=True)
class Feature:
    """A feature that pictures or captions are compared by.

    Attributes:
        line: what it is.
        source: who published it.
        of: what is encoded, the pictures or the captions.
        weights: the hub id of the published network; None for a mapper, whose file must be named.
        open: loads the network from a folder or hub id.
        base: the feature whose vectors a mapper maps; None for a feature of its own.
        joins: features whose vectors, side by side, a network maps to this one's; none for a feature of its own.
    """

    line: str
    source: str
    of: Literal["images", "captions"]
    weights: str | None
    open: Callable[[str], Encoder]
    base: str | None = None
    joins: tuple[str, ...] = ()


def _loaded(load: Callable[..., Any], weights: str, **how: Any) -> Any:
    """What `load` makes of a folder or hub id.

    Raises:
        WeightsUnavailable: it cannot be had.
    """
    try:
        return load(weights, **how)
    except Exception as error:  # transformers and the hub raise a dozen kinds
        raise WeightsUnavailable(
            f"no feature network could be loaded from {weights!r} ({reason(error)}); name a folder with"
            f" --feature_weights, or a hub id on {HUB}"
        ) from error


def _network(load: Callable[..., Any], weights: str) -> Any:
    network = _loaded(load, weights, dtype=torch.float32)
    return network.eval().requires_grad_(False).to(default_device())


def _read_weights(network: Any) -> dict[str, Tensor]:
    """The weights without a transformer's pooler: nothing reads it, and it is random where the files have none."""
    return {name: value for name, value in network.state_dict().items() if not name.startswith("pooler.")}


def _picture_encoder(weights: str, network: Any, embed: Callable[[Tensor], Tensor]) -> Encoder:
    processor = _loaded(AutoImageProcessor.from_pretrained, weights)

    def encode(pictures: Sequence[Any]) -> Tensor:
        pixels = processor(images=[picture.convert("RGB") for picture in pictures], return_tensors="pt").pixel_values
        with torch.inference_mode():
            return embed(pixels.to(network.device)).float().cpu()

    return Encoder(encode, _read_weights(network))


def open_clip(weights: str) -> Encoder:
    """CLIP's image embedding (Radford et al. 2021)."""
    network = _network(CLIPModel.from_pretrained, weights)

    def embed(pixels: Tensor) -> Tensor:
        embedded: Tensor = network.visual_projection(network.vision_model(pixel_values=pixels).pooler_output)
        return embedded

    return _picture_encoder(weights, network, embed)


def open_clip_text(weights: str) -> Encoder:
    """CLIP's text embedding of captions."""
    network = _network(CLIPModel.from_pretrained, weights)
    tokenizer = _loaded(AutoTokenizer.from_pretrained, weights)
    limit = network.config.text_config.max_position_embeddings

    def encode(captions: Sequence[Any]) -> Tensor:
        batch = tokenizer(list(captions), padding=True, truncation=True, max_length=limit, return_tensors="pt")
        batch = batch.to(network.device)
        with torch.inference_mode():
            hidden = network.text_model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
            embedded: Tensor = network.text_projection(hidden.pooler_output)
        return embedded.float().cpu()

    return Encoder(encode, _read_weights(network))


def open_vit(weights: str) -> Encoder:
    """The class token after the last layer of a vision transformer: DINO (Caron et al. 2021), DINOv2 (Oquab et al.)."""
    network = _network(AutoModel.from_pretrained, weights)

    def embed(pixels: Tensor) -> Tensor:
        token: Tensor = network(pixel_values=pixels).last_hidden_state[:, 0]
        return token

    return _picture_encoder(weights, network, embed)


def open_mapper(weights: str) -> Encoder:
    """The linear map of Wang et al. 2023 over another feature's vectors.

    `mapper.weight` and `mapper.bias` of a state dict: a `.safetensors` file, or torch's, read as tensors only.
    """
    path = Path(weights)

    def load(name: str) -> dict[str, Tensor]:
        held: dict[str, Any] = (
            {**load_file(name)} if path.suffix == ".safetensors" else torch.load(name, "cpu", weights_only=True)
        )
        held = held.get("state_dict", held)
        return {part: held[key] for key in held for part in ("weight", "bias") if key.endswith(f"mapper.{part}")}

    mapper = _loaded(load, weights)
    if set(mapper) != {"weight", "bias"}:
        raise WeightsUnavailable(
            f"{weights!r} holds no `mapper.weight` and `mapper.bias`; name a linear mapper's checkpoint"
        )

    def encode(vectors: Sequence[Any]) -> Tensor:
        return linear(
            torch.as_tensor(np.asarray(vectors), dtype=torch.float32), mapper["weight"].float(), mapper["bias"].float()
        )

    return Encoder(encode, mapper)


def open_towers(weights: str) -> Encoder:
    """The two networks that `python -m attribution distill` trained; see `index.towers`."""
    towers = Towers.read(weights)
    return Encoder(towers.images, towers.weights, towers.queries, json.dumps(towers.told))


CLIP, DINO = "openai/clip-vit-base-patch32", "facebook/dino-vitb16"
FEATURES: dict[str, Feature] = {
    "clip": Feature("CLIP image embeddings", "Radford et al. 2021", "images", CLIP, open_clip),
    "clip-text": Feature(
        "CLIP text embeddings: captions against the prompt", "Radford et al. 2021", "captions", CLIP, open_clip_text
    ),
    "dino": Feature("DINO class tokens", "Caron et al. 2021", "images", DINO, open_vit),
    "dinov2": Feature(
        "DINOv2 class tokens",
        "Oquab et al. 2024; Darcet et al. 2024",
        "images",
        "facebook/dinov2-with-registers-large",
        open_vit,
    ),
    "clip-abc": Feature(
        "CLIP, mapped linearly for attribution", "Wang et al. 2023", "images", None, open_mapper, "clip"
    ),
    "dino-abc": Feature(
        "DINO, mapped linearly for attribution", "Wang et al. 2023", "images", None, open_mapper, "dino"
    ),
    "fast": Feature(
        "DINO and CLIP text embeddings, placed by networks that learned the default method's rankings",
        "after Wang et al. 2025",
        "images",
        None,
        open_towers,
        joins=("dino", "clip-text"),
    ),
}


@lru_cache(maxsize=8)
def open_feature(name: str, weights: str) -> Encoder:
    """The encoder of a feature, loaded once.

    Raises:
        InputError: there is no such feature.
        WeightsUnavailable: its weights cannot be had.
    """
    if name not in FEATURES:
        raise InputError(f"there is no feature {name!r}; accepted are {', '.join(FEATURES)}")
    return FEATURES[name].open(weights)


def pixel_vectors(images: Iterable[Image.Image]) -> NDArray[np.uint8]:
    """Flattened RGB intensities at PIXEL_SIDE px: (n, PIXEL_SIDE, PIXEL_SIDE, 3)."""
    side = (PIXEL_SIDE, PIXEL_SIDE)
    small = (image.convert("RGB").resize(side, Image.Resampling.BOX) for image in images)
    return np.stack([np.asarray(image) for image in small])
