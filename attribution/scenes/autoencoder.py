"""Stage 1 of a world's model: the autoencoder."""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor

from attribution.scenes.compose import WORLDS
from attribution.scenes.networks import LATENT_CHANNELS, grown, make_autoencoder
from attribution.scenes.pictures import encode, load_pixels, psnr, reconstruct, save_sheet, to_unit
from attribution.scenes.stages import CHECKPOINTS, TrainArgs
from attribution.scenes.trainer import Recipe, Trainer, halved, part_of


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
    vae, path = make_autoencoder(args.world), autoencoder_file(args)
    if not path.exists():
        vae.load_state_dict(
            part_of(torch.load(args.work / CHECKPOINTS["autoencoder"], weights_only=True)["ema"], "vae.")
        )
        args.work.mkdir(parents=True, exist_ok=True)
        finished = normalised(vae, to_unit(load_pixels("train", args.world)))
        save_file(halved(finished.state_dict()), path)
    vae.load_state_dict(load_file(path))
    return vae.requires_grad_(False).eval()


def autoencoder_file(args: TrainArgs) -> Path:
    """Where the finished autoencoder is or will be: an older one than the checkpoint it is made of does not count."""
    own, made_of = args.work / "autoencoder.safetensors", args.work / CHECKPOINTS["autoencoder"]
    if made_of.exists() and own.exists() and own.stat().st_mtime < made_of.stat().st_mtime:
        own.unlink()
    kept = args.kept / "autoencoder.safetensors"
    return kept if kept.exists() and not own.exists() and not made_of.exists() else own
