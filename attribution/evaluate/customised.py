"""Customised models to judge methods by: what they were customised on, what they drew, and how they are made here.

FOLDER/customised has a job for each: a model customised on an unseen emoji or a look, and its pictures.
"""

import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from attribution.diffusion.custom import Custom
from attribution.diffusion.overlaid import open_model
from attribution.errors import InputError
from attribution.evaluate.lds import JUDGED
from attribution.evaluate.queue import Queue, open_queue
from attribution.index.index import Index
from attribution.methods import fitting
from attribution.methods.answer import AttributeSettings
from attribution.scenes.customise import (
    Concept,
    CustomiseSettings,
    Kind,
    customise,
    emoji_concept,
    look_concept,
    stacked,
)
from attribution.scenes.looks import LOOKS
from attribution.scenes.names import UNSEEN


@dataclass(frozen=True)
class RetrievalSettings:
    """What is judged.

    Attributes:
        models: customised ones, half of them on an object, half on a look.
        pictures: that each has drawn.
        scenes: training images, chosen by chance, that the exemplars are looked for among.
        methods: that look.
        k: of Recall@K.
        batch: predictions in one call of the U-Net; it changes nothing but time and memory.
        training: how models are customised.
    """

    models: int = 20
    pictures: int = 20
    scenes: int = 512
    methods: tuple[str, ...] = JUDGED
    k: int = 10
    batch: int = 64
    training: CustomiseSettings = field(default_factory=CustomiseSettings)


@dataclass(frozen=True)
class Case:
    """A customised model, what it was customised on and what it drew.

    Attributes:
        name: no other's.
        kind: what the exemplars have in common.
        exemplars: E pictures.
        captions: theirs, with the new word.
        pictures: P pictures that the model drew.
        prompts: of these, with the new word.
        custom: what the model has of its own.
    """

    name: str
    kind: Kind
    exemplars: tuple[Image.Image, ...]
    captions: tuple[str, ...]
    pictures: tuple[Image.Image, ...]
    prompts: tuple[str, ...]
    custom: Custom

    def asked(self, worded: bool) -> list[str]:
        """The prompts as methods are given them: with the new word, or with it cut out."""
        if worded:
            return list(self.prompts)
        return [" ".join(prompt.replace(self.custom.token, " ").split()) for prompt in self.prompts]


@dataclass(frozen=True)
class Cases:
    """Customised models, wherever they come from.

    Attributes:
        kinds: by name, "object" or "style".
        made: what tells them from others, as JSON has it.
        ready: whether one of a name is there.
        load: it.
    """

    kinds: Mapping[str, str]
    made: Mapping[str, Any]
    ready: Callable[[str], bool]
    load: Callable[[str], Case]


def check_settings(settings: RetrievalSettings, images: int) -> None:
    """Refuse, before any work, what cannot be.

    Args:
        settings: what is judged.
        images: in the training set.

    Raises:
        InputError: names the first value, and what is accepted.
    """
    models, k, how = settings.models, settings.k, settings.training
    for possible, given, accepted in (
        (models >= 2 and models % 2 == 0, f"models = {models}", "even numbers from 2"),
        (settings.pictures >= 1, f"pictures = {settings.pictures}", "whole numbers from 1"),
        (1 <= settings.scenes <= images, f"scenes = {settings.scenes}", f"1 to {images}, the training images"),
        (1 <= k <= settings.scenes, f"k = {k}", f"1 to {settings.scenes}, the scenes"),
        (settings.batch >= 1, f"batch = {settings.batch}", "whole numbers from 1"),
        (how.steps >= 1, f"customise_steps = {how.steps}", "whole numbers from 1"),
        (how.batch >= 1, f"customise_batch = {how.batch}", "whole numbers from 1"),
        (how.remembered >= 1, f"customise_remembered = {how.remembered}", "whole numbers from 1"),
        (0 < how.learning_rate < 1, f"customise_learning_rate = {how.learning_rate:g}", "numbers between 0 and 1"),
    ):
        if not possible:
            raise InputError(f"{given} is not possible; accepted are {accepted}")
    for method in settings.methods:
        fitting(AttributeSettings(), method)  # refuses one that is not there


def concepts(settings: RetrievalSettings) -> dict[str, Callable[[], Concept]]:
    """What models are customised on, by name; the emoji are the last ones, which the AbC mappers did not see."""
    half, pictures = settings.models // 2, settings.pictures
    emoji = [len(UNSEEN) - 1 - place for place in range(half)]
    return {
        **{f"object-{UNSEEN[number]}": partial(emoji_concept, number, pictures) for number in emoji},
        **{f"style-{list(LOOKS)[number]}": partial(look_concept, number, pictures) for number in range(half)},
    }


def own_cases(folder: Path, index_id: str, settings: RetrievalSettings) -> Cases:
    """Models that `customise_all` customises.

    Raises:
        InputError: there are not so many emoji and looks.
    """
    if settings.models > (most := 2 * min(len(LOOKS), len(UNSEEN))):
        raise InputError(f"models = {settings.models} is not possible; accepted are even numbers from 2 to {most}")
    queue = Queue(folder / "customised")
    kinds = {name: name.partition("-")[0] for name in concepts(settings)}
    return Cases(kinds, _made(index_id, settings), queue.done, partial(_kept_case, queue))


def _made(index_id: str, settings: RetrievalSettings) -> dict[str, Any]:
    return {"index": index_id, "pictures": settings.pictures, "training": asdict(settings.training)}


def customise_all(folder: Path, index: Index, settings: RetrievalSettings) -> Iterator[str]:
    """Customise models and let them draw, as far as no other process does; yields how far that is."""
    queue, wanted = open_queue(folder / "customised", _made(index.id, settings)), concepts(settings)
    for name in queue.claimed(list(wanted)):
        yield f"customising {name}"
        concept, model = wanted[name](), open_model(index.model_files)
        seed = zlib.crc32(name.encode())  # the same however many models are asked for
        alive: Callable[[int], None] = partial(_touch, queue, name)
        custom, loss = customise(model, concept, index.encoded, settings.training, seed, alive)
        pictures = tuple(model.generate(prompt, number) for number, prompt in enumerate(concept.prompts))
        queue.keep(name, _arrays(concept, pictures, custom) | {"loss": np.array(loss)})


def _touch(queue: Queue, name: str, _step: int) -> None:
    queue.touch(name)


def _arrays(concept: Concept, pictures: tuple[Image.Image, ...], custom: Custom) -> dict[str, NDArray[Any]]:
    weights = {f"weights/{name}": value.float().numpy() for name, value in custom.weights.items()}
    return {
        "exemplars": stacked(concept.exemplars),
        "captions": np.array(concept.captions),
        "pictures": stacked(pictures),
        "prompts": np.array(concept.prompts),
        "token": np.array(custom.token),
        "embedding": custom.words[custom.token].numpy(),
        **weights,
    }


def _kept_case(queue: Queue, name: str) -> Case:
    held = queue.result(name)
    tensors = {key: torch.from_numpy(value) for key, value in held.items() if value.dtype == np.float32}
    weights = {key.removeprefix("weights/"): value for key, value in tensors.items() if key.startswith("weights/")}
    shown = [tuple(Image.fromarray(each) for each in held[key]) for key in ("exemplars", "pictures")]
    told = [tuple(str(each) for each in held[key]) for key in ("captions", "prompts")]
    custom = Custom({str(held["token"]): tensors["embedding"]}, weights)
    kind: Kind = "object" if name.startswith("object-") else "style"
    return Case(name, kind, shown[0], told[0], shown[1], told[1], custom)
