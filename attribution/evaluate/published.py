"""The published benchmark of customised models (Wang et al. 2023), read from its folder.

ROOT/json/test_*.json        a list of models: "exemplar", paths; "synth", paths by how their prompts were made;
                             "class_id", a name; "category", what an object is, null where the exemplars share a style
ROOT/exemplar, ROOT/synth    the pictures; paths begin with "dataset/", which is ROOT

That much its authors document. Beside it are needed, for methods that look into the model:

PROMPTS                      JSON, the prompt of each synthesised picture by its path, the new word in it
MODELS/CLASS_ID              what each model has of its own (see `attribution.diffusion.custom`)

As in the paper (Appendix B.2): as many objects, of different categories, as styles, and pictures of different prompts.
An exemplar's caption is not published: it is Custom Diffusion's "photo of a <new1> CATEGORY", or "painting in the style
of <new1> art".
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from PIL import Image

from attribution.diffusion.custom import Custom, read_custom
from attribution.diffusion.pictures import upright
from attribution.errors import InputError, reason
from attribution.evaluate.customised import Case, Cases, RetrievalSettings
from attribution.index.rows import listed

TOP = "dataset"  # how the paths of pictures begin
LAYOUT = "accepted is the layout of Wang et al. 2023, with json/test_*.json, exemplar and synth"


@dataclass(frozen=True)
class Entry:
    """One model of the benchmark.

    Attributes:
        name: its class_id.
        category: what its exemplar shows; None where exemplars share a style.
        exemplars: their paths, as they are named.
        pictures: the paths of those that are asked about.
        prompts: theirs.
    """

    name: str
    category: str | None
    exemplars: tuple[str, ...]
    pictures: tuple[str, ...]
    prompts: tuple[str, ...]

    @property
    def kind(self) -> Literal["object", "style"]:
        """What its exemplars have in common."""
        return "style" if self.category is None else "object"


@dataclass(frozen=True)
class Published:
    """Where the benchmark is.

    Attributes:
        root: its folder.
        models: folder of what each model has of its own.
        prompts: file of the synthesised pictures' prompts.
    """

    root: Path
    models: Path
    prompts: Path

    def path(self, named: str) -> Path:
        """A picture, by the path that the benchmark has for it.

        Raises:
            InputError: it leads out of the benchmark.
        """
        parts = PurePosixPath(named).parts
        if not parts or parts[0] != TOP or ".." in parts:
            raise InputError(f"the benchmark in {self.root} names the picture {named!r}; accepted are paths in {TOP}/")
        return self.root.joinpath(*parts[1:])


def published_cases(where: Published, index_id: str, settings: RetrievalSettings) -> Cases:
    """The models of the benchmark that are judged, all of whose files are there.

    Raises:
        InputError: files are missing or damaged (names the first), or there are too few models.
    """
    entries = {entry.name: entry for entry in _chosen(where, settings)}
    wanted = {name: (*entry.exemplars, *entry.pictures) for name, entry in entries.items()}
    files = [where.path(named) for named in chain.from_iterable(wanted.values())]
    if missing := [str(path) for path in (*files, *(where.models / name for name in entries)) if not path.exists()]:
        raise InputError(f"of the benchmark in {where.root} are missing ({len(missing):,}): {listed(missing)}")
    digest = hashlib.sha256(repr(list(entries.values())).encode()).hexdigest()[:12]
    kinds = {name: entry.kind for name, entry in entries.items()}
    made = {"index": index_id, "pictures": settings.pictures, "benchmark": digest}
    return Cases(kinds, made, lambda _name: True, lambda name: _case(where, entries[name]))


def _chosen(where: Published, settings: RetrievalSettings) -> list[Entry]:
    """Half of the models with an object each, of different categories, half with a style."""
    prompts, half = _read(where.prompts, dict), settings.models // 2
    told = list(chain.from_iterable(_read(path, list) for path in _tables(where.root)))
    categories = {each.get("category"): each for each in reversed(told) if isinstance(each, dict)}
    categories.pop(None, None)
    objects = list(reversed(categories.values()))
    styles = [each for each in told if isinstance(each, dict) and each.get("category") is None]
    if min(len(objects), len(styles)) < half:
        raise InputError(
            f"the benchmark in {where.root} has {len(objects)} categories of objects and {len(styles)} styles,"
            f" {half} of each are wanted; name fewer --models, or add its other JSON files"
        )
    return [_entry(where, each, prompts, settings.pictures) for each in (*objects[:half], *styles[:half])]


def _tables(root: Path) -> list[Path]:
    tables = sorted((root / "json").glob("test_*.json"))
    if not tables:
        raise InputError(f"there is no json/test_*.json in {root}; {LAYOUT}")
    return tables


def _read(path: Path, kind: type[Any]) -> Any:
    """A JSON file that holds a list or an object."""
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} could not be read ({reason(error)}); {LAYOUT}") from error
    if not isinstance(held, kind):
        raise InputError(f"{path} holds no JSON {'list' if kind is list else 'object'}; {LAYOUT}")
    return held


def _entry(where: Published, told: Mapping[str, Any], prompts: Mapping[str, str], count: int) -> Entry:
    """One model as it is judged: with the first picture of each prompt, up to as many as are wanted."""
    try:
        name, category, exemplars = str(told["class_id"]), told["category"], tuple(map(str, told["exemplar"]))
        drawn = list(map(str, chain.from_iterable(told["synth"].values())))
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"a model of the benchmark in {where.root} has no {reason(error)}; {LAYOUT}") from error
    if without := [path for path in drawn if not isinstance(prompts.get(path), str)]:
        raise InputError(f"{where.prompts} has no prompt of ({len(without):,}): {listed(without)}")
    first = dict(reversed([(prompts[path], path) for path in drawn]))
    pictures = list(reversed(first.items()))[:count]
    if PurePosixPath(name).parts != (name,):
        raise InputError(f"the benchmark in {where.root} has the class_id {name!r}; accepted are names of folders")
    if not exemplars or len(pictures) < count:
        raise InputError(
            f"the benchmark's model {name} has {len(exemplars)} exemplars and pictures of {len(pictures)} prompts;"
            f" accepted are exemplars from 1 and as many as --pictures {count}"
        )
    return Entry(name, category, exemplars, tuple(path for _, path in pictures), tuple(text for text, _ in pictures))


def _case(where: Published, entry: Entry) -> Case:
    custom = read_custom(where.models / entry.name)
    if len(custom.words) > 1:
        raise InputError(
            f"{where.models / entry.name} has {len(custom.words)} new words; accepted is one, as published"
        )
    exemplars, pictures = (tuple(_opened(where, names)) for names in (entry.exemplars, entry.pictures))
    captions = (_caption(entry, custom),) * len(exemplars)
    return Case(entry.name, entry.kind, exemplars, captions, pictures, entry.prompts, custom)


def _caption(entry: Entry, custom: Custom) -> str:
    if entry.category is None:
        return f"painting in the style of {custom.token} art"
    return f"photo of a {custom.token} {entry.category}"


def _opened(where: Published, names: Iterable[str]) -> Iterator[Image.Image]:
    for named in names:
        try:
            with Image.open(where.path(named)) as picture:
                yield upright(picture)
        except Exception as error:  # Pillow raises a dozen kinds
            raise InputError(
                f"the benchmark's picture {where.path(named)} could not be read ({reason(error)})"
            ) from error
