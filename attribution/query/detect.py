"""Objects in a picture by their names: by a GroundingDINO, or by cross-attention where none can be had."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from urllib.request import Request, urlopen

from huggingface_hub import hf_hub_url, is_offline_mode, try_to_load_from_cache
from PIL import Image

from attribution.diffusion.attention import inside, word_map
from attribution.diffusion.pictures import to_pixels, to_square
from attribution.diffusion.pipeline import Model
from attribution.errors import InputError, WeightsUnavailable
from attribution.index.index import Index
from attribution.query.grounding import PUBLISHED, PUBLISHED_FILE, THRESHOLD, Detection, Detector, open_detector
from attribution.query.labels import check_labels
from attribution.query.regions import mask_box

HUB_WAIT = 5.0  # seconds


@dataclass(frozen=True)
class Found:
    """Objects found in a picture, best first, and what found them, in words."""

    detections: list[Detection]
    by: str


def find(
    model: Model,
    index: Index,
    image: Image.Image,
    labels: Sequence[str],
    prompt: str,
    threshold: float | None = None,
    source: str | None = None,
) -> Found:
    """Find objects: by a GroundingDINO, or, where none can be had, by cross-attention to the prompt's words.

    Args:
        model: the index's.
        index: a folder `detector` beside it is used before the published weights.
        image: the picture.
        labels: names.
        prompt: of the picture.
        threshold: the detector's own if None.
        source: of a detector; then no other is tried.

    Raises:
        InputError: a label or the threshold is not acceptable, or neither a detector nor the prompt knows any label.
        WeightsUnavailable: `source` cannot be loaded.
    """
    labels = check_labels(labels)
    detector = open_detector(source) if source else _if_there(_default_source(index))
    if detector is None:
        return _by_attention(model, index, image, labels, prompt)
    return Found(detector.detect(image, labels, threshold), "Found by GroundingDINO.")


def detector_threshold(index: Index, source: str | None = None) -> float:
    """The threshold of the detector that `find` would use, without loading its weights."""
    config = Path(source or _default_source(index)) / "config.json"
    if not config.is_file():
        return THRESHOLD
    return float(json.loads(config.read_text(encoding="utf-8")).get("threshold", THRESHOLD))


def _default_source(index: Index) -> str:
    beside = index.path.resolve().parent / "detector"
    return str(beside) if beside.is_dir() else PUBLISHED


def _by_attention(model: Model, index: Index, image: Image.Image, labels: Sequence[str], prompt: str) -> Found:
    """One box for each label that the prompt has; its score is the share of the attention map inside."""
    square, frame = to_square(image, model.resolution, index.center_crop)
    latents = model.encode_images(to_pixels([square]))
    found, unknown = [], None
    for label in labels:
        try:
            mask = word_map(model, latents, prompt, label)
        except InputError as error:
            unknown = error
            continue
        x0, y0, x1, y1 = inside(mask)
        share = float(mask[y0:y1, x0:x1].sum() / mask.sum().clamp(min=1e-12))
        found.append(Detection(label, share, mask_box(mask, model, frame)))
    if unknown and not found:
        raise unknown
    words = "Found by cross-attention to the prompt's words: no GroundingDINO can be had here (see --detector)."
    return Found(sorted(found, key=lambda each: -each.score), words)


@lru_cache(maxsize=2)
def _if_there(source: str) -> Detector | None:
    """A detector, looked for once: where no hub answers, every look waits as long as the network does."""
    try:
        return open_detector(source) if Path(source).exists() or can_be_had() else None
    except WeightsUnavailable:
        return None


def can_be_had() -> bool:
    """Whether the published weights are on this machine, or the hub answers within HUB_WAIT: a download waits."""
    if isinstance(try_to_load_from_cache(PUBLISHED, PUBLISHED_FILE), str):
        return True
    if is_offline_mode():
        return False
    try:
        with urlopen(Request(hf_hub_url(PUBLISHED, PUBLISHED_FILE), method="HEAD"), timeout=HUB_WAIT):
            return True
    except OSError:
        return False
