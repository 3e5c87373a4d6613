"""The method once more, written plainly from its formulas: one image, one view, one timestep, one noise at a time.

It shares nothing with the package but the pipeline's modules: no batches, no bank, no halving, no hooks.
Everything is float64.
"""

import math

import numpy as np
import torch


def draw(seed, timesteps, noises, shape, length):
    """Timesteps at the middles of equal strides of the schedule, `noises` standard normals for each."""
    normals = torch.randn(timesteps * noises, *shape, generator=torch.Generator().manual_seed(seed))
    return [(int((i // noises + 0.5) * length / timesteps), normal.double()) for i, normal in enumerate(normals)]


def read(pipe, caption):
    """A caption to the text encoder's hidden states, (1, L, D)."""
    limit = pipe.tokenizer.model_max_length
    ids = pipe.tokenizer(
        caption, padding="max_length", max_length=limit, truncation=True, return_tensors="pt"
    ).input_ids
    with torch.no_grad():
        return pipe.text_encoder(ids).last_hidden_state


def see(pipe, image):
    """A picture of the model's size to scaled latents (C, h, w)."""
    pixels = np.asarray(image.convert("RGB"), np.float32).transpose(2, 0, 1) / np.float32(127.5) - 1
    with torch.no_grad():
        mode = pipe.vae.encode(torch.from_numpy(pixels).double()[None]).latent_dist.mode()
    return mode[0] * pipe.vae.config.scaling_factor


def loss(pipe, x, text, t, eps, mask=None):
    """|| target - model(x_t, t, c) ||^2, averaged over channels, then over cells weighted by the mask."""
    abar = float(pipe.scheduler.alphas_cumprod[t])
    signal, noise = math.sqrt(abar), math.sqrt(1 - abar)
    made = pipe.unet((signal * x + noise * eps)[None], torch.tensor([t]), encoder_hidden_states=text).sample[0]
    wanted = eps if pipe.scheduler.config.prediction_type == "epsilon" else signal * eps - noise * x
    square = ((wanted - made) ** 2).sum(0) / len(x)
    return square.mean() if mask is None else (mask * square).sum() / mask.sum()


def losses(pipe, latents, captions, noises):
    """L(z, theta) of every image, view and noise: (N, views, S)."""
    table = np.zeros((len(captions), latents.shape[1], len(noises)))
    with torch.no_grad():
        for row, caption in enumerate(captions):
            text = read(pipe, caption)
            for view, x in enumerate(latents[row]):
                table[row, view] = [float(loss(pipe, x, text, t, eps)) for t, eps in noises]
    return table


def weights(pipe):
    """Cross-attention K and V of the U-Net, by name."""
    return {name: p for name, p in pipe.unet.named_parameters() if ".attn2.to_k." in name or ".attn2.to_v." in name}


def gradient(pipe, value):
    """Of a loss by the weights."""
    return dict(zip(weights(pipe), torch.autograd.grad(value(), list(weights(pipe).values())), strict=True))


def fisher(pipe, latents, captions, noises, samples):
    """The mean of squared gradients; a sample is an image, a view of it and a noise, each by its number."""
    total = {name: torch.zeros_like(p) for name, p in weights(pipe).items()}
    for row, view, noise in samples:
        (t, eps) = noises[noise]
        text = read(pipe, captions[row])
        for name, grad in gradient(pipe, lambda: loss(pipe, latents[row, view], text, t, eps)).items():  # noqa: B023
            total[name] += grad**2 / len(samples)
    return total


def query_gradient(pipe, x, text, noises, mask=None):
    """Of the query's loss, averaged over the noises."""
    total = {name: torch.zeros_like(p) for name, p in weights(pipe).items()}
    for t, eps in noises:
        for name, grad in gradient(pipe, lambda: loss(pipe, x, text, t, eps, mask)).items():  # noqa: B023
            total[name] += grad / len(noises)
    return total


def unlearn(pipe, x, text, noises, information, alpha, damping, images, steps, mask=None):
    """theta <- theta + alpha / N (F + damping mean F)^-1 grad L(query), `steps` times; changes the pipeline."""
    for _ in range(steps):
        for name, grad in query_gradient(pipe, x, text, noises, mask).items():
            f = information[name]
            weights(pipe)[name].data += alpha / images * grad / (f + damping * f.sum() / f.numel())


def score(before, after, skew):
    """Mean over the noises of L1 - L0, or of (L1 - L0) / (L1 + L0 + 1e-3); the larger of image and mirror."""
    scores = []
    for image0, image1 in zip(before, after, strict=True):
        views = []
        for view0, view1 in zip(image0, image1, strict=True):
            pairs = list(zip(view0, view1, strict=True))
            views.append(sum((b - a) / ((a + b + 1e-3) if skew else 1) for a, b in pairs) / len(pairs))
        scores.append(max(views))
    return scores
