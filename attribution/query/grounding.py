"""GroundingDINO (Liu et al. 2023), through groundingdino-py's own classes.

A detector is a folder of `config.json` and one weights file, or the published checkpoint (a `.pth` file or the hub's).
`config.json` has the keys of the package's configuration files, and may also hold `swin` and `bert` (arguments of the
two backbones), `side` and `longest` (px, of the resized picture) and `threshold`.
"""

import importlib
import json
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.ops import box_convert, nms
from torchvision.transforms.functional import normalize, resize, to_tensor
from transformers import AutoTokenizer, BertConfig, BertModel

from attribution.diffusion.pipeline import default_device
from attribution.errors import HUB, InputError, WeightsUnavailable, reason
from attribution.query.labels import caption_of, check_labels, check_threshold
from attribution.query.query import Box

PUBLISHED = "ShilongLiu/GroundingDINO"
PUBLISHED_FILE = "groundingdino_swint_ogc.pth"
PUBLISHED_CONFIGS = {96: "GroundingDINO_SwinT_OGC", 128: "GroundingDINO_SwinB_cfg"}  # by the Swin's width
PUBLISHED_SWINS: dict[int, dict[str, Any]] = {
    96: {"embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24], "window_size": 7},
    128: {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32], "window_size": 12},
}


UNUSED = r"(^|\.)(position_ids|label_enc\..*)$"  # entries of published checkpoints that no layer reads
SHORTER, LONGEST, THRESHOLD = 800, 1333, 0.35  # of the published model
MEAN, DEVIATION = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
MAX_TOKENS = 256
SAME = 0.5  # IoU above which two boxes of one label are one object


@dataclass(frozen=True)
class Detection:
    """An object found.

    Attributes:
        label: one of those looked for.
        score: 0 to 1.
        box: `x0, y0, x1, y1` in pixels of the picture, ends exclusive.
    """

    label: str
    score: float
    box: Box


class TextEncoder(nn.Module):
    """BERT under its published names, in place of groundingdino-py's wrapper, which transformers 5 has outgrown."""

    def __init__(self, bert_model: Any) -> None:
        super().__init__()
        self.config = bert_model.config
        self.embeddings, self.encoder, self.pooler = bert_model.embeddings, bert_model.encoder, bert_model.pooler

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor, position_ids: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Hidden states (B, L, D); the mask is (B, L), or (B, L, L) of which token attends to which."""
        embedded = self.embeddings(input_ids=input_ids, token_type_ids=token_type_ids, position_ids=position_ids)
        shown = attention_mask[:, None] if attention_mask.dim() == 3 else attention_mask[:, None, None]
        hidden = (1 - shown.to(embedded.dtype)) * torch.finfo(embedded.dtype).min
        return {"last_hidden_state": self.encoder(embedded, attention_mask=hidden).last_hidden_state}


class Detector:
    """A GroundingDINO, its tokenizer and how its pictures are prepared."""

    def __init__(self, network: Any, config: dict[str, Any]) -> None:
        self.network = network.eval().requires_grad_(False)
        self.side: int = config.get("side", SHORTER)
        self.longest: int = config.get("longest", LONGEST)
        self.threshold: float = config.get("threshold", THRESHOLD)

    def detect(self, image: Image.Image, labels: Sequence[str], threshold: float | None = None) -> list[Detection]:
        """Find objects, best first.

        Args:
            image: RGB, upright.
            labels: 1 to MAX_LABELS names, without full stops and question marks.
            threshold: 0 to 1, the least score; None is the detector's own.

        Raises:
            InputError: a label or the threshold is not acceptable, or the labels are too many to be read at once.
        """
        labels = check_labels(labels)
        least = self.threshold if threshold is None else check_threshold(threshold)
        text, spans = caption_of(labels)
        tokens = token_spans(self.network.tokenizer, text, spans)
        with torch.inference_mode():
            out = self.network(self.prepare(image)[None], captions=[text])
        logits, boxes = (out[key][0].float().cpu() for key in ("pred_logits", "pred_boxes"))
        return read(logits, boxes, labels, tokens, least, image.size)

    def prepare(self, image: Image.Image) -> Tensor:
        """(3, H, W) normalised pixels, the shorter side `self.side` unless the longer would exceed `self.longest`."""
        shorter, longer = sorted(image.size)
        side = min(self.side, max(1, int(self.longest * shorter / longer)))
        pixels: Tensor = normalize(to_tensor(resize(image.convert("RGB"), [side])), MEAN, DEVIATION)
        return pixels.to(next(self.network.parameters()).device)


def read(
    logits: Tensor,
    boxes: Tensor,
    labels: Sequence[str],
    tokens: Sequence[slice],
    threshold: float,
    size: tuple[int, int],
) -> list[Detection]:
    """Detections of a network's output: each query goes to its best label, boxes of one label that overlap become one.

    Args:
        logits: (Q, L) of queries and tokens.
        boxes: (Q, 4) centre and sides, as shares of the picture.
        labels: that were looked for.
        tokens: of each label; its score is its best token's.
        threshold: the least score.
        size: (width, height) of the picture in px.
    """
    scores, best = torch.stack([logits[:, span].sigmoid().amax(1) for span in tokens], 1).max(1)
    kept = (scores >= threshold).nonzero()[:, 0]
    scores, best = scores[kept], best[kept]
    scale = torch.tensor([*size, *size], dtype=boxes.dtype)
    corners = box_convert(boxes[kept], "cxcywh", "xyxy").clamp(0, 1) * scale
    found = []
    for number, label in enumerate(labels):
        rows = (best == number).nonzero()[:, 0]
        for row in rows[nms(corners[rows], scores[rows], SAME)]:
            x0, y0, x1, y1 = corners[row].tolist()
            found.append(Detection(label, float(scores[row]), (x0, y0, x1, y1)))
    return sorted(found, key=lambda each: -each.score)


def token_spans(tokenizer: Any, text: str, spans: Sequence[tuple[int, int]]) -> list[slice]:
    """The tokens of each span of characters.

    Raises:
        InputError: they are more than are read, or a span has none.
    """
    encoded = tokenizer(text)
    count = len(encoded["input_ids"])
    if count > MAX_TOKENS:
        raise InputError(f"the labels are {count} tokens long; accepted are up to {MAX_TOKENS}")
    found = []
    for start, end in spans:
        first, last = encoded.char_to_token(start), encoded.char_to_token(end - 1)
        if first is None or last is None:
            raise InputError(f"the label {text[start:end][:60]!r} has no token that the detector knows")
        found.append(slice(first, last + 1))
    return found


@lru_cache(maxsize=2)
def open_detector(source: str = PUBLISHED, device: torch.device | None = None) -> Detector:
    """Load a detector once.

    Args:
        source: a folder of `config.json` and weights, a published `.pth` file, or a hub id.
        device: default_device() if None.

    Raises:
        WeightsUnavailable: it cannot be had.
    """
    try:
        config, folder, state = _source(source)
        network = build(config, folder)
        held = {re.sub(r"^module\.", "", name): value for name, value in state.items()}
        _fill(network, held)
    except Exception as error:  # torch, safetensors, the hub and the package raise a dozen kinds
        raise WeightsUnavailable(
            f"no GroundingDINO could be loaded from {source!r} ({reason(error)}); name a folder or a .pth file with"
            f" --detector, or use {HUB}"
        ) from error
    return Detector(network.to(device or default_device()), config)


def build(config: dict[str, Any], folder: Path | None = None) -> Any:
    """A GroundingDINO with random weights.

    Args:
        config: keys of groundingdino-py's configuration files, and `swin`.
        folder: of the tokenizer; None is the one that `config` names.
    """
    backbone, swin, position, transformer, dino = _package()
    named = SimpleNamespace(**{**config, "use_checkpoint": False, "use_transformer_ckpt": False})
    body = swin.SwinTransformer(**named.swin, out_indices=tuple(named.return_interm_indices))
    joined = backbone.Joiner(body, position.build_position_encoding(named))
    joined.num_channels = [body.num_features[level] for level in named.return_interm_indices]
    with _language_model(dino, config, folder):
        return dino.GroundingDINO(
            joined,
            transformer.build_transformer(named),
            num_queries=named.num_queries,
            aux_loss=True,
            iter_update=True,
            query_dim=named.query_dim,
            num_feature_levels=named.num_feature_levels,
            nheads=named.nheads,
            dec_pred_bbox_embed_share=named.dec_pred_bbox_embed_share,
            two_stage_type=named.two_stage_type,
            two_stage_bbox_embed_share=named.two_stage_bbox_embed_share,
            two_stage_class_embed_share=named.two_stage_class_embed_share,
            text_encoder_type=named.text_encoder_type,
            sub_sentence_present=named.sub_sentence_present,
            max_text_len=named.max_text_len,
        )


@cache
def _package() -> tuple[Any, ...]:
    """The package's modules; opencv and the rest take seconds to import."""
    warnings.filterwarnings("ignore", "Importing from timm.models.layers", FutureWarning)
    warnings.filterwarnings("ignore", "torch.meshgrid", UserWarning)
    warnings.filterwarnings("ignore", "`torch.cuda.amp.autocast", FutureWarning)
    warnings.filterwarnings("ignore", "invalid escape sequence", SyntaxWarning)
    folder = "groundingdino.models.GroundingDINO"
    parts = ("backbone.backbone", "backbone.swin_transformer", "backbone.position_encoding", "transformer")
    return tuple(importlib.import_module(f"{folder}.{name}") for name in (*parts, "groundingdino"))


@contextmanager
def _language_model(dino: Any, config: dict[str, Any], folder: Path | None) -> Iterator[None]:
    """Hand our text encoder and a tokenizer to the package, whose own way to them fails under transformers 5."""
    loaders: Any = importlib.import_module("groundingdino.util.get_tokenlizer")
    before = loaders.get_tokenlizer, loaders.get_pretrained_language_model, dino.BertModelWarper
    loaders.get_tokenlizer = lambda name: AutoTokenizer.from_pretrained(folder or name)
    loaders.get_pretrained_language_model = lambda _: BertModel(BertConfig(**config.get("bert", {})))
    dino.BertModelWarper = TextEncoder
    try:
        yield
    finally:
        loaders.get_tokenlizer, loaders.get_pretrained_language_model, dino.BertModelWarper = before


def _source(source: str) -> tuple[dict[str, Any], Path | None, dict[str, Tensor]]:
    """Configuration, folder of the tokenizer and weights."""
    path = Path(source)
    if path.is_dir():
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        files = sorted([*path.glob("*.safetensors"), *path.glob("*.pth")])
        if not files:
            raise FileNotFoundError(f"{source} has no .safetensors or .pth file")
        return config, path if (path / "tokenizer.json").exists() else None, _weights(files[0])
    if path.suffix != ".pth":
        path = Path(hf_hub_download(source, PUBLISHED_FILE))
    state = _weights(path)
    width = next(len(value) for name, value in state.items() if name.endswith("patch_embed.proj.weight"))
    published = vars(importlib.import_module(f"groundingdino.config.{PUBLISHED_CONFIGS[width]}"))
    config = {name: value for name, value in published.items() if not name.startswith("_")}
    return {**config, "swin": PUBLISHED_SWINS[width]}, None, state


def _fill(network: Any, state: dict[str, Tensor]) -> None:
    """Load weights; a layer that shares its weights with another needs them under one name alone."""
    result = network.load_state_dict(state, strict=False)
    places = {name: value.data_ptr() for name, value in network.state_dict().items()}
    filled = {places[name] for name in state if name in places}
    missing = [name for name in result.missing_keys if places[name] not in filled]
    unknown = [name for name in result.unexpected_keys if not re.search(UNUSED, name)]
    if missing or unknown:
        raise ValueError(f"{(missing or unknown)[0]} is {'missing' if missing else 'unknown'}")


def _weights(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return {name: value.float() for name, value in load_file(path).items()}
    held = torch.load(path, "cpu", weights_only=True)
    state: dict[str, Tensor] = held.get("model", held)
    return state
