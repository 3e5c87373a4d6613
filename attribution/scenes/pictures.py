"""Pictures as tensors, for the training and the judging of the embedded model: load, mirror, encode, sample, show."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from PIL import Image
from torch import Tensor

from attribution.scenes.compose import WORLD, Split, WorldSettings, draw_scene, make_scenes


def load_pixels(split: Split, world: WorldSettings = WORLD, count: int | None = None) -> Tensor:
    """The first pictures of a split, or all: (N, 3, side, side) uint8."""
    pictures = [np.asarray(draw_scene(scene)) for scene in make_scenes(split, count, world=world)]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()


def to_unit(pixels: Tensor) -> Tensor:
    """uint8 pixels to float32 in [-1, 1]."""
    return pixels.float() / 127.5 - 1


def mirror_half(x: Tensor, generator: torch.Generator) -> Tensor:
    """Flip each image left to right with probability one half; (B, C, H, W)."""
    flip = torch.rand(len(x), 1, 1, 1, generator=generator) < 0.5
    return torch.where(flip, x.flip(-1), x)


@torch.inference_mode()
def reconstruct(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    """Decode the posterior means of (N, 3, H, W) pictures in [-1, 1]."""
    parts = [vae.decode(vae.encode(x).latent_dist.mean).sample.clamp(-1, 1) for x in pictures.split(32)]
    return torch.cat(parts)


def psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of pictures in [-1, 1], from the mean squared error over all of them."""
    return float(10 * torch.log10(4 / (a - b).square().mean()))


@torch.inference_mode()
def encode(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    """Posterior means (N, 16, 8, 8) of (N, 3, H, W) pictures in [-1, 1]."""
    return torch.cat([vae.encode(x).latent_dist.mean for x in pictures.split(64)])


def sample(
    pipe: StableDiffusionPipeline, prompts: list[str], seeds: Iterable[int], steps: int = 25, guidance: float = 3.0
) -> Tensor:
    """Pictures (N, 3, H, W) in [-1, 1] of the prompts, one seed each."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    made = pipe(prompts, num_inference_steps=steps, guidance_scale=guidance, generator=generators, output_type="pt")
    pictures: Tensor = made.images
    return pictures * 2 - 1


def save_sheet(pictures: Tensor, path: Path, columns: int, zoom: int = 3) -> None:
    """Write (N, 3, H, W) pictures in [-1, 1] as a grid."""
    sheet_of(pictures, columns, zoom).save(path)


def save_beside(left: Tensor, right: Tensor, path: Path, columns: int) -> None:
    """Write two grids of (N, 3, H, W) pictures in [-1, 1] beside each other, in 256 colours: a third of the bytes."""
    grids = [sheet_of(pictures, columns, zoom=1) for pictures in (left, right)]
    gap = left.shape[-1] // 4
    both = Image.new("RGB", (2 * grids[0].width + gap, grids[0].height), "white")
    both.paste(grids[0], (0, 0))
    both.paste(grids[1], (grids[0].width + gap, 0))
    both.quantize(256).save(path, optimize=True)


def sheet_of(pictures: Tensor, columns: int, zoom: int) -> Image.Image:
    """(N, 3, H, W) pictures in [-1, 1] as a grid, enlarged by a whole factor."""
    pixels = ((pictures.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    side = pixels.shape[1] + 2
    rows = -(-len(pixels) // columns)
    sheet = Image.new("RGB", (columns * side, rows * side), "white")
    for index, picture in enumerate(pixels):
        sheet.paste(Image.fromarray(picture), (index % columns * side + 1, index // columns * side + 1))
    return sheet.resize((sheet.width * zoom, sheet.height * zoom), Image.Resampling.NEAREST)
