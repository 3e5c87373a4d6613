"""What the feature networks see of EmojiScenes.

A view is a box of a scene on a white square, resized: the whole scene, a crop, or one object, as a region of a query
is. Views for CLIP have captions; those for DINO are mirrored and recoloured on repainted backgrounds, and its local
views are taken where there is something to see.

All of it is as large as networks see a scene, SEEN; what they are given later, their image processors reduce to that.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from attribution.scenes.compose import SEEN, Scene, caption, draw_scene, make_scenes
from attribution.scenes.pictures import mirror_half, to_unit

SIZE, CELL, LATTICE = SEEN.side, SEEN.cell, SEEN.lattice
WHOLE = (0, 0, SIZE, SIZE)
CROP = 5 * LATTICE  # least side of a large crop


@dataclass(frozen=True)
class Pool:
    """Composed scenes; `pixels` are (N, 3, SIZE, SIZE) uint8."""

    scenes: list[Scene]
    pixels: Tensor

    @classmethod
    def compose(cls, scenes: list[Scene]) -> "Pool":
        """Draw the scenes."""
        pictures = np.stack([np.asarray(draw_scene(scene)) for scene in scenes])
        return cls(scenes, torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous())


def pools(training: int, heldout: int) -> tuple[Pool, Pool]:
    """So many training and held-out scenes."""
    return (
        Pool.compose(make_scenes("train", training, world=SEEN)),
        Pool.compose(make_scenes("heldout", heldout, world=SEEN)),
    )


def likeness(scenes: list[Scene]) -> list[Tensor]:
    """Rows of the scenes that share style and background, for batches that only objects tell apart."""
    groups: dict[tuple[str, str], list[int]] = {}
    for row, scene in enumerate(scenes):
        groups.setdefault((scene.style, scene.background), []).append(row)
    return [torch.tensor(rows) for rows in groups.values()]


def look(pixels: Tensor, boxes: Tensor, side: int = SIZE) -> Tensor:
    """Each picture's box, padded with white to a square and resized bilinearly.

    Args:
        pixels: (B, 3, SIZE, SIZE) uint8.
        boxes: (B, 4) x0, y0, x1, y1 in px.
        side: of the view, px.

    Returns:
        (B, 3, side, side) float32 in [-1, 1].
    """
    low, high = boxes[:, :2, None], boxes[:, 2:, None]
    steps = (torch.arange(side) + 0.5) / side - 0.5
    points = (low + high) / 2 + (high - low).amax(1, keepdim=True) * steps  # (B, 2, side) px
    x, y = points[:, 0, None, :].expand(-1, side, -1), points[:, 1, :, None].expand(-1, -1, side)
    inside = ((points >= low) & (points <= high)).unsqueeze(1)
    grid = torch.stack([x, y], -1) * 2 / SIZE - 1
    seen = functional.grid_sample(to_unit(pixels), grid, padding_mode="border", align_corners=False)
    return torch.where(inside[:, :, 0, None, :] & inside[:, :, 1, :, None], seen, 1.0)


def random_boxes(count: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    """(count, 4) boxes inside a scene with sides uniform in [low, high] px, half of them square."""
    sides = low + (high - low) * torch.rand(count, 2, generator=generator)
    square = torch.rand(count, 1, generator=generator) < 0.5
    sides = torch.where(square, sides[:, :1], sides)
    corner = (SIZE - sides) * torch.rand(count, 2, generator=generator)
    return torch.cat([corner, corner + sides], 1)


def busy_cells(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """(B, 4) boxes of CELL px on the lattice, likelier the less background (the corner's colour) they show."""
    shown = (pixels != pixels[:, :, :1, :1]).any(1, keepdim=True).float()
    shares = functional.avg_pool2d(shown, CELL, LATTICE)
    place = torch.multinomial(shares.flatten(1) ** 4, 1, generator=generator)
    corner = LATTICE * torch.cat([place % shares.shape[-1], place // shares.shape[-1]], 1).float()
    return torch.cat([corner, corner + CELL], 1)


def jitter(boxes: Tensor, low: float, high: float, generator: torch.Generator) -> Tensor:
    """Boxes with each edge moved outwards by between `low` and `high` px, but not out of the scene."""
    out = low + (high - low) * torch.rand(boxes.shape, generator=generator)
    return (boxes + out * torch.tensor([-1, -1, 1, 1])).clamp(0, SIZE)


def repaint(pixels: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Scenes on random light backgrounds, white at strength 0; background is what equals the corner."""
    shades = torch.rand(len(pixels), 3, 1, 1, generator=generator)
    paint = (255 - 96 * strength * shades).to(torch.uint8)
    return torch.where((pixels == pixels[:, :, :1, :1]).all(1, keepdim=True), paint, pixels)


def recolour(x: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Random hue, saturation, contrast and brightness of each (3, H, W) in [-1, 1]; some gray."""
    angle, saturation, contrast, brightness = strength * (torch.rand(4, len(x), 1, 1, generator=generator) - 0.5)
    colourless = torch.rand(len(x), 1, 1, generator=generator) < 0.05 * strength
    saturation = torch.where(colourless, 0.0, 1 + 0.8 * saturation)
    gray = torch.full((3, 3), 1 / 3)
    cross = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / 3**0.5
    turn = angle.cos() * torch.eye(3) + (1 - angle.cos()) * gray + angle.sin() * cross  # about the gray axis
    mix = (1 + 0.4 * contrast) * (saturation * turn + (1 - saturation) * gray)
    mixed: Tensor = (mix @ x.flatten(2)).view_as(x) + 0.2 * brightness[..., None]
    return mixed.clamp(-1, 1)


def captioned_boxes(scenes: list[Scene], generator: torch.Generator) -> tuple[list[str], Tensor]:
    """Each scene's caption and the whole scene, or, for two in five, one object's own caption and about its box."""
    chance, which = torch.rand(2, len(scenes), generator=generator)
    whole = chance < 0.6
    placed = [scene.objects[int(at * len(scene.objects))] for scene, at in zip(scenes, which.tolist(), strict=True)]
    names = [
        scene.caption if all_of_it else caption((one.name,), scene.style, scene.background)
        for scene, one, all_of_it in zip(scenes, placed, whole.tolist(), strict=True)
    ]
    boxes = jitter(torch.tensor([one.box for one in placed]), -2, 4, generator)
    return names, torch.where(whole[:, None], torch.tensor(WHOLE), boxes)


def views(pixels: Tensor, strength: float, generator: torch.Generator) -> tuple[list[Tensor], list[Tensor]]:
    """Two global views of SIZE px and four local ones of half the side of each scene, mirrored and recoloured.

    Global: the whole scene, a large crop, or an object enlarged. Local: an object as large as it is, or about so.
    """

    def view(boxes: Tensor, side: int) -> Tensor:
        seen = look(repaint(pixels, strength, generator), boxes, side)
        return recolour(mirror_half(seen, generator), strength, generator)

    def some(first: Tensor, second: Tensor, share: float) -> Tensor:
        return torch.where(torch.rand(len(pixels), 1, generator=generator) < share, first, second)

    def object_boxes() -> Tensor:
        return jitter(busy_cells(pixels, generator), -4, 8, generator)

    def large() -> Tensor:
        whole = torch.tensor(WHOLE).expand(len(pixels), 4)
        return some(some(whole, random_boxes(len(pixels), CROP, SIZE, generator), 0.6), object_boxes(), 0.7)

    local = [some(busy_cells(pixels, generator), object_boxes(), 0.5) for _ in range(4)]
    return [view(large(), SIZE) for _ in range(2)], [view(boxes, SIZE // 2) for boxes in local]
