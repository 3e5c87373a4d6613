"""Large indexes, simulated: `python tests/large.py --rows 10_000_000` opens and asks one; `--grow` measures a build.

`--approximate` gives it vectors that are drawn in clusters, puts them into lists, and asks with these and without.

An index of eight pictures is stretched to so many rows. What is the same for all is repeated (captions), and what is
read row by row are files with holes (latents, losses, thumbnails), which take no room on the disk; vectors are zero but
for a few rows that a query finds. Prints, as JSON: seconds and resident memory of opening, of reading rows and of
queries, and the bytes that are on the disk and would be there without holes.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import psutil
import pyarrow
import torch
import tyro
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent.parent))

from conftest import CAPTIONS, build_all, make_tiny_tokenizer, random_picture, save_tiny_pipeline
from networks import tiny_clip

from attribution.batches import batches
from attribution.diffusion.noise import NoiseSettings
from attribution.diffusion.pipeline import Model
from attribution.files import let_go
from attribution.index.build import Builder, build, make_step
from attribution.index.checksums import checksums_of
from attribution.index.data import DataSettings
from attribution.index.index import Index, open_index
from attribution.index.listed import list_record
from attribution.index.lists import ListRecord, ListSettings
from attribution.index.manifest import FeatureRecord, GradientRecord, Manifest
from attribution.index.texts import BATCH
from attribution.index.work import BuildSettings, ExtendSettings
from attribution.methods import attribute
from attribution.methods.answer import AttributeSettings
from attribution.query.query import Query
from attribution.unlearning.fisher import FisherSettings
from attribution.unlearning.projection import GradientSettings


def pictures(folder: Path, count: int) -> Path:
    """An imagefolder."""
    folder.mkdir()
    rows = [{"file_name": f"{row:08d}.png", "text": CAPTIONS[row % len(CAPTIONS)]} for row in range(count)]
    for row, each in enumerate(rows):
        random_picture(row).save(folder / str(each["file_name"]))
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def small_index(folder: Path) -> Path:
    """An index of eight pictures, beside its model and CLIP, whose vectors have 512 numbers."""
    model = Model.load(save_tiny_pipeline(folder / "model", "v_prediction"), torch.device("cpu"))
    clip = str(tiny_clip(folder / "clip", make_tiny_tokenizer(), 512))
    settings = BuildSettings(DataSettings(train_data_dir=pictures(folder / "data", 8)), NoiseSettings(4, 2, 5))
    more = ExtendSettings(
        features=("clip",),
        feature_weights={"clip": clip},
        gradients=("influence",),
        projection=GradientSettings(dimension=64),
    )
    for _ in build(folder / "index", model, replace(settings, fisher=FisherSettings(samples=8)), more):
        pass
    return folder / "index"


def stretch(index: Path, rows: int) -> Path:
    """Make an index one of so many rows, of which the first ones are as they were."""
    manifest = Manifest.read(index)
    _repeat_captions(index / "captions.arrow", rows)
    size = (index / "thumbnails.bin").stat().st_size
    ends = np.load(index / "thumbnails.npy")
    more = size * np.arange(2, rows - len(ends) + 2, dtype=np.int64)
    np.save(index / "thumbnails.npy", np.concatenate([ends, more]))
    os.truncate(index / "thumbnails.bin", int(more[-1]))
    for name in ("latents", "base_losses"):
        _with_holes(index / f"{name}.npy", rows, 0)
    steps = dict(manifest.steps)
    for name, step in steps.items():
        if isinstance(step.made, FeatureRecord | GradientRecord) and step.made.shape:
            shape = _with_holes(index / f"{name}.npy", rows, int(name.startswith("gradients/")))
            steps[name] = replace(step, made=replace(step.made, shape=shape), stored=None)
    replace(manifest, data=replace(manifest.data, count=rows), steps=steps).write(index)
    return index


def clustered(count: int, dimension: int, seed: int, topics: int = 1000) -> NDArray[np.float32]:
    """Vectors (count, 2, dimension) as of images and mirrors: of topics, groups in each, and images in each group.

    Two images of a topic have a cosine of about 0.6, those of a group 0.8, of other topics 0.3, mirrors 0.95.
    """
    rng, shared = np.random.default_rng(seed), np.random.default_rng(0)
    of_topic = rng.integers(topics, size=count)
    group = 32 * of_topic + rng.integers(32, size=count)

    def directions(generator: np.random.Generator, number: int) -> NDArray[np.float32]:
        return generator.standard_normal((number, dimension), np.float32) / np.float32(dimension**0.5)

    common, of_topics, of_groups = directions(shared, 1), directions(shared, topics), directions(shared, 32 * topics)
    each = common * 0.3**0.5 + of_topics[of_topic] * 0.3**0.5 + of_groups[group] * 0.2**0.5
    each = each + directions(rng, count) * np.float32(0.2**0.5)
    views = [each + directions(rng, count) * np.float32(0.15) for _ in range(2)]
    return np.stack(views, 1, dtype=np.float32)


def with_vectors(index: Path, topics: int = 1000) -> Path:
    """Give an index vectors that are drawn by chance, in place of CLIP's."""
    path, manifest = index / "features/clip.npy", Manifest.read(index)
    vectors = np.load(path, mmap_mode="r+")
    for number, rows in enumerate(batches(len(vectors), BATCH)):
        vectors[rows.start : rows.stop] = clustered(len(rows), vectors.shape[-1], number + 1, topics)
        vectors.flush()
        let_go(vectors)
    step = replace(manifest.step("features/clip"), stored=checksums_of(index, "features/clip"))
    manifest.having("features/clip", step).write(index)
    return index


def list_up(index: Path, settings: ListSettings | None = None) -> dict[str, float]:
    """Put CLIP's vectors into lists; seconds by step."""
    manifest, taken = Manifest.read(index), {}
    source: Any = SimpleNamespace(files=index, training=range(manifest.data.count))
    record = list_record(source, ExtendSettings(nearest=settings or ListSettings()))
    builder = Builder(source, manifest, index)
    for name in ("lists/clip", "listed/clip"):
        began = time.monotonic()
        for _ in make_step(builder, name, record, lambda _: None):
            pass
        taken[name] = round(time.monotonic() - began, 1)
    return taken


def _repeat_captions(path: Path, rows: int) -> None:
    """One batch over and over."""
    with pyarrow.memory_map(str(path)) as file:
        few = pyarrow.ipc.open_file(file).read_all()
    block = few.take(np.arange(BATCH) % len(few)).combine_chunks().to_batches()[0]
    with pyarrow.ipc.new_file(path.with_suffix(".new"), few.schema) as file:
        for part in batches(rows, BATCH):
            file.write_batch(block.slice(0, len(part)))
    os.replace(path.with_suffix(".new"), path)


def _with_holes(path: Path, rows: int, axis: int) -> tuple[int, ...]:
    """An array with more rows, which are zero and take no room; its new shape."""
    few = np.load(path)
    shape = (*few.shape[:axis], rows, *few.shape[axis + 1 :])
    many = np.lib.format.open_memmap(path, mode="w+", dtype=few.dtype, shape=shape)
    many[(*[slice(None)] * axis, slice(few.shape[axis]))] = few
    many.flush()
    return shape


def memory() -> dict[str, int]:
    """Resident memory of this process in MB: all of it, and what is not pages of files."""
    info = psutil.Process().memory_info()
    return {"rss": info.rss >> 20, "own": (info.rss - info.shared) >> 20}


def ask(folder: Path) -> dict[str, Any]:
    """What opening and asking an index takes, in a process of its own."""
    model, _ = open_index(folder.parent / "few")  # loads all libraries, and the model
    told: dict[str, Any] = {"before": memory()}

    def measured(name: str, work: Any) -> Any:
        began = time.monotonic()
        made = work()
        told[name] = {"seconds": round(time.monotonic() - began, 3), **memory()}
        print(name, told[name], file=sys.stderr, flush=True)
        return made

    index = measured("open", lambda: Index.open(folder))
    middle = len(index) // 2
    measured("texts", lambda: (index.ids[-1], index.captions[middle], index.thumbnail(7), index.thumbnail(middle)))
    measured("encoded", lambda: index.encoded.view(range(0, len(index), max(1, len(index) // 1000)), [0]))
    query = Query(index.captions[3], index.pictures.small(3))
    for method in ("clip", "influence", "random"):
        settings = AttributeSettings(method=method)
        *_, answer = measured(method, lambda: list(attribute(model, index, query, settings)))  # noqa: B023
        told[method]["first"] = [result.row for result in answer.results[:3]]
    told["most"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    return told


def searched(folder: Path) -> dict[str, Any]:
    """What lists take, and a search by them and by all vectors, warm and with nothing of the files in memory."""
    model, _ = open_index(folder.parent / "few")
    told: dict[str, Any] = {"before": memory(), "seconds": list_up(folder)}
    told["most"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    index = Index.open(folder)
    told["made"] = asdict(index.manifest.made("listed/clip", ListRecord))
    query, first = Query(index.captions[3], index.pictures.small(3)), dict[str, tuple[int, ...]]()
    wanted = torch.from_numpy(clustered(1, index.array("features/clip").shape[-1], 10**6)[0, 0])
    with patch("attribution.methods.features._network", lambda *_: lambda _: wanted[None]):
        for how, exhaustive in (("lists", False), ("all", True)):
            settings = AttributeSettings(method="clip", exhaustive=exhaustive)
            for state in ("cold", "warm"):
                _forget(index) if state == "cold" else None
                began = time.monotonic()
                *_, answer = attribute(model, index, query, settings)
                told[f"{how}, {state}"] = round(time.monotonic() - began, 3)
            first[how] = answer.rows[:10]
    told["shared"] = len(set(first["lists"]) & set(first["all"]))
    return {**told, "after": memory()}


def _forget(index: Index) -> None:
    """Let the system give back what it holds of the files that a search reads."""
    for name in ("features/clip.npy", "listed/clip.npy", "lists/clip.safetensors"):
        with (index.path / name).open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def grown(folder: Path, count: int) -> dict[str, Any]:
    """What building an index of so many pictures takes, in a process of its own."""
    model = Model.load(save_tiny_pipeline(folder / "model", "v_prediction"), torch.device("cpu"))
    settings = BuildSettings(DataSettings(train_data_dir=folder / "data"), NoiseSettings(1, 1))
    began, before = time.monotonic(), memory()
    build_all(folder / "index", model, replace(settings, fisher=FisherSettings(samples=64)))
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    return {
        "images": count,
        "seconds": round(time.monotonic() - began),
        "before": before,
        "after": memory(),
        "most": most,
    }


def sizes(folder: Path) -> dict[str, dict[str, int]]:
    """MB of the files of an index: as they are told, and what of them is on the disk."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    stats = {str(path.relative_to(folder)): path.stat() for path in paths}
    return {name: {"told": stat.st_size >> 20, "disk": stat.st_blocks >> 11} for name, stat in stats.items()}


def main(
    rows: int = 1_000_000,
    grow: bool = False,
    approximate: bool = False,
    within: Path | None = None,
    child: Path | None = None,
) -> None:
    """Simulate.

    Args:
        rows: of the index; of the build with `grow`.
        grow: build an index of so many pictures, rather than stretch one.
        approximate: put vectors into lists, and search by these.
        within: a folder for a temporary one, on a disk that knows files with holes.
        child: the folder that the process that measures is given.
    """
    if child is not None:
        measure = searched if approximate else ask
        print(json.dumps(grown(child, rows) if grow else measure(child / "index")))
        return
    with tempfile.TemporaryDirectory(dir=within) as made:
        folder, told = Path(made), {"rows": rows}
        if grow:
            pictures(folder / "data", rows)
        else:
            shutil.copytree(small_index(folder), folder / "few")
            stretch(folder / "index", rows)
            if approximate:
                with_vectors(folder / "index")
        flags = [*(["--grow"] if grow else []), *(["--approximate"] if approximate else [])]
        asked = [sys.executable, __file__, "--rows", str(rows), "--child", made, *flags]
        done = subprocess.run(asked, stdout=subprocess.PIPE, text=True, check=True)
        told["mb"] = {} if grow else sizes(folder / "index")
        print(json.dumps({**told, **json.loads(done.stdout)}, indent=1))


if __name__ == "__main__":
    tyro.cli(main)
