"""Build an index: one loop over the table of steps, which goes on where it was interrupted."""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from attribution.diffusion.noise import NoiseBank, NoiseSettings
from attribution.diffusion.pipeline import Model
from attribution.diffusion.weights import parameters
from attribution.errors import InputError
from attribution.files import write_whole, writing
from attribution.index.blocks import Maker, Task, made_here, require_finite
from attribution.index.checksums import checksums_of
from attribution.index.data import BAD_ROWS, bad_rows, open_training_set
from attribution.index.features import FEATURES
from attribution.index.found import manifest_to_begin, moved, placed, refuse_others, sweep, without_lost
from attribution.index.gradients import SIGNED
from attribution.index.listed import SEARCHED
from attribution.index.manifest import MANIFEST, DataRecord, Manifest, Record, StepRecord
from attribution.index.packed import ENDING, PackedFile
from attribution.index.rows import Tell, silent
from attribution.index.steps import REQUIRED, STEPS
from attribution.index.stored import ArrayFile, Files, SumFile, save_tensors
from attribution.index.work import BuildSettings, ExtendSettings, Source, Work
from attribution.unlearning.fisher import samples_for
from attribution.unlearning.projection import GRADIENT_OUTPUTS

LOOKED_AT = "images"  # what the time before the first step goes into


@dataclass(frozen=True)
class BuildProgress:
    """A step of the build, and how much of it is done, in rows; the total is 0 where it is not known yet."""

    step: str
    done: float
    total: int


Watch = Callable[[BuildProgress], None]


@dataclass
class Builder:
    """One build: what it is made from, and the manifest, which is on disk what it is here.

    Attributes:
        source: what it is made from.
        manifest: of the index, or of what is to become one.
        home: the folder that the manifest is in.
    """

    source: Source
    manifest: Manifest
    home: Path

    def save(self, manifest: Manifest) -> None:
        """Take and write another state of the manifest."""
        self.manifest = manifest
        manifest.write(self.home)

    def partial(self, step: str) -> Path:
        """Where the sums of a step are kept until it is done."""
        return self.source.files / f"{step}.partial.safetensors"


def build(
    out: Path,
    model: Model,
    settings: BuildSettings,
    more: ExtendSettings | None = None,
    tell: Watch = lambda _: None,
    make: Maker = made_here,
) -> Iterator[BuildProgress]:
    """Build or go on building an index.

    Args:
        out: its folder.
        model: that it is of.
        settings: what every index holds, and from what.
        more: what is added.
        tell: of what is not yielded: images that are looked at, a step that begins, the share of a block that is done.
        make: makes the blocks: this process, or others, see `index.cluster`.

    Raises:
        InputError: the training data cannot be read, or are empty, or hold a picture of which something is not finite;
            or a setting is not possible, or there is no such feature or gradient.
        IndexMismatch: the folder holds an index of another model, other data or other settings.
        WeightsUnavailable: a feature's network cannot be had; what was added before stays.
    """
    with prepare(out, model, settings, lambda *done: tell(BuildProgress(LOOKED_AT, *done))) as builder:
        yield from make_all(builder, more or ExtendSettings(), tell, make)


@contextmanager
def prepare(out: Path, model: Model, settings: BuildSettings, tell: Tell = silent) -> Iterator[Builder]:
    """A build, begun or to go on with, whose folder nobody else writes into; see `build`."""
    source = source_of(out, model, settings, tell=tell)
    with writing(out):
        manifest = manifest_of(source)
        yield Builder(replace(source, folder=manifest.folder), manifest, out)


def make_all(builder: Builder, more: ExtendSettings, tell: Watch, make: Maker = made_here) -> Iterator[BuildProgress]:
    """Make all that an index lacks of what every index holds, and of what is added; see `build`."""
    out, wanted = builder.home, wanted_of(builder, more)
    builder.manifest = moved(builder.manifest, builder.source, wanted)
    for name, record in wanted.items():
        builder.manifest.refuse_other_step(name, record, out)
    sweep(out, builder.manifest)
    if left_out := builder.source.training.left_out:
        write_whole(out / BAD_ROWS, bad_rows(left_out))
    if not builder.manifest.is_in(out):  # a finished index may be read-only
        builder.save(builder.manifest)
    for name, record in wanted.items():
        if not builder.manifest.finished(name):
            yield from make_step(builder, name, record, tell, make)
        tidy(builder, name)


def source_of(out: Path, model: Model, settings: BuildSettings, inspect: bool = True, tell: Tell = silent) -> Source:
    """What an index is made from, checked; see `build`.

    Args:
        out: its folder, which need not be there.
        model: that it is of.
        settings: what it holds, and from what.
        inspect: look at every image; see `open_training_set`.
        tell: of the images that are looked at.
    """
    samples = settings.fisher.samples
    if settings.batch < 1 or (samples is not None and samples < 1):
        raise InputError(
            f"a build with batch = {settings.batch} and {samples} Fisher samples is not possible; accepted are whole"
            " numbers from 1"
        )
    parameters(model, settings.fisher.weights)  # refuses before any work, as the next does
    for noise in (settings.noise, NoiseSettings(settings.fisher.timesteps)):
        NoiseBank.draw(noise, model.latent_shape, model.train_timesteps)
    training = open_training_set(settings.data, inspect, tell)
    if not len(training):
        raise InputError("the training data are empty; at least one captioned image is needed")
    if samples is None:
        held = Manifest.read(out).settings.fisher.samples if (out / MANIFEST).exists() else None
        samples = held or samples_for(len(training))
    return Source(out, model, training, replace(settings, fisher=replace(settings.fisher, samples=samples)))


def manifest_of(source: Source, looked_at: bool = True) -> Manifest:
    """The manifest of a folder, as it is or to begin with.

    Args:
        source: what it is made from.
        looked_at: every image was; otherwise what there is has no hash to be compared by.

    Raises:
        IndexMismatch: it is of another model, other data or other settings.
    """
    held = Manifest.read(source.out) if (source.out / MANIFEST).exists() else None
    data = DataRecord(len(source.training), source.training.sha256() if looked_at else "")
    wanted = manifest_to_begin(source, data)
    if held is None:
        return wanted
    refuse_others(held, wanted, source)
    return without_lost(placed(held, wanted), source.out)


def wanted_of(builder: Builder, more: ExtendSettings) -> dict[str, Record | None]:
    """Every step that is asked for, in the table's order, and what it is to be made with; checked."""
    _check_names("feature", more.features, tuple(FEATURES))
    _check_names("gradients", more.gradients, tuple(GRADIENT_OUTPUTS))
    _check_names("approximate search of", more.approximate, SEARCHED)
    asked = {*REQUIRED, *(f"features/{name}" for name in more.features), *(f"gradients/{n}" for n in more.gradients)}
    asked |= {f"{kind}/{name}" for kind in ("lists", "listed") for name in more.approximate}
    asked |= {"fisher-all"} if more.fisher_all else set()
    asked |= {"ekfac"} if more.ekfac else set()
    asked |= {scaffold for name in asked if (scaffold := STEPS[name].scaffold) and not builder.manifest.finished(name)}
    wanted = {name: step.record(builder.source, more) for name, step in STEPS.items() if name in asked}
    for name in more.features:
        entry = FEATURES[name]
        for base in (*([entry.base] if entry.base else []), *entry.joins):
            if base not in more.features and not builder.manifest.finished(f"features/{base}"):
                raise InputError(f"the feature {name!r} maps {base!r}, which the index does not hold; add both")
    if SIGNED in more.gradients and not more.ekfac and not builder.manifest.finished("ekfac"):
        raise InputError(f"--gradients {SIGNED} are whitened by EK-FAC, which the index does not hold; add --ekfac")
    for name in more.approximate:
        if f"features/{name}" not in wanted and not builder.manifest.finished(f"features/{name}"):
            raise InputError(f"--approximate {name} is of vectors that the index does not hold; add --features {name}")
    return wanted


def _check_names(kind: str, names: tuple[str, ...], known: tuple[str, ...]) -> None:
    for name in names:
        if name not in known:
            verb = "are no" if kind == "gradients" else "is no"
            raise InputError(f"there {verb} {kind} {name!r}; accepted are {', '.join(known)}")


def make_step(
    builder: Builder, name: str, record: Record | None, tell: Watch, make: Maker = made_here
) -> Iterator[BuildProgress]:
    """Make a step, or the rest of it: the one loop of every build."""
    tell(BuildProgress(name, builder.manifest.step(name).done, 0))
    task = Task(name, builder.source, record, work := STEPS[name].work(builder.source, record))
    held = _begin(builder, name, work)
    store = _open_store(builder, name, work, held.done)
    held = held if store.done is None else held.with_block(range(store.done))
    with closing(make(task, held)) as blocks, closing(store):
        for rows, block in blocks:
            if isinstance(block, float):
                tell(BuildProgress(name, held.done + block * len(rows), work.count))
                continue
            require_finite(task, rows, block)
            store.put(rows, block)
            held = held.with_block(rows)
            if store.done is None and work.batch < work.count:  # sums say it themselves, one block need not
                builder.save(builder.manifest.having(name, held))
            yield BuildProgress(name, held.done, work.count)
    if work.total and isinstance(store, SumFile):
        save_tensors(builder.source.files / f"{name}.safetensors", work.total(store.sums))
    scaffold = STEPS[name].scaffold
    finished = builder.manifest.having(name, StepRecord(True, (), work.made, checksums_of(builder.source.files, name)))
    builder.save(finished.lacking(scaffold) if scaffold else finished)


def _begin(builder: Builder, name: str, work: Work) -> StepRecord:
    """How far a step is; from nothing, where what there is is of other settings, or gone."""
    held = builder.manifest.step(name)
    endings = (".npy", ENDING) if work.packed else (".npy",) if work.shape else ()
    gone = not all((builder.source.files / f"{name}{ending}").is_file() for ending in endings)
    if held.made != work.made or gone:
        builder.partial(name).unlink(missing_ok=True)
        held = StepRecord()
    held = replace(held, made=work.made)
    builder.save(builder.manifest.having(name, held))
    return held


def _open_store(builder: Builder, name: str, work: Work, done: int) -> ArrayFile | SumFile | PackedFile | Files:
    out = builder.source.files
    if work.total:
        return SumFile.open(builder.partial(name))
    if work.packed:
        return PackedFile.open(out / name, work.count, done)
    if work.shape is None:
        return Files(out)
    return ArrayFile.open(out / f"{name}.npy", work.shape, work.count, work.dtype, done > 0)


def tidy(builder: Builder, name: str) -> None:
    """Delete what a finished step no longer needs."""
    builder.partial(name).unlink(missing_ok=True)
    if scaffold := STEPS[name].scaffold:
        builder.partial(scaffold).unlink(missing_ok=True)
        (builder.source.files / f"{scaffold}.safetensors").unlink(missing_ok=True)
