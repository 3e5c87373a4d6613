"""Models trained again without some images, and what they do with the queries: the ground truth of attribution.

Each (images left out, seed) is one job of a queue that any number of processes share; its result is the U-Net's
weights, so that further queries need no further training. What a model does with the queries is a job of another queue.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from attribution.batches import batches
from attribution.diffusion.loss import denoising_loss
from attribution.diffusion.noise import NoiseBank, NoiseSettings
from attribution.diffusion.pipeline import Model
from attribution.evaluate.queue import Queue, open_queue
from attribution.query.encoded import Encoded, encode
from attribution.query.query import Query, image_sha256
from attribution.scenes.proof import with_unet
from attribution.scenes.retraining import LANES, Lanes, Lessons, RetrainSettings, retrain, unet_of
from attribution.unlearning.score import Floats

EVERY = 100  # steps, between two signs of life
MEASURED = NoiseSettings(timesteps=50, noises=2, seed=11)  # what a query's loss is averaged over
CALL = 96  # predictions at once


@dataclass(frozen=True)
class Removal:
    """One training.

    Attributes:
        rows: training images that are left out, in rising order.
        seed: of first weights, batches and noises.
    """

    rows: tuple[int, ...]
    seed: int

    @property
    def name(self) -> str:
        """Of its job: the same images and seed are one job, whoever asks."""
        return f"{hashlib.sha256(repr(self.rows).encode()).hexdigest()[:12]}-{self.seed}"


def without(rows: Iterable[int], seed: int) -> Removal:
    """A training without some images, in any order."""
    return Removal(tuple(sorted(int(row) for row in rows)), seed)


def halves(images: int, count: int, seeds: int) -> list[Removal]:
    """Random halves of the training set, each trained with every seed; the first seed of all of them comes first."""
    removed = [np.random.default_rng([64, number]).permutation(images)[: images // 2] for number in range(count)]
    return [without(rows, seed) for seed in range(seeds) for rows in removed]


def trained(
    folder: Path, lessons: Lessons, settings: RetrainSettings, wanted: Sequence[Removal], device: torch.device
) -> Iterator[Removal]:
    """Train what is wanted and not done yet, as far as no other process does; yields each that this one has done.

    On a GPU several models are trained at once.

    Raises:
        InputError: the folder holds trainings of other settings.
    """
    queue, by_name = _trainings(folder, settings), {removal.name: removal for removal in wanted}
    lanes = Lanes(lessons, settings, device) if device.type == "cuda" else None
    for names in queue.claimed_together(list(by_name), LANES if lanes else 1):

        def alive(step: int, names: Sequence[str] = names) -> None:
            if step % EVERY == 0:
                for name in names:
                    queue.touch(name)

        jobs = [(_left(by_name[name], len(lessons.text)), by_name[name].seed) for name in names]
        made = lanes.train(lanes.prepare(jobs), alive) if lanes else [retrain(lessons, *jobs[0], settings, alive)]
        for name, weights in zip(names, made, strict=True):
            queue.keep(name, {key: value.half().numpy() for key, value in weights.items()})
            yield by_name[name]


def _left(removal: Removal, images: int) -> list[int]:
    """The images that a model is trained on."""
    return sorted(set(range(images)) - set(removal.rows))


def finished(folder: Path, settings: RetrainSettings, wanted: Sequence[Removal]) -> list[Removal]:
    """Those of the wanted ones that are trained."""
    queue = _trainings(folder, settings)
    return [removal for removal in wanted if queue.done(removal.name)]


def _trainings(folder: Path, settings: RetrainSettings) -> Queue:
    return open_queue(folder / "trainings", asdict(settings))


def retrained(folder: Path, model: Model, settings: RetrainSettings, removal: Removal) -> Model:
    """The model that was trained without some images.

    Raises:
        InputError: it is not trained yet.
    """
    held = _trainings(folder, settings).result(removal.name)
    unet = unet_of({name: torch.from_numpy(value).float() for name, value in held.items()}, settings)
    return with_unet(model, unet.to(model.device), removal.name)


@torch.inference_mode()
def losses_of(model: Model, asked: Sequence[Encoded]) -> Floats:
    """Each query's loss, in its region: (Q,), the mean over MEASURED's noises, the same for every model and query."""
    bank = NoiseBank.draw(MEASURED, model.latent_shape, model.train_timesteps)
    latents, text = (torch.cat(parts) for parts in zip(*((one.latents, one.text) for one in asked), strict=True))
    whole = torch.ones(model.latent_shape[1:])
    masks = torch.stack([whole if one.mask is None else one.mask.cpu() for one in asked])
    calls = [bank.select(list(some)) for some in batches(len(bank), max(1, CALL // len(asked)))]
    losses = [denoising_loss(model, latents, text, call, masks) for call in calls]
    return torch.cat([part.double() for part in losses], 1).mean(1).cpu().numpy()


def drawn_again(model: Model, queries: Sequence[Query]) -> NDArray[np.uint8]:
    """Each query's prompt and seed drawn by a model: (Q, side, side, 3)."""
    pictures = model.generate_together([query.prompt for query in queries], [query.seed or 0 for query in queries])
    return np.stack([np.asarray(picture) for picture in pictures])


def measured(
    folder: Path, model: Model, settings: RetrainSettings, wanted: Sequence[Removal], queries: Sequence[Query]
) -> dict[Removal, dict[str, Any]]:
    """What each trained model does with the queries: "losses" (Q,) and "pictures" (Q, side, side, 3); kept by query.

    Args:
        folder: of trainings; measurements are kept beside them.
        model: trained on all images; it drew the queries.
        settings: of the trainings.
        wanted: of which those that are trained are measured; what is measured once needs its weights no more.
        queries: of generated pictures.
    """
    asked = [encode(model, query) for query in queries]  # regions are those of the model that drew the pictures
    queue, by_name = _measurements(folder, queries), {removal.name: removal for removal in wanted}
    trained_too = [removal.name for removal in finished(folder, settings, wanted)]
    for name in queue.claimed(trained_too):
        other = retrained(folder, model, settings, by_name[name])
        queue.keep(name, {"losses": losses_of(other, asked), "pictures": drawn_again(other, queries)})
    return {removal: queue.result(name) for name, removal in by_name.items() if queue.done(name)}


def unmeasured(folder: Path, wanted: Sequence[Removal], queries: Sequence[Query]) -> list[Removal]:
    """Those of which is not known yet what they do with the queries."""
    queue = _measurements(folder, queries)
    return [removal for removal in wanted if not queue.done(removal.name)]


def _measurements(folder: Path, queries: Sequence[Query]) -> Queue:
    told = {"queries": _told(queries), "noise": asdict(MEASURED)}
    return open_queue(folder / f"measured-{queries_digest(queries)}", told)


def queries_digest(queries: Sequence[Query]) -> str:
    """Tells what was measured of some queries from what was measured of others."""
    return hashlib.sha256(repr(_told(queries)).encode()).hexdigest()[:12]


def _told(queries: Sequence[Query]) -> list[list[Any]]:
    return [[query.prompt, query.seed, query.boxes, query.word, image_sha256(query.image)] for query in queries]
