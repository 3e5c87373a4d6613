"""Taking training images away by unlearning, on a model whose loss is quadratic: against training without them."""

from types import SimpleNamespace

import pytest
import torch
from near import assert_close
from torch import nn

from attribution.diffusion.loss import denoising_loss
from attribution.diffusion.noise import NoiseBank
from attribution.diffusion.weights import unlearned
from attribution.unlearning.ekfac import Eigenbasis
from attribution.unlearning.removal import Images, removal_gradient, unlearn_images
from attribution.unlearning.step import UnlearnSettings, query_bank

IMAGES, CHANNELS, SIDE = 12, 3, 4
NAME = "attn2.to_v.weight"
RIDGE = 0.3  # damping: of the mean curvature
SETTINGS = UnlearnSettings(
    curvature="ek-fac", step_size=1.0, damping=RIDGE, timesteps=5, noises=2, seed=3, batch=7, steps=1
)


class Linear:
    """A "diffusion model" that predicts by one linear layer over channels: its loss is quadratic in the weight."""

    def __init__(self):
        torch.manual_seed(0)
        layer = nn.Linear(CHANNELS, CHANNELS, bias=False, dtype=torch.float64).requires_grad_(False)
        self.unet = nn.ModuleDict({"attn2": nn.ModuleDict({"to_v": layer})})
        self.layer, self.device, self.dtype, self.prediction_type = layer, torch.device("cpu"), torch.float64, "epsilon"
        self.latent_shape, self.train_timesteps, self.changed = (CHANNELS, SIDE, SIDE), 100, []
        self.alphas_cumprod = torch.linspace(0.99, 0.01, 100, dtype=torch.float64)

    def predict(self, noisy, _t, _text):
        return self.layer(noisy.movedim(1, -1)).movedim(-1, 1)


@pytest.fixture
def world():
    """The model trained on all images in closed form, the images, their exact curvature, and the trainer."""
    model = Linear()
    generator = torch.Generator().manual_seed(1)
    shape = (IMAGES, 1, *model.latent_shape)
    latents = torch.randn(shape, generator=generator, dtype=torch.float64) * torch.rand(IMAGES, 1, 1, 1, 1) * 3
    images = Images(latents, torch.zeros(IMAGES, 1, 1, dtype=torch.float64))
    bank = query_bank(model, SETTINGS)
    a, b = moments(model, images, bank)
    values, vectors = torch.linalg.eigh(a.mean(0))
    curvature = 2 / CHANNELS * values.expand(CHANNELS, CHANNELS)
    ridge = RIDGE * curvature.mean()

    def trained(rows):
        """The minimum of the losses of some images and of N/2 ridge ||W||^2, which stays as it is."""
        penalty = IMAGES * ridge * torch.eye(CHANNELS, dtype=torch.float64)
        return 2 / CHANNELS * b[rows].sum(0) @ torch.linalg.inv(2 / CHANNELS * a[rows].sum(0) + penalty)

    model.layer.weight.copy_(trained(list(range(IMAGES))))
    basis = Eigenbasis(vectors, torch.eye(CHANNELS, dtype=torch.float64), curvature)
    return SimpleNamespace(model=model, images=images, information={NAME: basis}, trained=trained, bank=bank)


def moments(model, images, bank):
    """E[x x^T] and E[eps x^T] of each image over its noises: (N, C, C) each."""
    alpha = model.alphas_cumprod[bank.t][:, None, None, None]
    eps = bank.eps.double()
    a, b = [], []
    for latents in images.latents[:, 0]:
        x = (alpha.sqrt() * latents + (1 - alpha).sqrt() * eps).movedim(1, 0).flatten(1)
        e = eps.movedim(1, 0).flatten(1)
        a.append(x @ x.T / x.shape[1])
        b.append(e @ x.T / x.shape[1])
    return torch.stack(a), torch.stack(b)


def removed(world, rows, **changed):
    """The weight when some images are unlearned, and the predictions that it took."""
    some = Images(world.images.latents[rows], world.images.text[rows])
    settings = UnlearnSettings(**{**vars(SETTINGS), **changed})
    with unlearned(world.model, "cross-attn-kv") as weights:
        *_, made = unlearn_images(world.model, "cross-attn-kv", some, world.information, settings, IMAGES, weights)
        return weights[NAME].clone(), made


@pytest.mark.parametrize("rows", [[4], [0, 3, 7], [1, 2, 5, 6, 8, 9]])
def test_unlearning_ends_where_training_without_the_images_ends(world, rows):
    retrained = world.trained([row for row in range(IMAGES) if row not in rows])
    before = world.model.layer.weight.clone()
    apart = [float((retrained - removed(world, rows, steps=steps)[0]).norm()) for steps in (1, 2, 4, 100)]
    assert float((retrained - before).norm()) > apart[0] > apart[1] > apart[2]
    assert_close(removed(world, rows, steps=100)[0], retrained, rtol=1e-9, atol=1e-11)
    assert_close(world.model.layer.weight, before, rtol=0, atol=0)


def test_one_step_is_what_a_share_of_the_images_says(world):
    """Of one image among twelve, the first step is most of the way."""
    retrained, before = world.trained([*range(1, IMAGES)]), world.model.layer.weight.clone()
    assert (removed(world, [0])[0] - retrained).norm() < 0.35 * (before - retrained).norm()


def test_the_gradient_is_of_the_sum_of_the_images_losses(world):
    *_, (made, gradient) = removal_gradient(world.model, "cross-attn-kv", world.images, world.bank, batch=7)
    weight = world.model.layer.weight.requires_grad_(True)
    loss = denoising_loss(world.model, world.images.latents[:, 0], world.images.text, world.bank).mean(1).sum()
    (expected,) = torch.autograd.grad(loss, [weight])
    weight.requires_grad_(False)
    assert made == IMAGES * len(world.bank)
    assert_close(gradient[NAME], expected, rtol=1e-12, atol=1e-12)


def test_every_step_makes_a_prediction_an_image_and_noise(world):
    assert removed(world, [0, 1], steps=3)[1] == 3 * 2 * 10


def test_an_image_and_its_mirror_take_turns(world):
    """Over an even number of columns, each is seen at half of them; images differ in which comes first."""
    seen = []

    def predict(noisy, t, _text):
        seen.extend(zip(t.tolist(), noisy.mean((1, 2, 3)).tolist(), strict=True))
        return world.model.layer(noisy.movedim(1, -1)).movedim(-1, 1)

    world.model.predict = predict
    both = torch.stack(
        [torch.zeros(2, *world.model.latent_shape), torch.full((2, *world.model.latent_shape), 100.0)], 1
    )
    images = Images(both.double(), torch.zeros(2, 1, 1, dtype=torch.float64))
    bank = NoiseBank(torch.zeros(4, dtype=torch.int64), torch.zeros(4, *world.model.latent_shape))
    list(removal_gradient(world.model, "cross-attn-kv", images, bank, batch=3))
    assert [mean > 50 for _, mean in seen] == [False, True, True, False] * 2
