"""What an update will do to an index whose training set was changed: which steps are kept, and which made anew."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from attribution.errors import IndexMismatch, InputError
from attribution.index.build import Builder, wanted_of
from attribution.index.changes import Changes, compared
from attribution.index.earlier import EarlierRecord
from attribution.index.features import FEATURES
from attribution.index.found import (
    ADDED_ROWS,
    UPDATED,
    at,
    differ_by_place,
    manifest_to_begin,
    placed,
    without_lost,
)
from attribution.index.listed import LISTED
from attribution.index.lists import ListRecord, faiss
from attribution.index.manifest import (
    DataRecord,
    FeatureRecord,
    GradientRecord,
    ImportRecord,
    Manifest,
    Record,
    StepRecord,
)
from attribution.index.rows import listed
from attribution.index.steps import STEPS
from attribution.index.texts import read_digests
from attribution.index.work import ExtendSettings, Source

Estimates = Literal["kept", "anew"]
ESTIMATED = ("fisher", "fisher-all", "ekfac")  # from all images
SHARE = 0.05  # of the images, up to which their change leaves estimates as they are unless it is said otherwise
CAPTIONS, THUMBNAILS, LATENTS, LOSSES = "captions", "thumbnails", "latents", "base_losses"
WHITENED = {"fisher": "gradients/influence", "ekfac": "gradients/influence+"}  # by what: made anew with it


@dataclass(frozen=True)
class Renewal:
    """What is to be done to an index.

    Attributes:
        held: its manifest.
        begun: the manifest that it will have, with no step in it.
        source: what it will be of, in the folder that it is put together in.
        changes: of the training set.
        merged: steps whose rows are kept, and what they are made with.
        copied: steps that are kept as they are.
        anew: steps that are made anew, and what with.
        since: by step, the earlier training set that what is kept is of.
    """

    held: Manifest
    begun: Manifest
    source: Source
    changes: Changes
    merged: dict[str, Record | None]
    copied: tuple[str, ...]
    anew: dict[str, Record | None]
    since: dict[str, EarlierRecord]

    @property
    def old(self) -> Path:
        """Where the index's files lie now."""
        return self.source.out / self.held.folder

    @property
    def whitening(self) -> list[str]:
        """The estimates by which gradients are whitened that are kept: those of new images need them, too."""
        return [estimate for estimate, gradients in WHITENED.items() if gradients in self.merged]

    @property
    def added(self) -> Source:
        """The new images alone, in a folder of their own."""
        some = self.source.training.chosen(self.changes.new)
        return replace(self.source, folder=f"{self.source.folder}/{ADDED_ROWS}", training=some)

    def told(self) -> Iterator[str]:
        """What it does, in sentences."""
        stayed = len(self.changes.places) - len(self.changes.new)
        yield f"training images: {self.changes.told()}; what was made of {stayed:,} of them is kept"
        for name in self.copied:
            if since := self.since.get(name):
                yield (
                    f"{name} is kept, which is an approximation: it was estimated from {since.count:,} images, of which"
                    f" {since.gone:,} are gone; {since.added:,} came since; --estimates anew makes it anew"
                )
        if again := [name for name in self.anew if name != CAPTIONS]:
            yield f"made anew from all images: {listed(again)}"


def renewal_of(source: Source, more: ExtendSettings, estimates: Estimates | None) -> Renewal | None:
    """What is to be done, checked; None where the training set was not changed. Raises what `update` does."""
    if source.settings.latents_file is not None:
        raise InputError(
            "--latents_file is of no use with --update, which keeps the latents that there are and makes those of new"
            " images; leave it out"
        )
    out, held, wanted = source.out, *held_and_wanted(source)
    if held.data == wanted.data and not (estimates == "anew" and held.kept):
        return None
    changes = compared(out, held, source.training)
    if changes is None:
        raise IndexMismatch(
            f"{out} has no hashes of single images to compare (an earlier version built it, or it is hardly begun); run"
            " this command once on the training images as they were, which adds them, or name another --out folder"
        )
    if not changes.any_kept:
        raise IndexMismatch(
            f"none of the {changes.before:,} images that {out} was built from is among the training images now; name"
            " those, or another --out folder"
        )
    merged, mappers = _rows_kept(source, held, more), [name for name in held.steps if _is_mapper(name)]
    copied, anew = [name for name in mappers if held.finished(name)], dict[str, Record | None]({CAPTIONS: None})
    since = {LATENTS: _since(held, LATENTS, changes)} if isinstance(merged.get(LATENTS), ImportRecord) else {}
    for name in filter(held.finished, ESTIMATED):
        earlier, made = _since(held, name, changes), held.step(name).made
        own = earlier.sha256 == wanted.data.sha256 or isinstance(made, ImportRecord)
        if estimates == "kept" or (estimates is None and (own or earlier.share <= SHARE)):
            copied.append(name)
            since |= {} if own else {name: earlier}
        else:
            anew |= _estimated_anew(name, source, made)
    for estimate, gradients in WHITENED.items():
        if estimate in anew and isinstance(made := merged.get(gradients), GradientRecord):
            anew[gradients] = replace(made, shape=())
            del merged[gradients]
    for name, step in held.steps.items():
        if step.finished and isinstance(step.made, ListRecord):
            faiss()  # refuses before any work
            anew[name] = step.made.again()
    begun = Manifest.begin(wanted.model, wanted.data, wanted.settings, since)
    renewed = replace(source, folder=f"{UPDATED}{begun.id}")
    return Renewal(held, begun, renewed, changes, merged, tuple(copied), anew, since)


def held_and_wanted(source: Source) -> tuple[Manifest, Manifest]:
    """The manifest of the index that is there, and the one that one of this training set would begin with.

    Raises:
        IndexMismatch: it is none, or of another model or other settings.
    """
    held = Manifest.read(source.out)
    wanted = manifest_to_begin(source, DataRecord(len(source.training), source.training.sha256()))
    held.refuse_other(replace(wanted, data=held.data), source.out)
    return without_lost(placed(held, wanted), source.out), wanted


def unchanged(source: Source) -> Builder:
    """To go on with an index whose training set was not changed; it gets hashes of single images if it has none."""
    held, _ = held_and_wanted(source)
    source = replace(source, folder=held.folder)
    if held.finished(CAPTIONS) and read_digests(source.files) is None:
        held = held.having(CAPTIONS, StepRecord())
    return Builder(source, held, source.out)


def _rows_kept(source: Source, held: Manifest, more: ExtendSettings) -> dict[str, Record | None]:
    """The steps whose rows are kept, and what they are made with, where that is now.

    Raises:
        IndexMismatch: one is asked for with other settings.
    """
    asked, kept = wanted_of(Builder(source, held, source.out), more), dict[str, Record | None]()
    for name in STEPS:
        step, record = held.step(name), asked.get(name)
        made, networks = step.made, FeatureRecord | GradientRecord
        if isinstance(made, networks) and isinstance(record, networks) and differ_by_place(made, record):
            made = at(record, made)
        else:
            held.refuse_other_step(name, record, source.out)
        going_on = step.done > 0 and (name in (LATENTS, LOSSES) or name.startswith("features/"))
        if (step.finished or going_on) and _has_rows(name):
            kept[name] = made
    return kept


def _has_rows(name: str) -> bool:
    """Whether a step makes something of each image alone, other than captions."""
    return name in (THUMBNAILS, LATENTS, LOSSES) or ("/" in name and name not in LISTED and not _is_mapper(name))


def _is_mapper(name: str) -> bool:
    """Whether a step is a feature without vectors of its own."""
    kind, _, feature = name.partition("/")
    return kind == "features" and FEATURES[feature].base is not None


def _since(held: Manifest, name: str, changes: Changes) -> EarlierRecord:
    """The training set that a step is of, and how much is changed since."""
    before = held.step(name).since or EarlierRecord(held.data.count, held.data.sha256)
    return before.after(changes.added, changes.gone)


def _estimated_anew(name: str, source: Source, made: Record | None) -> dict[str, Record | None]:
    """An estimate to make anew, and what is made before it."""
    record = STEPS[name].record(source, ExtendSettings()) if isinstance(made, ImportRecord) else made
    scaffold = STEPS[name].scaffold
    return {**({scaffold: record} if scaffold else {}), name: record}
