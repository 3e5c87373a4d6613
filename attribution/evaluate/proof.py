"""Write the proof that the page shows, from the finished results of leave-K-out.

python -m attribution evaluate counterfactual --folder DIR ...
python -m attribution evaluate proof --folder DIR --out assets/proof ...
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from attribution.answers.forget import change
from attribution.answers.proof import CHANCE, PROOF, VERSION, Case, Proof, Retrained
from attribution.answers.run import now
from attribution.errors import InputError
from attribution.evaluate.counterfactual import Known, LeaveOutSettings, by_chance, groups, named, top
from attribution.evaluate.retrain import Removal, without
from attribution.files import write_whole
from attribution.index.index import Index
from attribution.query.query import Query
from attribution.unlearning.score import Floats

CASES = 3
SHOWN, ACROSS = 8, 4  # of the named images; in a line
TILE = 64  # px a side at most, of the images in a strip


@dataclass(frozen=True)
class ProofSettings:
    """What is shown of the results.

    Attributes:
        show: queries, by their numbers; none is the CASES whose loss rises the most by the first method.
        by: methods, the page's default first; random images are shown after them.
        k: images taken away for each.
        seed: of the trainings.
        leave_out: the settings that `evaluate counterfactual` was run with.
    """

    show: tuple[int, ...] = ()
    by: tuple[str, ...] = ("unlearning+", "dino")
    k: int = 64
    seed: int = 0
    leave_out: LeaveOutSettings = field(default_factory=LeaveOutSettings)


@dataclass(frozen=True)
class Results:
    """What is known of leave-K-out.

    Attributes:
        index: that named the images.
        queries: the pictures.
        scores: (Q, N) by method.
        known: what each trained model does with the queries.
        foreseen: how well unlearning foresees that, in words.
    """

    index: Index
    queries: Sequence[Query]
    scores: Mapping[str, Floats]
    known: Known
    foreseen: tuple[str, ...] = ()


def write_proof(
    folder: Path, results: Results, settings: ProofSettings, command: str, model_sha256: str, credits: Sequence[str]
) -> Proof:
    """Write PNGs, then PROOF; pictures of an earlier proof are deleted.

    Args:
        folder: made where it is not there.
        results: of leave-K-out.
        settings: what is shown of them.
        command: that made them.
        model_sha256: of the model that drew the queries.
        credits: whose drawings are in the pictures.

    Raises:
        InputError: there is no such query or method, or a training that is shown is not done.
    """
    check_shown(results, settings)
    files: dict[str, bytes] = {}
    rises = {method: _rises(method, results, settings) for method in (*settings.by, CHANCE)}
    most = np.argsort(-rises[settings.by[0]], kind="stable")[:CASES].tolist()
    cases = tuple(_case(number, results, settings, files) for number in settings.show or most)
    judged = (len(rises[CHANCE]), {method: float(rise.mean()) for method, rise in rises.items()})
    made_of = (*judged, command, now(), results.index.id, model_sha256, tuple(credits), results.foreseen)
    proof = Proof(VERSION, len(results.index), cases, *made_of)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_whole(folder / name, content)
    write_whole(folder / PROOF, (json.dumps(asdict(proof), indent=1) + "\n").encode())
    for path in folder.glob("*.png"):
        if path.name not in files:
            path.unlink()
    return proof


def check_shown(results: Results, settings: ProofSettings) -> None:
    """Refuse queries and methods that are not there; raises what `write_proof` does."""
    most = min(len(results.queries), settings.leave_out.queries)
    if wrong := [number for number in settings.show if not 0 <= number < most]:
        raise InputError(f"there is no query {wrong[0]}; accepted are 0 to {most - 1}")
    if unknown := [method for method in settings.by if method not in results.scores]:
        raise InputError(f"the results have no method {unknown[0]!r}; accepted are {', '.join(results.scores)}")


def _case(number: int, results: Results, settings: ProofSettings, files: dict[str, bytes]) -> Case:
    """A query and what became of it; its pictures are added to the files."""
    query = results.queries[number]
    plain = _drawn(results.known, without((), settings.seed), number)
    retrained = tuple(_retrained(number, method, plain, results, settings, files) for method in (*settings.by, CHANCE))
    others = [without((), seed) for seed in range(settings.leave_out.seeds) if seed != settings.seed]
    trained = [_drawn(results.known, each, number) for each in others if each in results.known]
    noise = float(np.mean([change(plain, each, _mask(query)) for each in trained])) if trained else None
    files[f"{number}.png"] = _png(query.image)
    return Case(query.prompt, query.seed or 0, query.boxes, query.image.size, f"{number}.png", retrained, noise)


def _retrained(
    number: int, method: str, plain: Image.Image, results: Results, settings: ProofSettings, files: dict[str, bytes]
) -> Retrained:
    rows, removal = _taken(number, method, results, settings)
    picture = _drawn(results.known, removal, number)
    strip, drawn = f"{number}-{method}-named.png", f"{number}-{method}.png"
    files[strip], files[drawn] = _png(_strip(results.index, rows[:SHOWN])), _png(picture)
    moved = change(plain, picture, _mask(results.queries[number]))
    rise = _rise(number, method, results, settings, (settings.seed,))
    return Retrained(method, settings.k, len(removal.rows), strip, len(rows[:SHOWN]), drawn, moved, rise)


def _rises(method: str, results: Results, settings: ProofSettings) -> Floats:
    """The share by which every query's loss rises without what a method names; of trainings that are done, the mean."""
    count = min(len(results.queries), settings.leave_out.queries)
    return np.array([_rise(number, method, results, settings) for number in range(count)])


def _rise(number: int, method: str, results: Results, settings: ProofSettings, seeds: Sequence[int] = ()) -> float:
    shares = []
    for seed in seeds or range(settings.leave_out.seeds):
        plain, removal = without((), seed), _taken(number, method, results, replace(settings, seed=seed))[1]
        if plain in results.known and removal in results.known:
            shares.append(results.known[removal]["losses"][number] / results.known[plain]["losses"][number] - 1)
    return float(np.mean(shares)) if shares else float("nan")


def _taken(number: int, method: str, results: Results, settings: ProofSettings) -> tuple[list[int], Removal]:
    """The images that a method names for a query, best first, and the training without them."""
    leave_out = settings.leave_out
    if method == CHANCE and method not in results.scores:
        removal = by_chance(len(results.index), settings.k, 0, settings.seed)
        return list(removal.rows), removal
    sharing = groups(results.queries[: leave_out.queries], leave_out.together)
    members = next(group for group in sharing if number in group)
    rows = [int(row) for row in top(results.scores[method][number], settings.k)]
    return rows, named(results.scores, members, method, settings.k, settings.seed)


def _drawn(known: Known, removal: Removal, number: int) -> Image.Image:
    """What a model draws for a query."""
    if removal not in known:
        raise InputError(
            f"the training {removal.name}, without {len(removal.rows)} images, is not done; run"
            " `python -m attribution evaluate counterfactual` with the same settings to its end first"
        )
    return Image.fromarray(known[removal]["pictures"][number])


def _mask(query: Query) -> Floats | None:
    """The region in pixels of the picture (h, w); None for the whole."""
    if not query.boxes:
        return None
    mask = np.zeros(query.image.size[::-1])
    for x0, y0, x1, y1 in query.boxes:
        mask[int(y0) : int(np.ceil(y1)), int(x0) : int(np.ceil(x1))] = 1
    return mask


def _strip(index: Index, rows: Sequence[int]) -> Image.Image:
    """Training images beside and below each other, ACROSS in a line, with a gap of a pixel."""
    tiles = [index.pictures.small(row) for row in rows]
    side = min(TILE, max(max(tile.size) for tile in tiles))
    across, down = min(ACROSS, len(tiles)), -(-len(tiles) // ACROSS)
    strip = Image.new("RGB", (across * (side + 1) - 1, down * (side + 1) - 1), "white")
    for place, tile in enumerate(tiles):
        strip.paste(tile.resize((side, side)), (place % ACROSS * (side + 1), place // ACROSS * (side + 1)))
    return strip


def _png(image: Image.Image) -> bytes:
    held = BytesIO()
    image.save(held, "PNG", optimize=True)
    return held.getvalue()
