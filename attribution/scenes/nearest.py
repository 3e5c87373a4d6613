"""The embedded feature networks, a CLIP and a ViT: how they are made and saved, and what they find.

Nearest is by cosine similarity. Measured are a caption's own scene, scenes that share objects with a scene, and scenes
that hold the object of a crop, beside two baselines: intensities at half the side, and chance.
"""

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPTokenizer,
    CLIPVisionConfig,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)
from transformers.models.clip import CLIPConfig

from attribution.files import assets_folder
from attribution.scenes.compose import OBJECTS, SIZE, Scene
from attribution.scenes.judge import labels
from attribution.scenes.networks import MAX_TOKENS
from attribution.scenes.pictures import to_unit
from attribution.scenes.views import Pool, look

PATCH = 8  # px
HALF = [0.5, 0.5, 0.5]
SQUARE = {"height": SIZE, "width": SIZE}


def shipped_tokenizer() -> CLIPTokenizer:
    """The tokenizer of the embedded pipeline."""
    return CLIPTokenizer.from_pretrained(str(assets_folder() / "emoji-scenes/model/tokenizer"))


def sizes(width: int, layers: int) -> dict[str, int]:
    """Of a transformer with heads of 32, as configurations name them."""
    depth = {"num_hidden_layers": layers, "num_attention_heads": width // 32}
    return {"hidden_size": width, "intermediate_size": 4 * width, **depth}


def make_clip(tokenizer: CLIPTokenizer, width: int, layers: int) -> CLIPModel:
    """A CLIP of SIZE px pictures and MAX_TOKENS tokens, projected to 64 dimensions."""
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    words = {"vocab_size": len(tokenizer), "max_position_embeddings": MAX_TOKENS, **special}
    text = CLIPTextConfig(**words, **sizes(width, max(1, layers - 1)))
    vision = CLIPVisionConfig(image_size=SIZE, patch_size=PATCH, **sizes(width, layers))
    return CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=64))


def make_vit(width: int, layers: int) -> ViTModel:
    """A ViT of SIZE px pictures; its class token is the feature."""
    return ViTModel(ViTConfig(image_size=SIZE, patch_size=PATCH, **sizes(width, layers)), add_pooling_layer=False)


def save_clip(model: CLIPModel, tokenizer: CLIPTokenizer, out: Path) -> None:
    """Write the CLIPModel folder in float16, with its tokenizer and image processor."""
    deepcopy(model).half().save_pretrained(out)
    tokenizer.save_pretrained(out)
    tokenizer.backend_tokenizer.model.save(str(out))  # vocab.json and merges.txt, for older readers
    processor = CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size=SQUARE, image_mean=HALF, image_std=HALF)
    processor.save_pretrained(out)


def save_vit(model: ViTModel, out: Path) -> None:
    """Write the ViTModel folder in float16, with its image processor."""
    deepcopy(model).half().save_pretrained(out)
    ViTImageProcessor(size=SQUARE, image_mean=HALF, image_std=HALF).save_pretrained(out)


def class_token(vit: ViTModel, pictures: Tensor) -> Tensor:
    """(B, width) last hidden state of the class token; pictures of any side that is a multiple of PATCH."""
    token: Tensor = vit(pictures, interpolate_pos_encoding=True).last_hidden_state[:, 0]
    return token


@torch.inference_mode()
def clip_features(model: CLIPModel, pixels: Tensor) -> Tensor:
    """(N, 64) projected image features of (N, 3, SIZE, SIZE) uint8 pictures."""
    return torch.cat([model.get_image_features(to_unit(part)).pooler_output for part in pixels.split(128)])


@torch.inference_mode()
def dino_features(vit: ViTModel, pixels: Tensor) -> Tensor:
    """(N, width) class tokens of (N, 3, SIZE, SIZE) uint8 pictures."""
    return torch.cat([class_token(vit, to_unit(part)) for part in pixels.split(128)])


def pixel_features(pixels: Tensor) -> Tensor:
    """(N, 3072) intensities at half the side, as the pixel baseline compares them."""
    return functional.avg_pool2d(pixels.float(), 2).flatten(1)


@torch.inference_mode()
def recall(model: CLIPModel, tokenizer: CLIPTokenizer, pool: Pool) -> dict[str, float]:
    """Text to image: share of captions whose own scene is among the 1 and 10 most similar."""
    ids = tokenizer([scene.caption for scene in pool.scenes], padding=True, return_tensors="pt").input_ids
    texts = functional.normalize(model.get_text_features(ids).pooler_output)
    like = texts @ functional.normalize(clip_features(model, pool.pixels)).T
    rank = (like > like.diagonal()[:, None]).sum(1)
    return {f"recall@{k}": float((rank < k).float().mean()) for k in (1, 10)}


def scene_purity(features: Tensor, scenes: list[Scene]) -> dict[str, float]:
    """Of the ten nearest other scenes: share with an object in common, and mean Jaccard index of the object sets."""
    like = functional.normalize(features) @ functional.normalize(features).T
    return {name: float(m.gather(1, like.fill_diagonal_(-2).topk(10).indices).mean()) for name, m in overlaps(scenes)}


def overlaps(scenes: list[Scene]) -> list[tuple[str, Tensor]]:
    """(N, N) of sharing an object, and of the Jaccard index of the object sets."""
    held = labels(scenes)
    common = held @ held.T
    union = held.sum(1)[:, None] + held.sum(1) - common
    return [("shares_an_object", (common > 0).float()), ("jaccard", common / union)]


def object_queries(pool: Pool) -> tuple[Tensor, Tensor]:
    """Every object of every scene on a white square of SIZE px, (Q, 3, SIZE, SIZE) uint8, and its label."""
    rows = torch.tensor([row for row, scene in enumerate(pool.scenes) for _ in scene.objects])
    placed = [placed for scene in pool.scenes for placed in scene.objects]
    boxes = torch.tensor([one.box for one in placed], dtype=torch.float32)
    columns = torch.tensor([list(OBJECTS).index(one.name) for one in placed])
    return ((look(pool.pixels[rows], boxes) + 1) * 127.5).round().byte(), columns


def object_purity(queries: Tensor, training: Tensor, columns: Tensor, held: Tensor) -> float:
    """Share of the ten nearest training scenes that hold the query's object."""
    nearest = (functional.normalize(queries) @ functional.normalize(training).T).topk(10).indices
    return float(held[nearest, columns[:, None]].mean())


def report(pool: Pool, heldout: Pool, out: Path, work: Path) -> dict[str, Any]:
    """Measure the folders in `out`, trained in `work`, on training and held-out scenes; writes `encoders.json`."""
    clip = CLIPModel.from_pretrained(out / "clip", dtype=torch.float32).eval()
    vit = ViTModel.from_pretrained(out / "dino", dtype=torch.float32, add_pooling_layer=False).eval()
    tokenizer = CLIPTokenizer.from_pretrained(out / "clip")
    crops, columns = object_queries(heldout)
    held, others = labels(pool.scenes), ~torch.eye(len(heldout.scenes), dtype=torch.bool)
    features: dict[str, Callable[[Tensor], Tensor]] = {
        "clip": lambda pixels: clip_features(clip, pixels),
        "dino": lambda pixels: dino_features(vit, pixels),
        "pixels": pixel_features,
    }
    measured = {
        "clip_text_to_image": recall(clip, tokenizer, heldout) | {"scenes": len(heldout.scenes)},
        "heldout_scenes_nearest_10": {
            **{name: scene_purity(of(heldout.pixels), heldout.scenes) for name, of in features.items()},
            "chance": {name: float(m[others].mean()) for name, m in overlaps(heldout.scenes)},
        },
        "object_crops_nearest_10": {
            **{name: object_purity(of(crops), of(pool.pixels), columns, held) for name, of in features.items()},
            "chance": float(held.mean(0)[columns].mean()),
        },
        **{name: effort(model, work / f"{name}.pt") for name, model in (("clip", clip), ("dino", vit))},
    }
    (out / "encoders.json").write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    return measured


def effort(model: nn.Module, checkpoint: Path) -> dict[str, float]:
    """Parameters of a network, and the minutes and steps of its training."""
    state = torch.load(checkpoint, weights_only=True)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {"parameters": parameters, "minutes": round(state["seconds"] / 60, 1), "steps": state["step"]}
