"""The methods once more, written plainly from their formulas: one image, one view, one timestep, one noise at a time.

It shares nothing with the package but the pipeline's modules: no batches, no bank, no halving, no projection.
Everything is float64, save for what an index keeps in fewer bits, which is rounded likewise.
"""

import hashlib
import math

import numpy as np
import torch

GOLDEN = (math.sqrt(5) - 1) / 2


def draw(seed, timesteps, noises, shape, length, start=0.0, end=1.0):
    """Timesteps at the middles of equal strides of a part of the schedule, `noises` standard normals for each."""
    normals = torch.randn(timesteps * noises, *shape, generator=torch.Generator().manual_seed(seed))
    stride = length * (end - start) / timesteps
    places = [int(start * length + (i // noises + 0.5) * stride) for i in range(len(normals))]
    return [(t, normal.double()) for t, normal in zip(places, normals, strict=True)]


def read(pipe, caption):
    """A caption to the text encoder's hidden states, (1, L, D), or to all that SDXL's U-Net reads."""
    if hasattr(pipe, "text_encoder_2"):
        return read_twice(pipe, caption)
    limit = pipe.tokenizer.model_max_length
    ids = pipe.tokenizer(
        caption, padding="max_length", max_length=limit, truncation=True, return_tensors="pt"
    ).input_ids
    with torch.no_grad():
        return pipe.text_encoder(ids).last_hidden_state


def read_twice(pipe, caption):
    """SDXL: the last states but one of both encoders side by side, the second's vector, and a square's sizes."""
    states, side = [], pipe.unet.config.sample_size * 4.0
    for tokenizer, encoder in ((pipe.tokenizer, pipe.text_encoder), (pipe.tokenizer_2, pipe.text_encoder_2)):
        how = {"padding": "max_length", "max_length": tokenizer.model_max_length, "truncation": True}
        with torch.no_grad():
            made = encoder(tokenizer(caption, return_tensors="pt", **how).input_ids, output_hidden_states=True)
        states.append(made.hidden_states[-2][0])
    sizes = torch.tensor([[side, side, 0, 0, side, side]], dtype=torch.float64)
    added = {"text_embeds": made.text_embeds, "time_ids": sizes}
    return {"encoder_hidden_states": torch.cat(states, 1)[None], "added_cond_kwargs": added}


def predict(pipe, x_t, t, text):
    """The U-Net's prediction of one picture (C, h, w)."""
    read = text if isinstance(text, dict) else {"encoder_hidden_states": text}
    return pipe.unet(x_t[None], torch.tensor([t], device=x_t.device), **read).sample[0]


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
    made = predict(pipe, signal * x + noise * eps, t, text)
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


def norm(pipe, x, text, t, eps, mask=None):
    """|| model(x_t, t, c) ||^2, averaged like the loss: what D-TRAK differentiates."""
    abar = float(pipe.scheduler.alphas_cumprod[t])
    x_t = math.sqrt(abar) * x + math.sqrt(1 - abar) * eps
    made = predict(pipe, x_t, t, text)
    square = (made**2).sum(0) / len(x)
    return square.mean() if mask is None else (mask * square).sum() / mask.sum()


def weights(pipe, subset="cross-attn-kv"):
    """Parameters of the U-Net by name; by default cross-attention K and V."""
    parts = {
        "cross-attn-kv": (".attn2.to_k.", ".attn2.to_v."),
        "cross-attn": (".attn2.",),
        "attn": (".attn1.", ".attn2."),
        "all": ("",),
    }[subset]
    return {name: p for name, p in pipe.unet.named_parameters() if any(part in name for part in parts)}


def gradient(pipe, value, subset="cross-attn-kv"):
    """Of a loss by the weights."""
    named = weights(pipe, subset)
    return dict(zip(named, torch.autograd.grad(value(), list(named.values())), strict=True))


def fisher(pipe, latents, captions, noises, samples):
    """The mean of squared gradients; a sample is an image, a view of it and a noise, each by its number."""
    total = {name: torch.zeros_like(p) for name, p in weights(pipe).items()}
    for row, view, noise in samples:
        (t, eps) = noises[noise]
        text = read(pipe, captions[row])
        for name, grad in gradient(pipe, lambda: loss(pipe, latents[row, view], text, t, eps)).items():  # noqa: B023
            total[name] += grad**2 / len(samples)
    return total


def query_gradient(pipe, x, text, noises, mask=None, subset="cross-attn-kv", output=loss):
    """Of the query's loss, or of another output of the model, averaged over the noises."""
    total = {name: torch.zeros_like(p) for name, p in weights(pipe, subset).items()}
    for t, eps in noises:
        for name, grad in gradient(pipe, lambda: output(pipe, x, text, t, eps, mask), subset).items():  # noqa: B023
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
    return [value for value, _, _, _ in measured(before, after, skew)]


def measured(before, after, skew):
    """Score, both ends of its 95 % interval over the noises, and whether it is the mirror's, of every image."""
    found = []
    for image0, image1 in zip(before, after, strict=True):
        views = []
        for view0, view1 in zip(image0, image1, strict=True):
            pairs = zip(view0, view1, strict=True)
            changes = [(float(b) - float(a)) / ((float(a) + float(b) + 1e-3) if skew else 1) for a, b in pairs]
            mean = sum(changes) / len(changes)
            squares = sum((change - mean) ** 2 for change in changes)
            half = 1.96 * math.sqrt(squares / (len(changes) - 1) / len(changes)) if len(changes) > 1 else math.inf
            views.append((mean, mean - half, mean + half))
        best = max(range(len(views)), key=lambda view: views[view][0])
        found.append((*views[best], best == 1))
    return found


def spread(columns):
    """Columns in the order of the golden ratio's multiples, the middle one first."""
    order = []
    for step in range(8 * columns):
        column = int((0.5 + step * GOLDEN) % 1 * columns)
        if column not in order:
            order.append(column)
    return order


def mixed(before, after, likely, values, column):
    """Score and ends of its interval, of every image in its likelier view: the mean of the loss's change and a value.

    Values are made as large as the changes at a column, root mean squares over all images.
    """
    changes = [[float(b) - float(a) for a, b in zip(before[i][v], after[i][v], strict=True)] for i, v in likely]
    own = [float(values[i][v]) for i, v in likely]
    unit = math.sqrt(sum(each[column] ** 2 for each in changes) / sum(value**2 for value in own))
    found = []
    for each, value in zip(changes, own, strict=True):
        mean = sum(each) / len(each)
        half = 1.96 * math.sqrt(sum((one - mean) ** 2 for one in each) / (len(each) - 1) / len(each))
        found.append(tuple((end + unit * value) / 2 for end in (mean, mean - half, mean + half)))
    return found, unit


def race(before, after, skew, likely, keep, first_columns, growth, survivors):
    """Rows that are left after halving, best first: all columns and views only for those who get so far."""
    count, views, columns = before.shape
    order = spread(columns)
    rows, width, seen = list(range(count)), first_columns, 1
    while True:
        sides = [[likely[row]] if seen == 1 else range(seen) for row in rows]
        at = [np.ix_([row], views_of, order[:width]) for row, views_of in zip(rows, sides, strict=True)]
        scores = [score(before[one], after[one], skew)[0] for one in at]
        rows = [rows[place] for place in sorted(range(len(rows)), key=lambda place: -scores[place])]
        if (width, seen) == (columns, views):
            return rows
        width, seen = min(columns, max(width + 1, round(width * growth))), views
        rows = rows[: max(survivors, round(len(rows) * keep))]


# The Fisher information


def information(pipe, latents, captions, noises):
    """Over every image, view and noise: mean squared gradients of all weights, and EK-FAC's parts of K and V.

    Returns:
        The diagonal by name, and by name E[a a^T], E[g g^T] summed over tokens, and the gradients, one an image.
    """
    layers = {name: pipe.unet.get_submodule(name.removesuffix(".weight")) for name in weights(pipe)}
    diagonal = {name: torch.zeros_like(p) for name, p in weights(pipe, "all").items()}
    factors = {name: [0, 0, []] for name in layers}
    given = {}
    handles = [
        layer.register_forward_hook(lambda _, args, out, name=name: given.update({name: (args[0], out)}))
        for name, layer in layers.items()
    ]
    triples = [
        (row, view, noise) for row in range(len(captions)) for view in range(latents.shape[1]) for noise in noises
    ]
    for row, view, (t, eps) in triples:
        value = loss(pipe, latents[row, view], read(pipe, captions[row]), t, eps)
        named = weights(pipe, "all")
        grads = torch.autograd.grad(value, [*named.values(), *(given[name][1] for name in layers)])
        for name, grad in zip(named, grads, strict=False):
            diagonal[name] += grad**2 / len(triples)
            if name in layers:
                factors[name][2].append(grad)
        for name, g in zip(layers, grads[len(named) :], strict=True):
            a = given[name][0]
            factors[name][0] += sum(torch.outer(row, row) for row in a[0].detach())
            factors[name][1] += sum(torch.outer(row, row) for row in g[0])
    for handle in handles:
        handle.remove()
    return diagonal, factors


def eight_bits(values):
    """As float8 e4m3 keeps them beside a scale that brings the largest to 448: four significant bits, 2^-9 apart."""
    scale = np.float32(float(values.max())) / np.float32(448)
    rounded = []
    for value in (values / float(scale)).flatten().tolist():
        spacing = 2.0 ** (max(math.floor(math.log2(value)), -6) - 3) if value > 0 else 1.0
        rounded.append(round(value / spacing) * spacing)  # halves to the even one
    return (torch.tensor(rounded).reshape(values.shape) * float(scale)).double()  # float32 when it is read


def newton(grads, diagonal, damping):
    """F^-1 grad, F a diagonal by name, damped by a share of its mean."""
    return {name: grad / (diagonal[name] + damping * diagonal[name].mean()) for name, grad in grads.items()}


def ekfac(grads, factors, damping):
    """F^-1 grad in the eigenbasis of E[a a^T] and E[g g^T], over the mean squared gradients there."""
    moved = {}
    for name, grad in grads.items():
        qa, qs, squares = eigenbasis(factors[name])
        moved[name] = qs @ ((qs.T @ grad @ qa) / (squares + damping * squares.mean())) @ qa.T
    return moved


def eigenbasis(factor):
    """Eigenvectors of E[a a^T] and E[g g^T], and the mean squared gradients in their basis."""
    a, g, gradients = factor
    qa, qs = torch.linalg.eigh(a)[1], torch.linalg.eigh(g)[1]
    return qa, qs, sum((qs.T @ each @ qa) ** 2 for each in gradients) / len(gradients)


def whitened(grads, factors, damping):
    """F^-1/2 grad in the eigenbasis of E[a a^T] and E[g g^T], by name."""
    found = {}
    for name, grad in grads.items():
        qa, qs, squares = eigenbasis(factors[name])
        found[name] = (qs.T @ grad @ qa) / torch.sqrt(squares + damping * squares.mean())
    return found


# Projected gradients


def half(rows):
    """As float16 keeps them beside a power of two that brings the first row to about one; and that power."""
    scale = 2.0 ** -round(math.log2(float(np.sqrt(np.mean(rows[0] ** 2)))))
    return (rows * scale).astype(np.float16).astype(np.float64), scale


def trak(phi, query, damping):
    """phi(q)^T (Phi^T Phi + lambda I)^-1 phi(i), lambda a share of the mean of the diagonal."""
    gram = sum(np.outer(row, row) for row in phi)
    ridge = damping * np.trace(gram) / len(gram)
    solved = np.linalg.solve(gram + ridge * np.eye(len(gram)), query)
    return [float(solved @ row) for row in phi]


# Regions and features


def area(boxes, cells, px):
    """How much of each latent cell is in the box that has most of it, (cells, cells)."""
    mask = torch.zeros(cells, cells, dtype=torch.float64)
    for x0, y0, x1, y1 in boxes:
        for row in range(cells):
            for column in range(cells):
                across = min(x1, (column + 1) * px) - max(x0, column * px)
                down = min(y1, (row + 1) * px) - max(y0, row * px)
                mask[row, column] = max(mask[row, column], max(across, 0) * max(down, 0) / px**2)
    return mask


def attended(pipe, x, prompt, word, noises):
    """How much each latent cell attends to a word, over noises, layers and heads; from 0 to 1, squared."""
    sizes = [len(pipe.tokenizer(each, add_special_tokens=False).input_ids) for each in prompt.split()]
    before = prompt.split().index(word)
    first = 1 + sum(sizes[:before])  # after the marker of the beginning
    places, text = range(first, first + sizes[before]), read(pipe, prompt)
    seen = {}
    layers = {name: layer for name, layer in pipe.unet.named_modules() if name.endswith(".attn2")}
    handles = [
        layer.register_forward_pre_hook(lambda _, args, name=name: seen.update({name: args[0][0]}))
        for name, layer in layers.items()
    ]
    total = torch.zeros(x.shape[1:], dtype=torch.float64)
    for t, eps in noises:
        with torch.no_grad():
            norm(pipe, x, text, t, eps)
            for name, layer in layers.items():
                queries, keys = layer.to_q(seen[name]), layer.to_k(text[0])
                width = queries.shape[1] // layer.heads
                for head in range(layer.heads):
                    at = slice(head * width, (head + 1) * width)
                    shares = torch.softmax(queries[:, at] @ keys[:, at].T / math.sqrt(width), 1)
                    side = math.isqrt(len(shares))
                    own = sum(shares[:, place] for place in places).reshape(1, 1, side, side) / len(places)
                    own = torch.nn.functional.interpolate(own, x.shape[1:], mode="bilinear")[0, 0]
                    total += own / layer.heads / len(noises)
    for handle in handles:
        handle.remove()
    return ((total - total.min()) / (total.max() - total.min())) ** 2


def cosine(one, other):
    """Of two vectors."""
    one, other = np.asarray(one, np.float64).ravel(), np.asarray(other, np.float64).ravel()
    return float(one @ other / math.sqrt(float(one @ one)) / math.sqrt(float(other @ other)))


def dice(seed, image, count):
    """What `random` throws: from its seed and a hash of the picture's size and pixels."""
    digest = hashlib.sha256(repr(image.size).encode() + np.asarray(image).tobytes()).hexdigest()
    return np.random.default_rng([seed, int(digest[:8], 16)]).random(count).tolist()


def picture(pipe, prompt, seed, steps, guidance):
    """What the pipeline draws: every step moves by the empty prompt's prediction plus guidance times the difference."""
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x, scheduler = noise * pipe.scheduler.init_noise_sigma, type(pipe.scheduler).from_config(pipe.scheduler.config)
    scheduler.set_timesteps(steps)
    with torch.no_grad():
        for t in scheduler.timesteps:
            empty, full = (pipe.unet(x, t, encoder_hidden_states=read(pipe, text)).sample for text in ("", prompt))
            x = scheduler.step(empty + guidance * (full - empty), t, x).prev_sample
        pixels = pipe.vae.decode(x / pipe.vae.config.scaling_factor).sample[0]
    return ((pixels / 2 + 0.5).clamp(0, 1) * 255).permute(1, 2, 0).numpy()
