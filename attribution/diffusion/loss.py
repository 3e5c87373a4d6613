"""The diffusion training loss: one function for the Fisher information, base losses, unlearning and scoring."""

from collections.abc import Callable

import torch
from torch import Tensor

from attribution.diffusion.noise import NoiseBank
from attribution.diffusion.pipeline import Model
from attribution.errors import InputError


def denoising_loss(model: Model, latents: Tensor, text: Tensor, bank: NoiseBank, mask: Tensor | None = None) -> Tensor:
    """Loss of each image at each column of the bank (DDPM, Eq. 14; eps or v as the scheduler says).

    All B x S predictions are made in one call of the U-Net: callers cut their work to fit.

    Args:
        model: gives the prediction and the noise schedule; gradients flow to whatever of it requires them.
        latents: (B, C, h, w), scaled by the VAE's factor.
        text: (B, L, D), as `Model.encode_text` gives it, or (B, K, L, D) of up to K captions for each image; see
            `over_captions`.
        bank: S columns of timesteps and noises.
        mask: (h, w) in [0, 1], weights of the squared errors, or (B, h, w) of each image's; None is the whole picture.

    Returns:
        (B, S) mean squared errors, in the model's dtype, or float32 where that is less precise.

    Raises:
        InputError: the mask is zero everywhere.
    """
    images, columns = len(latents), len(bank)
    if mask is not None and mask.ndim == 3:
        mask = mask.repeat_interleave(columns, 0)
    pairs = NoiseBank(bank.t.repeat(images), bank.eps.repeat(images, 1, 1, 1))
    losses = paired_loss(model, latents.repeat_interleave(columns, 0), text.repeat_interleave(columns, 0), pairs, mask)
    return losses.reshape(images, columns)


def paired_loss(model: Model, latents: Tensor, text: Tensor, bank: NoiseBank, mask: Tensor | None = None) -> Tensor:
    """Like `denoising_loss`, of image b at column b of the bank alone: (B,)."""

    def loss(caption: Tensor) -> Tensor:
        predicted, target = _predict(model, latents, caption, bank)
        return _pool((target - predicted).square().mean(1), mask)

    return over_captions(text, loss)


def prediction_norm(model: Model, latents: Tensor, text: Tensor, bank: NoiseBank, mask: Tensor | None = None) -> Tensor:
    """The prediction's mean square, of image b at column b of the bank: (B,); D-TRAK's output (Zheng et al. 2024)."""

    def norm(caption: Tensor) -> Tensor:
        predicted, _ = _predict(model, latents, caption, bank)
        return _pool(predicted.square().mean(1), mask)

    return over_captions(text, norm)


def over_captions(text: Tensor, measure: Callable[[Tensor], Tensor]) -> Tensor:
    """What is measured of each image with each of its captions, averaged over its captions: (B,).

    So an image with several captions has one loss, which is their mean, and one gradient, which is that loss's.

    Args:
        text: (B, L, D), a caption for each image; or (B, K, L, D), NaN where an image has fewer than K.
        measure: is given (B, L, D), once for each caption.
    """
    if text.ndim == 3:
        return measure(text)
    there = ~text[:, :, 0, 0].isnan()
    shares = there / there.sum(1, keepdim=True)
    total: Tensor | None = None
    for number, share in enumerate(shares.T):
        caption = torch.where(there[:, number, None, None], text[:, number], text[:, 0])  # counted not at all
        part = measure(caption)
        part = share.to(part) * part
        total = part if total is None else total + part
    assert total is not None
    return total


def precise(x: Tensor) -> Tensor:
    """Numbers of at least single precision: sums of many in half precision go wrong."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _predict(model: Model, latents: Tensor, text: Tensor, bank: NoiseBank) -> tuple[Tensor, Tensor]:
    """What the model predicts and what it should have, (B, C, h, w) each, `precise`."""

    def like_model(x: Tensor) -> Tensor:
        return x.to(model.device, model.dtype)

    x, eps = like_model(latents), like_model(bank.eps)
    alpha = model.alphas_cumprod[bank.t][:, None, None, None]  # float64 on the CPU
    signal, noise = like_model(alpha.sqrt()), like_model((1 - alpha).sqrt())
    target = eps if model.prediction_type == "epsilon" else signal * eps - noise * x
    predicted = model.predict(signal * x + noise * eps, bank.t.to(model.device), like_model(text))
    return precise(predicted), precise(target)


def _pool(error: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return error.mean((1, 2))
    mask = mask.to(error)
    if not torch.all(torch.any((mask > 0).flatten(-2), -1)):
        raise InputError("the region is empty: no latent cell is inside it")
    return (error * mask).sum((1, 2)) / mask.sum((-2, -1))
