"""A query as the methods read it: encoded once, shared by all of them."""

from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from attribution.diffusion.attention import word_map
from attribution.diffusion.pictures import to_pixels, to_square
from attribution.diffusion.pipeline import Model
from attribution.query.query import Query
from attribution.query.regions import box_mask, crop, mask_box


@dataclass(frozen=True)
class Encoded:
    """A query in the model's terms.

    Attributes:
        query: what was asked.
        latents: (1, C, h, w) of its picture.
        text: (1, L, D) of its prompt.
        mask: (h, w) in [0, 1], how much each latent cell counts; None for the whole picture.
        crop: what feature baselines look at: the square around the region, or the model's square of the picture.
    """

    query: Query
    latents: Tensor
    text: Tensor
    mask: Tensor | None
    crop: Image.Image


def encode(model: Model, query: Query, center_crop: bool = True) -> Encoded:
    """Encode a query with the pretrained model.

    Args:
        model: at its pretrained weights.
        query: one that `check_query` lets pass.
        center_crop: cut the picture's middle square; otherwise squeeze it.

    Raises:
        InputError: a box or the word is not possible.
    """
    square, frame = to_square(query.image, model.resolution, center_crop)
    latents, text = model.encode_images(to_pixels([square])), model.encode_text([query.prompt])
    if query.word is not None:
        attended = word_map(model, latents, query.prompt, query.word)
        return Encoded(query, latents, text, attended, crop(query.image, [mask_box(attended, model, frame)]))
    seen = crop(query.image, query.boxes) if query.boxes else square
    return Encoded(query, latents, text, box_mask(query, model, center_crop), seen)
