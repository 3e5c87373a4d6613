"""Unlearning training images: where training without them would have led (Eq. 4 and 5, of training images).

Trained on all N images, the sum of their losses is L(theta_0) + N/2 (theta - theta_0)^T F (theta - theta_0), so that
Eq. 4 with the images of a set S in the query's place is what training without S minimises:

    N/2 (theta - theta_0)^T F (theta - theta_0) - sum_S L(z_i, theta)

Its minimum is theta = theta_0 + (1/N) F^-1 sum_S grad L(z_i, theta). One step takes the gradients at theta_0 (Eq. 5);
each further one takes them where the last has led, and measures from theta_0 again. On a quadratic loss that ends
exactly where training without S ends, each step nearer by the share that S has in the curvature.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from attribution.diffusion.loss import paired_loss
from attribution.diffusion.noise import NoiseBank
from attribution.diffusion.pipeline import Model
from attribution.diffusion.weights import WeightSubset
from attribution.unlearning.fisher import Information
from attribution.unlearning.step import UnlearnSettings, newton_step, query_bank, running_gradient


@dataclass(frozen=True)
class Images:
    """Training images that are taken away together.

    Attributes:
        latents: (K, views, C, h, w); two views, image and mirror, where mirrors were trained on.
        text: (K, L, D) of their captions.
    """

    latents: Tensor
    text: Tensor

    def __len__(self) -> int:
        return len(self.latents)


def removal_gradient(
    model: Model, subset: WeightSubset, images: Images, bank: NoiseBank, batch: int
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Gradient of the images' summed losses, each averaged over the bank: yields (predictions made, running sum).

    An image and its mirror take turns from column to column, as they did in training.

    Args:
        model: at the weights of interest.
        subset: the weights to differentiate by.
        images: K of them.
        bank: S columns; K x S predictions are made.
        batch: predictions in one pass, at most.
    """
    count, views = len(images), images.latents.shape[1]

    def loss(some: range) -> Tensor:
        places, columns = [each % count for each in some], [each // count for each in some]
        turns = [(each % count + each // count) % views for each in some]
        return paired_loss(model, images.latents[places, turns], images.text[places], bank.select(columns)).sum() / len(
            bank
        )

    yield from running_gradient(model, subset, count * len(bank), batch, loss)


def unlearn_images(
    model: Model,
    subset: WeightSubset,
    images: Images,
    information: Mapping[str, Information] | None,
    settings: UnlearnSettings,
    trained: int,
    weights: dict[str, Tensor],
) -> Iterator[int]:
    """Move `weights`, the model's own, to where training images are unlearned; yields predictions made so far.

    Args:
        model: at theta_0.
        subset: the weights that change.
        images: to take away.
        information: F at theta_0, by parameter name; None for gradient ascent.
        settings: alpha (1 is Eq. 5 as it stands), damping, steps, noises.
        trained: N, the number of training images.
        weights: of the subset, in place.
    """
    start = {name: weight.clone() for name, weight in weights.items()}
    bank = query_bank(model, settings)
    for step in range(settings.steps):
        gradient: dict[str, Tensor] = {}
        for done, so_far in removal_gradient(model, subset, images, bank, settings.batch):
            gradient = so_far
            yield step * len(images) * len(bank) + done
        for name, change in newton_step(gradient, information, settings, trained).items():  # Eq. 5
            weights[name].copy_(start[name] + change)
