"""Train the embedded world's model: an autoencoder, a tokenizer, then text encoder and U-Net together.

    python -m attribution.scenes.train --work WORK --stage autoencoder --minutes 40
    python -m attribution.scenes.train --work WORK --stage diffusion --minutes 90
    python -m attribution.scenes.train --work WORK --stage save --out assets/emoji-scenes/model
    python -m attribution.scenes.train --report --out assets/emoji-scenes/model

Every stage resumes from WORK; its learning rate follows a cosine over the minutes given, counted over
all sittings. A stage leaves a contact sheet beside each checkpoint.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from diffusers import AutoencoderKL, StableDiffusionPipeline
from torch import Tensor, nn
from transformers import CLIPTokenizer

from attribution.scenes.compose import caption, make_scenes
from attribution.scenes.judge import report
from attribution.scenes.networks import (
    LATENT_CHANNELS,
    TRAIN_TIMESTEPS,
    make_autoencoder,
    make_scheduler,
    make_text_encoder,
    make_tokenizer,
    make_unet,
    tokenize,
)
from attribution.scenes.pictures import encode, load_pixels, mirror_half, psnr, reconstruct, sample, save_sheet, to_unit

Stage = Literal["autoencoder", "diffusion", "save", "report"]

EMA_DECAY = 0.999
DROPPED_CAPTIONS = 0.1


@dataclass(frozen=True)
class Recipe:
    """How one stage is trained."""

    minutes: float
    batch: int
    learning_rate: float
    warmup_steps: int
    checkpoint_minutes: float = 5.0


@dataclass
class TrainArgs:
    """Train, save or report on the embedded model.

    Attributes:
        work: folder of checkpoints and contact sheets.
        out: the finished StableDiffusionPipeline folder.
        stage: what to do.
        minutes: length of this stage's schedule, over all sittings.
        batch: images a step.
        learning_rate: peak learning rate.
        report: measure the finished pipeline (the same as `--stage report`).
        seed: of weights, batches and noises.
    """

    work: Path = Path("work")
    out: Path = Path("assets/emoji-scenes/model")
    stage: Stage = "autoencoder"
    minutes: float = 40.0
    batch: int = 8
    learning_rate: float = 1e-3
    report: bool = False
    seed: int = 0


class Trainer:
    """Optimiser, schedule, EMA and checkpoints of one stage; `run` calls `loss(generator)` until time is up."""

    def __init__(self, modules: dict[str, nn.Module], path: Path, recipe: Recipe, seed: int) -> None:
        self.modules = nn.ModuleDict(modules)
        self.path = path
        self.recipe = recipe
        self.parameters = [p for p in self.modules.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=recipe.learning_rate, weight_decay=0.01, betas=(0.9, 0.99)
        )
        self.ema = {name: value.detach().clone() for name, value in self.modules.state_dict().items()}
        self.step, self.seconds = 0, 0.0
        self.generator = torch.Generator().manual_seed(seed)
        if path.exists():
            self._load()

    def run(self, loss: Callable[[torch.Generator], Tensor], sheet: Callable[[Path], None]) -> None:
        """Train until the recipe's minutes are used up, saving a checkpoint and a contact sheet on the way."""
        began, saved, mean = time.monotonic() - self.seconds, self.seconds, 0.0
        while self.seconds < 60 * self.recipe.minutes:
            for group in self.optimizer.param_groups:
                group["lr"] = self.recipe.learning_rate * self._rate()
            value = loss(self.generator)
            self.optimizer.zero_grad(set_to_none=True)
            value.backward()
            nn.utils.clip_grad_norm_(self.parameters, 1.0)
            self.optimizer.step()
            self.step += 1
            self._average()
            mean += 0.01 * (value.item() - mean) if self.step > 1 else value.item()
            self.seconds = time.monotonic() - began
            if self.step % 100 == 0:
                print(f"step {self.step} {self.seconds / 60:.1f} min loss {mean:.5f}", flush=True)
            if self.seconds - saved > 60 * self.recipe.checkpoint_minutes:
                saved = self.seconds
                self.save()
                sheet(self.path.with_name(f"{self.path.stem}-{self.step:06d}.png"))
        self.save()
        sheet(self.path.with_name(f"{self.path.stem}-{self.step:06d}.png"))

    def _rate(self) -> float:
        warm = min(1.0, (self.step + 1) / self.recipe.warmup_steps)
        progress = min(1.0, self.seconds / (60 * self.recipe.minutes))
        return warm * (0.01 + 0.99 * 0.5 * (1 + float(np.cos(np.pi * progress))))

    def _average(self) -> None:
        decay = min(EMA_DECAY, (1 + self.step) / (10 + self.step))
        for name, value in self.modules.state_dict().items():
            if value.is_floating_point():
                self.ema[name].lerp_(value, 1 - decay)

    def save(self) -> None:
        """Write the checkpoint, whole or not at all."""
        state = {
            "modules": self.modules.state_dict(),
            "ema": self.ema,
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "generator": self.generator.get_state(),
        }
        partial = self.path.with_suffix(".partial")
        torch.save(state, partial)
        partial.rename(self.path)

    def _load(self) -> None:
        state = torch.load(self.path, weights_only=True)
        self.modules.load_state_dict(state["modules"])
        self.ema = state["ema"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]
        self.generator.set_state(state["generator"])


# --- stage 1: the autoencoder ---


def train_autoencoder(args: TrainArgs) -> None:
    """MSE + 0.2 L1 + 3e-4 KL on the training scenes and their mirrors."""
    torch.manual_seed(args.seed)
    vae = make_autoencoder().to(memory_format=torch.channels_last)
    pixels, heldout = load_pixels("train"), to_unit(load_pixels("heldout"))
    recipe = Recipe(args.minutes, args.batch, args.learning_rate, warmup_steps=200)
    trainer = Trainer({"vae": vae}, args.work / "autoencoder.pt", recipe, args.seed)

    def batch_loss(generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(pixels), (recipe.batch,), generator=generator)
        x = mirror_half(to_unit(pixels[rows]), generator).contiguous(memory_format=torch.channels_last)
        posterior = vae.encode(x).latent_dist
        error = vae.decode(posterior.sample(generator)).sample - x
        kl = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
        loss: Tensor = error.square().mean() + 0.2 * error.abs().mean() + 3e-4 * kl
        return loss

    def sheet(path: Path) -> None:
        average = make_autoencoder()
        average.load_state_dict({k.removeprefix("vae."): v for k, v in trainer.ema.items()})
        recon = reconstruct(average, heldout)
        print(f"held-out PSNR {psnr(recon, heldout):.2f} dB", flush=True)
        save_sheet(torch.stack([heldout[:24], recon[:24]], 1).flatten(0, 1), path, columns=12)

    trainer.run(batch_loss, sheet)


def finished_autoencoder(work: Path, pictures: Tensor) -> AutoencoderKL:
    """The averaged autoencoder, its latents rescaled to mean 0 and deviation 1 per channel.

    The scale is folded into the 1x1 convolutions on both sides of the latents, so that the pipeline's
    `scaling_factor` is 1.
    """
    vae = make_autoencoder()
    state = torch.load(work / "autoencoder.pt", weights_only=True)["ema"]
    vae.load_state_dict({name.removeprefix("vae."): value for name, value in state.items()})
    with torch.no_grad():
        latents = encode(vae, pictures)
        mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
        into: Any = vae.quant_conv
        out_of: Any = vae.post_quant_conv
        into.bias[:LATENT_CHANNELS] = (into.bias[:LATENT_CHANNELS] - mean) / std
        into.weight[:LATENT_CHANNELS] /= std[:, None, None, None]
        into.bias[LATENT_CHANNELS:] -= 2 * std.log()
        out_of.bias += out_of.weight[:, :, 0, 0] @ mean
        out_of.weight *= std[None, :, None, None]
    return vae.requires_grad_(False).eval()


# --- stage 2: tokenizer, text encoder and U-Net ---


def train_diffusion(args: TrainArgs) -> None:
    """Text encoder and U-Net on the latents of the training scenes and their mirrors."""
    torch.manual_seed(args.seed)
    scenes, pictures = make_scenes("train"), to_unit(load_pixels("train"))
    vae = finished_autoencoder(args.work, pictures)
    latents = torch.stack([encode(vae, pictures), encode(vae, pictures.flip(-1))], 1)
    tokenizer = make_tokenizer([scene.caption for scene in scenes])
    tokens = tokenize(tokenizer, [scene.caption for scene in scenes])
    empty = tokenize(tokenizer, [""])
    text_encoder, scheduler = make_text_encoder(tokenizer), make_scheduler()
    unet = make_unet().to(memory_format=torch.channels_last)
    recipe = Recipe(args.minutes, args.batch, args.learning_rate, warmup_steps=500)
    modules: dict[str, nn.Module] = {"text_encoder": text_encoder, "unet": unet}
    trainer = Trainer(modules, args.work / "diffusion.pt", recipe, args.seed)

    def batch_loss(generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(latents), (recipe.batch,), generator=generator)
        views = torch.randint(2, (recipe.batch,), generator=generator)
        x = latents[rows, views]
        noise = torch.randn(x.shape, generator=generator)
        t = torch.randint(TRAIN_TIMESTEPS, (recipe.batch,), generator=generator)
        dropped = torch.rand(recipe.batch, 1, generator=generator) < DROPPED_CAPTIONS
        text = text_encoder(torch.where(dropped, empty, tokens[rows])).last_hidden_state
        x_t = scheduler.add_noise(x, noise, t).contiguous(memory_format=torch.channels_last)
        target = scheduler.get_velocity(x, noise, t)
        loss: Tensor = (unet(x_t, t, text).sample - target).square().mean()
        return loss

    def sheet(path: Path) -> None:
        pipe = assemble(args.work, vae, tokenizer)
        pictures = [sample(pipe, [prompt] * 4, range(4)) for prompt in SHEET_PROMPTS]
        save_sheet(torch.stack(pictures, 1).flatten(0, 1), path, columns=len(SHEET_PROMPTS))

    trainer.run(batch_loss, sheet)


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


def assemble(work: Path, vae: AutoencoderKL, tokenizer: CLIPTokenizer) -> StableDiffusionPipeline:
    """The pipeline with the averaged weights of the diffusion checkpoint."""
    state = torch.load(work / "diffusion.pt", weights_only=True)["ema"]
    text_encoder, unet = make_text_encoder(tokenizer), make_unet()
    for name, module in (("text_encoder", text_encoder), ("unet", unet)):
        prefix = name + "."
        module.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    pipe = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer,
        unet=unet.eval(),
        scheduler=make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


# --- stage 3: the folder that ships ---


def save_pipeline(args: TrainArgs) -> None:
    """Write the StableDiffusionPipeline folder in float16."""
    scenes, pictures = make_scenes("train"), to_unit(load_pixels("train"))
    tokenizer = make_tokenizer([scene.caption for scene in scenes])
    pipe = assemble(args.work, finished_autoencoder(args.work, pictures), tokenizer)
    pipe.to(torch.float16).save_pretrained(args.out, safe_serialization=True)
    tokenizer.backend_tokenizer.model.save(str(args.out / "tokenizer"))  # vocab.json and merges.txt, for older readers
    size = sum(path.stat().st_size for path in args.out.rglob("*") if path.is_file())
    print(f"{args.out}: {size / 1e6:.1f} MB")


STAGES: dict[str, Callable[[TrainArgs], None]] = {
    "autoencoder": train_autoencoder,
    "diffusion": train_diffusion,
    "save": save_pipeline,
}


def main(args: TrainArgs) -> None:
    """Run one stage."""
    if args.report or args.stage == "report":
        print(json.dumps(report(args.out, args.out.parent), indent=1))
        return
    args.work.mkdir(parents=True, exist_ok=True)
    STAGES[args.stage](args)


if __name__ == "__main__":
    main(tyro.cli(TrainArgs))
