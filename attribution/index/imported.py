"""What was published with a model, read instead of computed: the Fisher information, and the training set's latents.

The authors of the paper publish both of their MSCOCO model (`fisher_info.pt`, and latents). What is known is that the
former holds the diagonal of the Fisher information of cross-attention's keys and values. Assumed is

fisher    torch's or safetensors' format, a tensor for each weight by its name in the U-Net ("unet." or "module." before
          it does no harm), of the weight's shape or flat: means over samples of squared gradients of one image's loss
latents   .npy, or a file of one tensor: (N, views, C, h, w), the picture's own view first and then its mirror's, or
          (N, C, h, w) without mirrors, in the order of the training set, as the U-Net reads them: scaled by the VAE's
          factor

Whatever does not fit that is refused in a line that says what is needed, before any work.
"""

import hashlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attribution.diffusion.pictures import to_pixels
from attribution.diffusion.pipeline import Model
from attribution.diffusion.tensors import read_tensors
from attribution.diffusion.weights import WeightSubset, parameters
from attribution.errors import InputError, reason
from attribution.index.manifest import ImportRecord
from attribution.index.work import ExtendSettings, Source, Work, in_one

ALIKE = 0.5  # the least cosine of a picture's latents with those of its file
APART = 2.0  # times, at most, that they are as large


def fisher_record(source: Source) -> ImportRecord | None:
    """The file that the Fisher information is read from, checked; None where it is computed."""
    if (path := source.settings.fisher_file) is None:
        return None
    read_fisher(path, source.model, source.settings.fisher.weights)
    return ImportRecord(_sha256_of_file(path))


def fisher_of_file(source: Source, record: ImportRecord) -> Work:
    """The Fisher information of a file, in one block."""
    path, model, subset = source.settings.fisher_file, source.model, source.settings.fisher.weights
    assert path is not None
    return Work(1, 1, in_one(lambda _rows: read_fisher(path, model, subset)), made=record, total=lambda held: held)


def latents_record(source: Source, _more: ExtendSettings) -> ImportRecord | None:
    """The file that the latents are read from, checked; None where they are made."""
    if (path := source.settings.latents_file) is None:
        return None
    pixels = to_pixels([source.training.square(0, source.model.resolution)])
    held = open_latents(path, len(source.training), source.views, source.model.latent_shape)
    check_latents(path, held, source.model.encode_images(pixels)[0])
    return ImportRecord(_sha256_of_file(path))


def latents_of_file(source: Source, record: ImportRecord) -> Work:
    """The latents of a file, block by block."""
    path, count = source.settings.latents_file, len(source.training)
    assert path is not None
    held = open_latents(path, count, source.views, source.model.latent_shape)

    def block(rows: range) -> NDArray[np.floating]:
        return np.asarray(held[rows.start : rows.stop], np.float16)

    return Work(count, source.settings.batch, in_one(block), made=record, shape=held.shape)


def _sha256_of_file(path: Path) -> str:
    """The hash of a file's bytes.

    Raises:
        InputError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path} could not be read ({reason(error)}); name a file that is there") from error


def read_fisher(path: Path, model: Model, subset: WeightSubset) -> dict[str, Tensor]:
    """The Fisher information's diagonal of a model's weights by name, float32 on the CPU, of a file; see above.

    Raises:
        InputError: it is damaged, or does not fit the model.
    """
    held = {name.removeprefix("module.").removeprefix("unet."): value for name, value in read_tensors(path).items()}
    found = {}
    for name, weight in parameters(model, subset).items():
        shape, value = tuple(weight.shape), held.get(name)
        if value is None or tuple(value.shape) not in (shape, (weight.numel(),)):
            has = "nothing" if value is None else f"a tensor of shape {tuple(value.shape)}"
            raise InputError(
                f"--fisher_file {path} holds {has} of {name}; accepted are tensors by the names of the {subset} weights"
                f" of {model.source}, each of its weight's shape, here {shape}, or flat"
            )
        found[name] = value.detach().float().reshape(shape).contiguous()
        if not (torch.isfinite(found[name]) & (found[name] >= 0)).all():
            raise InputError(f"--fisher_file {path} has values of {name} that are negative or not finite")
    return found


def open_latents(path: Path, count: int, views: int, shape: tuple[int, ...]) -> NDArray[np.floating]:
    """The latents of a file (N, views, C, h, w), memory-mapped where they are of numpy; see above.

    Raises:
        InputError: it is damaged, or of another shape.
    """
    held = _array(path)
    wanted = (count, views, *shape)
    if views == 1 and held.shape == (count, *shape):
        held = held[:, None]
    if held.shape != wanted or not np.issubdtype(held.dtype, np.floating):
        mirrors = "" if views == 1 else "; without mirrors in it, build with --no-random_flip"
        raise InputError(
            f"--latents_file {path} holds {held.dtype} of shape {held.shape}; accepted are floating-point numbers of"
            f" shape {wanted}, images, views, channels and cells{mirrors}"
        )
    return held


def check_latents(path: Path, held: NDArray[np.floating], own: Tensor) -> None:
    """Refuse latents of which those of the first picture are unlike what the model's VAE makes of it.

    Args:
        path: of the file.
        held: (N, views, C, h, w) as it has them.
        own: (C, h, w) of the first picture.

    Raises:
        InputError: the order, the scaling or the pictures are others.
    """
    first, own = torch.from_numpy(np.array(held[0, 0], np.float32)).flatten(), own.cpu().float().flatten()
    alike, size = float(torch.cosine_similarity(first, own, 0)), float(first.norm() / own.norm())
    if not (alike >= ALIKE and 1 / APART <= size <= APART):
        raise InputError(
            f"--latents_file {path} begins with latents unlike those of the first picture (cosine {alike:.2f},"
            f" {size:.2g} times as large); accepted are latents in the order of the training set, times the VAE's"
            " scaling factor"
        )


def _array(path: Path) -> NDArray[np.floating]:
    if path.suffix != ".npy":
        tensors = read_tensors(path)
        if len(tensors) != 1:
            raise InputError(f"--latents_file {path} holds {len(tensors)} tensors; accepted is one, or a file of numpy")
        [value] = tensors.values()
        return (value.float() if value.dtype is torch.bfloat16 else value).numpy()
    try:
        held: NDArray[np.floating] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"--latents_file {path} could not be read ({reason(error)}); make it anew") from error
    return held
