"""The embedded feature networks, a CLIP and a ViT: how they are made and saved, and what they find.

Nearest is by cosine similarity. Measured are a caption's own scene, scenes that share objects with a scene, and scenes
that hold the object of a crop, beside two baselines: intensities, and chance. The report shows the networks the
world's own pictures, whole or cropped, as the methods do: their image processors reduce these to SEEN.
"""

import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
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
from attribution.index.features import open_feature, pixel_vectors
from attribution.query.regions import crop
from attribution.scenes.compose import SEEN, Scene, draw_scene
from attribution.scenes.judge import labels
from attribution.scenes.names import OBJECTS
from attribution.scenes.networks import MAX_TOKENS
from attribution.scenes.pictures import to_unit
from attribution.scenes.views import Pool

PATCH = SEEN.lattice  # px
HALF = [0.5, 0.5, 0.5]
REPORT = "encoders.json"
SQUARE = {"height": SEEN.side, "width": SEEN.side}


def shipped_tokenizer() -> CLIPTokenizer:
    """The tokenizer of the embedded pipeline."""
    return CLIPTokenizer.from_pretrained(str(assets_folder() / "emoji-scenes/model/tokenizer"))


def sizes(width: int, layers: int) -> dict[str, int]:
    """Of a transformer with heads of 32, as configurations name them."""
    depth = {"num_hidden_layers": layers, "num_attention_heads": width // 32}
    return {"hidden_size": width, "intermediate_size": 4 * width, **depth}


def make_clip(tokenizer: CLIPTokenizer, width: int, layers: int) -> CLIPModel:
    """A CLIP of pictures as large as SEEN and MAX_TOKENS tokens, projected to 64 dimensions."""
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    words = {"vocab_size": len(tokenizer), "max_position_embeddings": MAX_TOKENS, **special}
    text = CLIPTextConfig(**words, **sizes(width, max(1, layers - 1)))
    vision = CLIPVisionConfig(image_size=SEEN.side, patch_size=PATCH, **sizes(width, layers))
    return CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=64))


def make_vit(width: int, layers: int) -> ViTModel:
    """A ViT of pictures as large as SEEN; its class token is the feature."""
    return ViTModel(ViTConfig(image_size=SEEN.side, patch_size=PATCH, **sizes(width, layers)), add_pooling_layer=False)


def save_clip(model: CLIPModel, tokenizer: CLIPTokenizer, out: Path) -> None:
    """Write the CLIPModel folder in float16, with its tokenizer and image processor."""
    deepcopy(model).half().save_pretrained(out)
    tokenizer.save_pretrained(out)
    tokenizer.backend_tokenizer.model.save(str(out))  # vocab.json and merges.txt, for older readers
    processor = CLIPImageProcessor(size={"shortest_edge": SEEN.side}, crop_size=SQUARE, image_mean=HALF, image_std=HALF)
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
def dino_features(vit: ViTModel, pixels: Tensor) -> Tensor:
    """(N, width) class tokens of (N, 3, side, side) uint8 pictures as large as SEEN."""
    return torch.cat([class_token(vit, to_unit(part)) for part in pixels.split(128)])


@torch.inference_mode()
def recall_in(model: CLIPModel, tokenizer: CLIPTokenizer, pool: Pool) -> dict[str, float]:
    """The `recall` of a model in training."""
    ids = tokenizer([scene.caption for scene in pool.scenes], padding=True, return_tensors="pt").input_ids
    parts = [model.get_image_features(to_unit(part)).pooler_output for part in pool.pixels.split(128)]
    return recall(model.get_text_features(ids).pooler_output, torch.cat(parts))


def recall(texts: Tensor, pictures: Tensor) -> dict[str, float]:
    """Text to image, (N, D) features each: share of captions whose own scene is among the 1 and 10 most similar."""
    like = functional.normalize(texts) @ functional.normalize(pictures).T
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


def object_queries(scenes: list[Scene]) -> tuple[list[Image.Image], Tensor]:
    """Every object of every scene, cut out as the region of a query is, and its label."""
    crops = [crop(draw_scene(scene), [one.box]) for scene in scenes for one in scene.objects]
    columns = [list(OBJECTS).index(one.name) for scene in scenes for one in scene.objects]
    return crops, torch.tensor(columns)


def object_purity(queries: Tensor, training: Tensor, columns: Tensor, held: Tensor) -> float:
    """Share of the ten nearest training scenes that hold the query's object."""
    nearest = (functional.normalize(queries) @ functional.normalize(training).T).topk(10).indices
    return float(held[nearest, columns[:, None]].mean())


def in_parts(encode: Callable[[list[Any]], Tensor], things: list[Any]) -> Tensor:
    """(N, D) of pictures or captions, so many at a time."""

    def parts() -> Iterator[Tensor]:
        for start in range(0, len(things), 128):
            yield encode(things[start : start + 128])

    return torch.cat(list(parts()))


def report(scenes: list[Scene], heldout: list[Scene], out: Path, work: Path) -> dict[str, Any]:
    """Measure the folders in `out`, trained in `work`, on training and held-out scenes; writes `encoders.json`."""
    crops, columns = object_queries(heldout)
    training, pictures = ([draw_scene(scene) for scene in split] for split in (scenes, heldout))
    held, others = labels(scenes), ~torch.eye(len(heldout), dtype=torch.bool)
    features: dict[str, Callable[[list[Any]], Tensor]] = {
        "clip": open_feature("clip", str(out / "clip")),
        "dino": open_feature("dino", str(out / "dino")),
        "pixels": lambda images: torch.from_numpy(pixel_vectors(images)).flatten(1).float(),
    }
    seen = {name: [in_parts(of, each) for each in (pictures, crops, training)] for name, of in features.items()}
    texts = in_parts(open_feature("clip-text", str(out / "clip")), [scene.caption for scene in heldout])
    measured = {
        "clip_text_to_image": recall(texts, seen["clip"][0]) | {"scenes": len(heldout)},
        "heldout_scenes_nearest_10": {
            **{name: scene_purity(whole, heldout) for name, (whole, _, _) in seen.items()},
            "chance": {name: float(m[others].mean()) for name, m in overlaps(heldout)},
        },
        "object_crops_nearest_10": {
            **{name: object_purity(cut, known, columns, held) for name, (_, cut, known) in seen.items()},
            "chance": float(held.mean(0)[columns].mean()),
        },
        **{name: effort(out, name, work / f"{name}.pt") for name in ("clip", "dino")},
    }
    (out / REPORT).write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    return measured


def effort(out: Path, name: str, checkpoint: Path) -> dict[str, float]:
    """Parameters of a network, and the minutes and steps of its training: as reported before, without a checkpoint."""
    if not checkpoint.exists():
        before: dict[str, float] = json.loads((out / REPORT).read_text(encoding="utf-8"))[name]
        return before
    state = torch.load(checkpoint, weights_only=True)
    parameters = sum(value.numel() for value in load_file(out / name / "model.safetensors").values())
    return {"parameters": parameters, "minutes": round(state["seconds"] / 60, 1), "steps": state["step"]}
