"""Train a world's model: an autoencoder, a tokenizer, then text encoder and U-Net together.

The world of 128 px, which ships, grows from the finished model of 64 px: its scenes are the same at twice the size,
so its autoencoder takes over all levels but the first and keeps near the same latents, and its U-Net and text
encoder go on from there. That small model comes first; it may lie anywhere.

    FIRST="python -m attribution.scenes.train --side 64 --work WORK/64 --out WORK/64/model"
    $FIRST --stage autoencoder --minutes 40
    $FIRST --stage diffusion --minutes 40 --batch 32
    $FIRST --stage cooldown --minutes 10 --batch 32
    $FIRST --stage save

    TRAIN="python -m attribution.scenes.train --work WORK --small WORK/64/model --kept KEPT"
    $TRAIN --stage status          # what there is, and what comes next
    $TRAIN --stage autoencoder --minutes 30 --learning-rate 3e-3
    $TRAIN --stage diffusion --minutes 90 --batch 64
    $TRAIN --stage cooldown --minutes 45 --batch 64 --shift 2
    $TRAIN --stage judge           # how good the pictures are so far
    $TRAIN --stage keep            # what a later sitting needs, into the folder after --kept
    $TRAIN --stage save --out DIR/model
    $TRAIN --stage report --out DIR/model

Every stage resumes from WORK, or from what an earlier sitting kept; minutes are counted over all sittings.
`diffusion` trains at a constant rate and may be stopped and lengthened at will; `cooldown` branches off from
wherever it is. A stage leaves a contact sheet beside each checkpoint.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from diffusers import AutoencoderKL, StableDiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTokenizer

from attribution.diffusion.pipeline import GenerateSettings
from attribution.errors import InputError
from attribution.scenes.compose import WORLDS, WorldSettings, caption, make_scenes
from attribution.scenes.judge import Judge, judge_generated, labels, rates, report, seen, train_judge
from attribution.scenes.networks import (
    LATENT_CHANNELS,
    TRAIN_TIMESTEPS,
    grown,
    make_autoencoder,
    make_pipeline,
    make_scheduler,
    make_text_encoder,
    make_tokenizer,
    make_unet,
    tokenize,
)
from attribution.scenes.pictures import encode, load_pixels, psnr, reconstruct, sample, save_sheet, to_unit
from attribution.scenes.trainer import Recipe, Trainer, averaged, halved, keep, part_of

Stage = Literal["status", "autoencoder", "diffusion", "cooldown", "judge", "keep", "save", "report"]

DROPPED_CAPTIONS = 0.1
MODEL = Path("assets/emoji-scenes/model")  # the one that ships
CHECKPOINTS: dict[Stage, str] = {
    "autoencoder": "autoencoder.pt",
    "diffusion": "diffusion.pt",
    "cooldown": "cooled.pt",
}
KEPT = "diffusion.safetensors"  # of a diffusion that may go on
JUDGED = "judged.json"
BARS = (0.95, 0.90)  # shares of named objects recognised, and of pictures with both
OUTCOMES = {  # what each later step leaves beside the model, and the command that makes it
    "save": ("model/model_index.json", ".scenes.train --stage save"),
    "report": ("report.json", ".scenes.train --stage report"),
    "clip": ("clip/model.safetensors", ".scenes.encoders --stage clip"),
    "dino": ("dino/model.safetensors", ".scenes.encoders --stage dino"),
    "detector": ("detector/model.safetensors", ".scenes.detector"),
    "mappers": ("mappers.json", ".scenes.customise --work DIR, then .scenes.mappers --work DIR"),
    "index": ("index/manifest.json", " index"),
    "floor": ("index/floor.json", " floor"),
    "examples": ("examples", ".scenes.examples"),
}
NETWORKS = ("text_encoder", "unet")


@dataclass(frozen=True)
class TrainArgs:
    """Train, save or report on a world's model.

    Attributes:
        work: folder of checkpoints and contact sheets.
        kept: folder of what an earlier sitting kept, used where WORK has nothing of its own.
        small: the finished model of 64 px, which that of 128 px grows from; its U-Net and text encoder are needed only
            where nothing was kept.
        out: the finished StableDiffusionPipeline folder.
        stage: what to do.
        side: of the world's scenes, px.
        minutes: length of this stage's schedule, over all sittings.
        batch: images a step.
        learning_rate: peak learning rate.
        shift: of the timesteps that are trained at towards noise, where it is decided what is where; 1 takes all alike.
        guidance: of the pictures that are judged.
        report: measure the finished pipeline (the same as `--stage report`).
        seed: of weights, batches and noises.
    """

    work: Path = Path("work")
    kept: Path = Path("work/kept")
    small: Path = Path("work/64/model")
    out: Path = MODEL
    stage: Stage = "status"
    side: Literal[64, 128] = 128
    minutes: float = 40.0
    batch: int = 8
    learning_rate: float = 1e-3
    shift: float = 1.0
    guidance: float = 3.0
    report: bool = False
    seed: int = 0

    @property
    def world(self) -> WorldSettings:
        """The world of that side."""
        return WORLDS[self.side]

    def part(self, name: str) -> Path:
        """The folder of a network of the small model.

        Raises:
            InputError: it is not there.
        """
        folder = self.small / name
        if not folder.is_dir():
            raise InputError(
                f"the world of {self.side} px grows from the finished model of 64 px, and {str(self.small)!r} holds no"
                f" {name}; train that one first, with --side 64, and name its folder with --small"
            )
        return folder


# --- stage 1: the autoencoder ---


def edges(x: Tensor) -> tuple[Tensor, Tensor]:
    """Differences of neighbouring pixels, down and across, of (B, C, H, W)."""
    return x[..., 1:, :] - x[..., :-1, :], x[..., 1:] - x[..., :-1]


def picture_loss(error: Tensor) -> Tensor:
    """MSE + 0.2 L1 + 0.1 L1 of the edges of a (B, 3, H, W) error: colours right, and sharp."""
    sharpness = torch.stack([part.abs().mean() for part in edges(error)]).sum()
    loss: Tensor = error.square().mean() + 0.2 * error.abs().mean() + 0.1 * sharpness
    return loss


def both_views(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    """Latents of (N, 3, H, W) pictures and their mirrors: (N, 2, C, h, w)."""
    return torch.stack([encode(vae, pictures), encode(vae, pictures.flip(-1))], 1)


def train_autoencoder(args: TrainArgs) -> None:
    """Grow the small world's autoencoder: `picture_loss`, and 0.02 of the latents' distance from the small world's.

    The world of 64 px starts from nothing, and its latents are held by 3e-4 of a KL divergence instead.
    """
    torch.manual_seed(args.seed)
    pixels, heldout = load_pixels("train", args.world), to_unit(load_pixels("heldout", args.world))
    vae, wanted = make_autoencoder(args.world), None
    if args.side == 128:
        small: Any = AutoencoderKL.from_pretrained(str(args.part("vae")), dtype=torch.float32).eval()
        vae, wanted = grown(small, args.world), both_views(small, to_unit(load_pixels("train", WORLDS[64])))
    recipe = Recipe(args.minutes, args.batch, args.learning_rate, warmup_steps=30, ema_decay=0.998, bfloat16=True)
    trainer = Trainer({"vae": vae}, args.work / CHECKPOINTS["autoencoder"], recipe, args.seed)

    def batch_loss(generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(pixels), (recipe.batch,), generator=generator)
        views = torch.randint(2, (recipe.batch,), generator=generator)
        x = to_unit(pixels[rows])
        x = torch.where(views[:, None, None, None].bool(), x.flip(-1), x)
        posterior = vae.encode(x).latent_dist
        if wanted is None:
            z = posterior.sample(generator)
            held = 3e-4 * 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
        else:
            z = posterior.mean + 0.02 * torch.randn(posterior.mean.shape, generator=generator)
            held = 0.02 * (posterior.mean.float() - wanted[rows, views]).square().mean()
        loss: Tensor = picture_loss(vae.decode(z).sample.float() - x) + held
        return loss

    def sheet(path: Path) -> None:
        average = make_autoencoder(args.world)
        average.load_state_dict(part_of(trainer.ema, "vae."))
        recon = reconstruct(average, heldout)
        print(f"held-out PSNR {psnr(recon, heldout):.2f} dB", flush=True)
        save_sheet(torch.stack([heldout[:24], recon[:24]], 1).flatten(0, 1), path, columns=12, zoom=192 // args.side)

    trainer.run(batch_loss, sheet)


def normalised(vae: AutoencoderKL, pictures: Tensor) -> AutoencoderKL:
    """The autoencoder with its latents of these pictures rescaled to mean 0 and deviation 1 per channel, in 16 bits.

    The scale is folded into the 1x1 convolutions on both sides of the latents, so that the pipeline's
    `scaling_factor` is 1. Weights are rounded to float16, as they ship, before anything is trained on the latents.
    """
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
    return vae.half().float().requires_grad_(False).eval()


def finished_autoencoder(args: TrainArgs) -> AutoencoderKL:
    """The averaged autoencoder, `normalised`: from WORK, or as it was kept."""
    vae, path = make_autoencoder(args.world), _finished(args)
    if not path.exists():
        vae.load_state_dict(
            part_of(torch.load(args.work / CHECKPOINTS["autoencoder"], weights_only=True)["ema"], "vae.")
        )
        args.work.mkdir(parents=True, exist_ok=True)
        finished = normalised(vae, to_unit(load_pixels("train", args.world)))
        save_file(halved(finished.state_dict()), path)
    vae.load_state_dict(load_file(path))
    return vae.requires_grad_(False).eval()


def _finished(args: TrainArgs) -> Path:
    """Where the finished autoencoder is or will be: an older one than the checkpoint it is made of does not count."""
    own, made_of = args.work / "autoencoder.safetensors", args.work / CHECKPOINTS["autoencoder"]
    if made_of.exists() and own.exists() and own.stat().st_mtime < made_of.stat().st_mtime:
        own.unlink()
    kept = args.kept / "autoencoder.safetensors"
    return kept if kept.exists() and not own.exists() and not made_of.exists() else own


# --- stage 2: tokenizer, text encoder and U-Net ---


def training_latents(args: TrainArgs, vae: AutoencoderKL) -> Tensor:
    """Latents of the scenes and their mirrors, (N, 2, C, h, w); made once, and again for another autoencoder."""
    path = args.work / "latents.npy"
    if not path.exists() or path.stat().st_mtime < _finished(args).stat().st_mtime:
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


# --- stage 3: how good it is, what is kept, and the folder that ships ---


def judge_so_far(args: TrainArgs) -> None:
    """Print what the judge sees in pictures of new prompts; the judge is trained once, and again for other latents."""
    pipe, path = finished_pipeline(args), args.work / "judge.safetensors"
    judge = Judge(args.world)
    if not path.exists() or path.stat().st_mtime < _finished(args).stat().st_mtime:
        train = to_unit(load_pixels("train", args.world))
        judge = train_judge(train, reconstruct(pipe.vae, train), labels(make_scenes("train")), args.world)
        save_file(judge.state_dict(), path)
        heldout, truth = to_unit(load_pixels("heldout", args.world)), labels(make_scenes("heldout"))
        print(json.dumps({"judge_on_heldout": rates(seen(judge, heldout), truth)}), flush=True)
    judge.load_state_dict(load_file(path))
    measured = judge_generated(pipe, judge.eval(), replace(GenerateSettings(), guidance=args.guidance))
    save_sheet(measured.pop("pictures")[:96], args.work / "judged.png", columns=16, zoom=1)
    (args.work / JUDGED).write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(measured))


def keep_training(args: TrainArgs) -> None:
    """Write what a later sitting needs to go on: the finished autoencoder, and the diffusion weights so far."""
    args.kept.mkdir(parents=True, exist_ok=True)
    save_file(halved(finished_autoencoder(args).state_dict()), args.kept / "autoencoder.safetensors")
    raw = torch.load(args.work / CHECKPOINTS["diffusion"], weights_only=True)
    keep(raw, args.kept / KEPT, kinds=("raw",))  # its average starts anew: this is to go on from
    cooled = args.work / CHECKPOINTS["cooldown"]
    if cooled.exists():
        keep(torch.load(cooled, weights_only=True), args.kept / "cooldown.safetensors", kinds=("ema",))
    if (args.work / JUDGED).exists():
        shutil.copyfile(args.work / JUDGED, args.kept / JUDGED)


def save_pipeline(args: TrainArgs) -> None:
    """Write the StableDiffusionPipeline folder in float16."""
    pipe = finished_pipeline(args)
    pipe.to(torch.float16).save_pretrained(args.out, safe_serialization=True)
    # vocab.json and merges.txt, for older readers
    pipe.tokenizer.backend_tokenizer.model.save(str(args.out / "tokenizer"))
    size = sum(path.stat().st_size for path in args.out.rglob("*") if path.is_file())
    print(f"{args.out}: {size / 1e6:.1f} MB")


def print_report(args: TrainArgs) -> None:
    """Measure the finished pipeline, and write the report beside it."""
    print(json.dumps(report(args.out, args.out.parent, args.world), indent=1))


def print_status(args: TrainArgs) -> None:
    """Print each step, whether its outcome is there and how far it has come, and which comes next."""
    found = [(step, *state) for step, state in status(args).items()]
    for step, done, text in found:
        print(f"{'x' if done else ' '} {step:12} {text}")
    print("next: " + next((step for step, done, _ in found if not done), "nothing"))


def status(args: TrainArgs) -> dict[str, tuple[bool, str]]:
    """For each step of a world in order: whether its outcome is there, and how far it is or which command makes it."""
    steps: dict[str, tuple[bool, str]] = {}
    for stage in CHECKPOINTS:
        own, kept = args.work / CHECKPOINTS[stage], args.kept / f"{stage}.safetensors"
        steps[stage] = (own.exists() or kept.exists(), _progress(own, kept))
    steps["judge"] = _judged(next((p for p in (args.work / JUDGED, args.kept / JUDGED) if p.exists()), None))
    for step, (outcome, command) in OUTCOMES.items():
        path = args.out.parent / outcome
        steps[step] = (path.exists(), str(path) if path.exists() else f"python -m attribution{command}")
    return steps


def _judged(path: Path | None) -> tuple[bool, str]:
    if path is None:
        return False, "python -m attribution.scenes.train --stage judge"
    measured = json.loads(path.read_text(encoding="utf-8"))
    found = (measured["judge_on_generated"]["recognised"], measured["both_objects"])
    text = f"{found[0]:.1%} of objects recognised, both in {found[1]:.1%} of pictures"
    if found[0] >= BARS[0] and found[1] >= BARS[1]:
        return True, text
    return False, f"{text}; wanted {BARS[0]:.0%} and {BARS[1]:.0%}: lengthen diffusion, and cool down anew"


def _progress(own: Path, kept: Path) -> str:
    if own.exists():
        state = torch.load(own, weights_only=True)
        return f"{own}: {state['step']} steps, {state['seconds'] / 60:.1f} min"
    if kept.exists():
        with safe_open(kept, "pt") as file:
            progress = file.metadata() or {}
        return f"{kept}: " + ", ".join(f"{value} {name}" for name, value in progress.items())
    return "not begun"


STAGES: dict[Stage, Callable[[TrainArgs], None]] = {
    "status": print_status,
    "autoencoder": train_autoencoder,
    "diffusion": train_diffusion,
    "cooldown": cool_down,
    "judge": judge_so_far,
    "keep": keep_training,
    "save": save_pipeline,
    "report": print_report,
}


def main(args: TrainArgs) -> None:
    """Run one stage."""
    args.work.mkdir(parents=True, exist_ok=True)
    STAGES["report" if args.report else args.stage](args)


if __name__ == "__main__":
    main(tyro.cli(TrainArgs))
