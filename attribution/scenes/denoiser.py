"""Stage 2 of a world's model: tokenizer, text encoder and U-Net, trained together."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPTokenizer

from attribution.scenes.autoencoder import autoencoder_file, both_views, finished_autoencoder
from attribution.scenes.compose import caption, make_scenes
from attribution.scenes.networks import (
    TRAIN_TIMESTEPS,
    make_pipeline,
    make_scheduler,
    make_text_encoder,
    make_tokenizer,
    make_unet,
    tokenize,
)
from attribution.scenes.pictures import load_pixels, sample, save_sheet, to_unit
from attribution.scenes.stages import CHECKPOINTS, KEPT, Stage, TrainArgs
from attribution.scenes.trainer import Recipe, Trainer, averaged, part_of

DROPPED_CAPTIONS = 0.1
NETWORKS = ("text_encoder", "unet")
SHEET_PROMPTS = (
    caption(("red apple", "motorcycle"), "flat", "blue"),
    caption(("penguin", "guitar"), "outlined", "pink"),
    caption(("elephant", "rocket"), "flat", "green"),
    caption(("cactus", "bicycle"), "outlined", "white"),
    caption(("birthday cake", "dog"), "flat", "yellow"),
    caption(("crown", "owl"), "outlined", "gray"),
    caption(("stop sign", "banana"), "outlined", "white"),
    caption(("cat", "trumpet"), "flat", "pink"),
    caption(("motorcycle", "stop sign"), "flat", "gray"),
    caption(("frog", "umbrella", "key"), "outlined", "yellow"),
    caption(("soccer ball",), "flat", "green"),
    caption(("butterfly", "grapes", "bus"), "flat", "white"),
)


def training_latents(args: TrainArgs, vae: AutoencoderKL) -> Tensor:
    """Latents of the scenes and their mirrors, (N, 2, C, h, w); made once, and again for another autoencoder."""
    path = args.work / "latents.npy"
    if not path.exists() or path.stat().st_mtime < autoencoder_file(args).stat().st_mtime:
        np.save(path, both_views(vae, to_unit(load_pixels("train", args.world))).numpy())
    return torch.from_numpy(np.load(path))


def train_diffusion(args: TrainArgs) -> None:
    """Text encoder and U-Net on the latents of the training scenes and their mirrors, at a constant learning rate."""
    recipe = Recipe(
        args.minutes, args.batch, args.learning_rate, warmup_steps=500, shape="constant", checkpoint_minutes=8
    )
    _train_diffusion(args, recipe, args.work / CHECKPOINTS["diffusion"], None)


def cool_down(args: TrainArgs) -> None:
    """Go on from the diffusion checkpoint while the learning rate falls to nothing; that checkpoint stays as it is."""
    recipe = Recipe(
        args.minutes,
        args.batch,
        args.learning_rate,
        warmup_steps=1,
        shape="linear",
        ema_decay=0.99,
        checkpoint_minutes=8,
    )
    _train_diffusion(args, recipe, args.work / CHECKPOINTS["cooldown"], args.work / CHECKPOINTS["diffusion"])


def _train_diffusion(args: TrainArgs, recipe: Recipe, path: Path, before: Path | None) -> None:
    torch.manual_seed(args.seed)
    vae = finished_autoencoder(args)
    latents = training_latents(args, vae)
    captions = [scene.caption for scene in make_scenes("train")]
    tokenizer = make_tokenizer(captions)
    tokens, empty = tokenize(tokenizer, captions), tokenize(tokenizer, [""])
    modules: dict[str, Any] = {"text_encoder": make_text_encoder(tokenizer), "unet": make_unet(args.world)}
    text_encoder, unet, scheduler = modules["text_encoder"], modules["unet"], make_scheduler()
    if _begins(args, path, before) and args.side == 128:
        for name, module in modules.items():
            module.load_state_dict(load_file(next(args.part(name).glob("*.safetensors"))))
    trainer = Trainer(modules, path, recipe, args.seed)
    if not path.exists():
        _start(trainer, args, before)

    def batch_loss(generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(latents), (recipe.batch,), generator=generator)
        views = torch.randint(2, (recipe.batch,), generator=generator)
        x = latents[rows, views]
        noise = torch.randn(x.shape, generator=generator)
        t = shifted(torch.rand(recipe.batch, generator=generator), args.shift)
        dropped = torch.rand(recipe.batch, 1, generator=generator) < DROPPED_CAPTIONS
        text = text_encoder(torch.where(dropped, empty, tokens[rows])).last_hidden_state
        target = scheduler.get_velocity(x, noise, t)
        loss: Tensor = (unet(scheduler.add_noise(x, noise, t), t, text).sample.float() - target).square().mean()
        return loss

    def sheet(path: Path) -> None:
        pipe = assemble(trainer.ema, vae, tokenizer)
        pictures = [sample(pipe, [prompt] * 4, range(4)) for prompt in SHEET_PROMPTS]
        save_sheet(torch.stack(pictures, 1).flatten(0, 1), path, columns=len(SHEET_PROMPTS), zoom=192 // args.side)

    trainer.run(batch_loss, sheet)


def shifted(u: Tensor, shift: float) -> Tensor:
    """Timesteps of uniform (B,) shares of the schedule, more of them near its noise for a shift above 1.

    The shift multiplies the odds of each share, as Esser et al. (2024) do when a picture's resolution grows.
    """
    share = shift * u / (1 + (shift - 1) * u)
    return (TRAIN_TIMESTEPS * share).long().clamp(max=TRAIN_TIMESTEPS - 1)


def _begins(args: TrainArgs, path: Path, before: Path | None) -> bool:
    """Whether a stage goes on from nothing that this world has learned."""
    return not (path.exists() or before is not None or (args.kept / KEPT).exists())


def _start(trainer: Trainer, args: TrainArgs, before: Path | None) -> None:
    """Where a stage without a checkpoint begins: at the stage before it, or at what was kept, if there is any."""
    kept = args.kept / KEPT
    if before is not None:
        trainer.load(before)
        trainer.seconds = 0.0
    elif kept.exists():
        trainer.load_kept(kept)


def assemble(weights: dict[str, Tensor], vae: AutoencoderKL, tokenizer: CLIPTokenizer) -> StableDiffusionPipeline:
    """The pipeline with these weights, named as a diffusion checkpoint names them."""
    text_encoder, unet = make_text_encoder(tokenizer), make_unet()
    for name, module in zip(NETWORKS, (text_encoder, unet), strict=True):
        module.load_state_dict(part_of(weights, name + "."))
    return make_pipeline(vae, text_encoder, tokenizer, unet)


def finished_pipeline(args: TrainArgs) -> StableDiffusionPipeline:
    """The pipeline of the averaged weights: cooled down, or else of the constant rate, or else as they were kept."""
    tokenizer = make_tokenizer([scene.caption for scene in make_scenes("train")])
    return assemble(_averaged(args), finished_autoencoder(args), tokenizer)


def _averaged(args: TrainArgs) -> dict[str, Tensor]:
    stages: tuple[Stage, ...] = ("cooldown", "diffusion")
    for own in (args.work / CHECKPOINTS[stage] for stage in stages):
        if own.exists():
            weights: dict[str, Tensor] = torch.load(own, weights_only=True)["ema"]
            return weights
    kept = next(path for path in (args.kept / f"{stage}.safetensors" for stage in stages) if path.exists())
    return averaged(load_file(kept))
