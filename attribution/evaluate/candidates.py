"""What a customised model's pictures may be made of: its exemplars among training images, as an ordinary index.

Every method reads an index, so the candidates are one, with the choices that matter made here:

- The candidates are all exemplars and a random sample of the training images, the same sample for every model. All
  methods rank the same candidates, all of them and on all noises, so that mAP is exact. Among a sample both figures are
  higher than among all N images: a rank r among S of them is about r N / S. How many there were is printed.
- Base losses and projected gradients are the customised model's, those of the training images too: its keys and values
  are not those that the index was measured with, and a difference of losses between the two would hold what customising
  did to an image, not what unlearning did.
- The Fisher information is the pretrained model's, as in the paper (Appendix B.2), diagonal and EK-FAC alike.
- N of Eq. 5 is what the model was trained on, the whole index and the exemplars, however few of them are ranked.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
from PIL import Image

from attribution.diffusion.pipeline import Model
from attribution.errors import InputError
from attribution.evaluate.customised import Case
from attribution.files import write_whole
from attribution.index.build import BuildProgress, build, prepare
from attribution.index.data import DataSettings
from attribution.index.index import Index
from attribution.index.pictures import THUMBNAIL_SIDE
from attribution.index.work import BuildSettings, ExtendSettings
from attribution.methods import METHODS, fitting
from attribution.methods.answer import AttributeSettings
from attribution.unlearning.projection import GradientSettings

EXEMPLAR = "exemplar-"  # how their ids begin
FISHER = ("fisher", "ekfac")  # the pretrained model's


def sampled(index: Index, count: int) -> list[int]:
    """The training images that are candidates, by chance, the same ones for every model."""
    return sorted(int(row) for row in np.random.default_rng(10).permutation(len(index))[:count])


def make_candidates(
    folder: Path, model: Model, index: Index, case: Case, scenes: int, batch: int
) -> Iterator[BuildProgress]:
    """Build the index of a customised model's candidates, or the rest of it.

    Args:
        folder: of the candidates; "pictures" and "index" are made in it.
        model: the customised one.
        index: of the pretrained model.
        case: whose exemplars are among the candidates.
        scenes: how many training images are.
        batch: predictions in one call of the U-Net.

    Raises:
        InputError: the training pictures are not there any more.
    """
    _write_pictures(folder / "pictures", model, index, case, scenes)
    own = index.manifest.settings
    data = DataSettings(
        train_data_dir=folder / "pictures", center_crop=own.data.center_crop, random_flip=own.data.random_flip
    )
    settings = BuildSettings(data, own.noise, own.fisher, batch)
    with prepare(folder / "index", model, settings) as builder:
        for part in FISHER:
            if index.manifest.finished(part) and not builder.manifest.finished(part):
                held = index.file(f"{part}.safetensors").read_bytes()
                write_whole(folder / "index" / f"{part}.safetensors", held)
                builder.save(builder.manifest.having(part, replace(index.manifest.step(part), since=None)))
    yield from build(folder / "index", model, settings, _more(index))


def _write_pictures(out: Path, model: Model, index: Index, case: Case, scenes: int) -> None:
    """An imagefolder of the candidates, training images first; whole where it has its metadata."""
    if (out / "metadata.jsonl").exists():
        return
    out.mkdir(parents=True, exist_ok=True)
    rows = sampled(index, scenes)
    named = {f"scene-{row:08d}.png": (_picture(model, index, row), index.captions[row]) for row in rows}
    exemplars = zip(case.exemplars, case.captions, strict=True)
    named |= {f"{EXEMPLAR}{number:02d}.png": one for number, one in enumerate(exemplars)}
    for name, (picture, _) in named.items():
        picture.save(out / name)
    lines = [json.dumps({"file_name": name, "text": caption}) + "\n" for name, (_, caption) in named.items()]
    write_whole(out / "metadata.jsonl", "".join(lines).encode())


def _picture(model: Model, index: Index, row: int) -> Image.Image:
    picture = index.picture(row)
    if max(picture.size) <= THUMBNAIL_SIDE < model.resolution:
        raise InputError(
            f"of the training image {index.ids[row]} only a thumbnail is there; put the training pictures back to"
            f" where the index was built from, {index.manifest.source}"
        )
    return picture


def _more(index: Index) -> ExtendSettings:
    """What methods read beyond what every index holds, as far as the pretrained model's index holds it."""
    held = [part for part in index.artifacts if any(part in method.artifacts for method in METHODS.values())]
    features, gradients = (
        tuple(part.partition("/")[2] for part in held if part.startswith(f"{kind}/"))
        for kind in ("features", "gradients")
    )
    projection = GradientSettings()
    if gradients:
        made = index.gradients(gradients[0])
        projection = GradientSettings(**{each.name: getattr(made, each.name) for each in fields(GradientSettings)})
    weights = {name: index.feature_weights(name) for name in features}
    return ExtendSettings(features=features, feature_weights=weights, gradients=gradients, projection=projection)


def exemplar_rows(candidates: Index) -> list[int]:
    """Which of the candidates are exemplars."""
    return [row for row, name in enumerate(candidates.ids) if name.startswith(EXEMPLAR)]


def settings_for(method: str, index: Index, candidates: Index, batch: int) -> AttributeSettings:
    """A method as it ranks candidates: all of them, on all noises, and with a step as for the whole training set."""
    asked = replace(fitting(AttributeSettings(), method), top_k=1, batch=batch)
    uses, unlearn = METHODS[method].uses, asked.unlearn
    if "exhaustive" in uses:
        asked = replace(asked, exhaustive=True)
    if METHODS[method].curvature not in (None, "none") and METHODS[method].rise is None and unlearn.rise is None:
        trained_on = len(index) + len(exemplar_rows(candidates))
        unlearn = replace(unlearn, curvature=METHODS[method].curvature or "diagonal")
        share = len(candidates) / trained_on  # `newton_step` divides by the number of candidates
        asked = replace(asked, unlearn=replace(asked.unlearn, step_size=unlearn.alpha * share))
    return asked


def check_methods(methods: Sequence[str], index: Index) -> None:
    """Refuse, before any work, methods that need what the index does not hold.

    Raises:
        InputError: names the first, and how to add it.
    """
    for method in methods:
        for artifact in METHODS[method].artifacts:
            index.require(artifact)
