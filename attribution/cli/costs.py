"""What a build will take, as a table that `index --dry_run` prints."""

import shutil
from collections.abc import Iterator
from pathlib import Path

from attribution.cli.stages import clock
from attribution.index.plan import QUERIES, Cost
from attribution.unlearning.fisher import EACH, FEWEST, MOST

HEAD = ("step", "to do", "time", "disk", "memory", "GPU")
FISHER = f"{EACH} samples of each image, at least {FEWEST:,} and at most {MOST:,}"


def table(costs: list[Cost], out: Path, asked: int | None) -> Iterator[str]:
    """The costs in lines: every step, all of them, and a query.

    Args:
        costs: of `plan`.
        out: the index's folder.
        asked: Fisher samples, where they were.
    """
    steps, queries = costs[: -len(QUERIES)], costs[-len(QUERIES) :]
    seconds, kept = sum(each.seconds for each in steps), sum(each.bytes for each in steps)
    memory, device = max(each.memory for each in costs), max(each.device for each in costs)
    rows = [HEAD, *map(_row, steps), _row(Cost("all of it", 0, seconds, kept, 0, memory, device)), *map(_row, queries)]
    columns = range(len(HEAD) if device else len(HEAD) - 1)
    widths = [max(len(row[column]) for row in rows) for column in columns]
    for row in rows:
        cells = [row[column].rjust(widths[column]) for column in columns[1:]]
        yield "  ".join([row[0].ljust(widths[0]), *cells]).rstrip()
    yield from _notes(steps, out, asked)


def _notes(steps: list[Cost], out: Path, asked: int | None) -> Iterator[str]:
    for each in steps:
        if each.name == "fisher":
            rule = "as asked for" if asked else f"by default {FISHER}, or as many as an index has already"
            yield f"The Fisher information is estimated from {each.count:,} samples ({rule}; --fisher_samples)."
    folder = out.resolve()
    while not folder.exists():
        folder = folder.parent
    passing, free = max(each.passing for each in steps), shutil.disk_usage(folder).free
    yield f"While it is built, up to {size(passing)} of disk more are in use; {size(free)} are free for {out}."
    yield f"Nothing was written into {out}; the same command without --dry_run writes what this table names."


def _row(cost: Cost) -> tuple[str, ...]:
    count = f"{cost.count:,}" if cost.count else ""
    kept = size(cost.bytes) if cost.bytes else "-"
    return (cost.name, count, clock(cost.seconds), kept, size(cost.memory), size(cost.device))


def size(count: int) -> str:
    """Bytes in the unit that fits."""
    for unit, each in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= each:
            return f"{count / each:.1f} {unit}"
    return f"{count / 1e3:.1f} kB"
