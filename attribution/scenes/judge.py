"""How good the embedded model is: reconstruction, and whether a classifier sees the objects that prompts name.

The judge is a small convolutional classifier of 48 objects, trained here on the training scenes (as they are
and as the autoencoder shows them), and itself judged on the held-out scenes first.
"""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn

from attribution.diffusion.pipeline import GenerateSettings
from attribution.scenes.compose import BACKGROUNDS, STYLES, WORLD, Scene, WorldSettings, caption, make_scenes
from attribution.scenes.names import OBJECTS
from attribution.scenes.pictures import load_pixels, mirror_half, psnr, reconstruct, sample, save_beside, to_unit

PROMPTS = 200
STEPS = 1200
BATCH = 64
SHEET = 96  # pictures
WIDTHS = (16, 24, 48, 96, 128)


class Judge(nn.Module):
    """(B, 3, side, side) in [-1, 1] to logits (B, 48): the largest of each object's map.

    One halving more than the autoencoder has, so that the last layer looks at whole cells whatever the world's side.
    """

    def __init__(self, world: WorldSettings = WORLD) -> None:
        super().__init__()
        widths = (3, *WIDTHS[-world.lattice.bit_length() :])
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, 2, 1), nn.BatchNorm2d(after), nn.ReLU()]
        layers += [nn.Conv2d(128, 128, 3, 1, 1), nn.BatchNorm2d(128), nn.ReLU(), nn.Conv2d(128, len(OBJECTS), 1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of each object being anywhere in the picture."""
        logits: Tensor = self.layers(x).amax((2, 3))
        return logits


def labels(scenes: list[Scene]) -> Tensor:
    """(N, 48) of 0 and 1: which objects a scene holds."""
    order = {name: column for column, name in enumerate(OBJECTS)}
    table = torch.zeros(len(scenes), len(OBJECTS))
    for row, scene in enumerate(scenes):
        for placed in scene.objects:
            table[row, order[placed.name]] = 1
    return table


def train_judge(
    pictures: Tensor, reconstructed: Tensor, truth: Tensor, world: WorldSettings = WORLD, seed: int = 0
) -> Judge:
    """Train on pictures and their reconstructions, mirrored at random, with a little noise."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    judge = Judge(world)
    optimizer = torch.optim.AdamW(judge.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, STEPS)
    for _ in range(STEPS):
        rows = torch.randint(len(pictures), (BATCH,), generator=generator)
        use = torch.rand(BATCH, 1, 1, 1, generator=generator) < 0.5
        x = mirror_half(torch.where(use, pictures[rows], reconstructed[rows]), generator)
        x = x + 0.05 * torch.randn(x.shape, generator=generator)
        loss = nn.functional.binary_cross_entropy_with_logits(judge(x), truth[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return judge.eval()


@torch.inference_mode()
def seen(judge: Judge, pictures: Tensor) -> Tensor:
    """(N, 48) bool: what the judge sees."""
    return torch.cat([judge(part) > 0 for part in pictures.split(128)])


def new_prompts(count: int = PROMPTS, seed: int = 2) -> list[tuple[tuple[str, str], str]]:
    """Prompts of two objects whose caption is in no training scene, fixed by the seed: (names, prompt)."""
    known = {scene.caption for scene in make_scenes("train")}
    rng = np.random.default_rng(seed)
    prompts: list[tuple[tuple[str, str], str]] = []
    while len(prompts) < count:
        first, second = (str(name) for name in rng.choice(list(OBJECTS), 2, replace=False))
        style = STYLES[int(rng.integers(2))]
        prompt = caption((first, second), style, list(BACKGROUNDS)[int(rng.integers(len(BACKGROUNDS)))])
        if prompt not in known:
            prompts.append(((first, second), prompt))
    return prompts


def generate(pipe: StableDiffusionPipeline, prompts: list[str], settings: GenerateSettings) -> Tensor:
    """A picture for each prompt, seed i for prompt i: (N, 3, side, side) in [-1, 1]."""
    parts = []
    for start in range(0, len(prompts), 20):
        part = prompts[start : start + 20]
        seeds = range(start, start + len(part))
        parts.append(sample(pipe, part, seeds, settings.steps, settings.guidance))
    return torch.cat(parts)


def rates(found: Tensor, truth: Tensor) -> dict[str, float]:
    """Share of named objects seen, and objects seen per picture that are not named."""
    named = truth.bool()
    return {
        "recognised": float((found & named).sum() / named.sum()),
        "not_named_per_picture": float((found & ~named).sum() / len(found)),
    }


def judge_generated(pipe: StableDiffusionPipeline, judge: Judge, settings: GenerateSettings) -> dict[str, Any]:
    """What the judge sees in a picture of each new prompt; under "pictures" the pictures, (N, 3, side, side)."""
    prompts = new_prompts()
    pictures = generate(pipe, [prompt for _, prompt in prompts], settings)
    order = {name: column for column, name in enumerate(OBJECTS)}
    named = torch.zeros(len(prompts), len(OBJECTS))
    for row, (names, _) in enumerate(prompts):
        named[row, [order[name] for name in names]] = 1
    found = seen(judge, pictures)
    return {
        "judge_on_generated": rates(found, named),
        "both_objects": float((found & named.bool()).sum(1).eq(2).float().mean()),
        "prompts": len(prompts),
        "steps": settings.steps,
        "guidance": settings.guidance,
        "pictures": pictures,
    }


def report(model: Path, out: Path, world: WorldSettings = WORLD) -> dict[str, Any]:
    """Measure a pipeline folder; writes `report.json` and 96 generated pictures beside as many training scenes."""
    pipe = StableDiffusionPipeline.from_pretrained(
        str(model), dtype=torch.float32, safety_checker=None, requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)
    train, heldout = (to_unit(load_pixels(split, world)) for split in ("train", "heldout"))
    recon = reconstruct(pipe.vae, heldout)
    judge = train_judge(train, reconstruct(pipe.vae, train), labels(make_scenes("train")), world)
    generated = judge_generated(pipe, judge, GenerateSettings())
    pictures = generated.pop("pictures")
    truth = labels(make_scenes("heldout"))
    measured = {
        "heldout_psnr_db": psnr(recon, heldout),
        "judge_on_heldout": rates(seen(judge, heldout), truth),
        "judge_on_reconstructed_heldout": rates(seen(judge, recon), truth),
        **generated,
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.json").write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    save_beside(pictures[:SHEET], train[:SHEET], out / "contact-sheet.png", columns=12)
    return measured
