"""A build, watched: a bar for each of its steps on a terminal, elsewhere a line now and then.

Something is said even while a single call of a network takes minutes.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

from attribution.index.build import BuildProgress

EVERY = 10.0  # s without a line, at most
REDRAWN = 1.0  # s, after which a bar's clock goes on
BAR = "{desc:14} {percentage:3.0f} % |{bar}| {n:,.0f} of {total:,} [{elapsed}, {rate_fmt}, {remaining} left]"


class Lines:
    """The progress of a step in lines: when it begins, every EVERY seconds, and when it ends."""

    def __init__(self, begun: BuildProgress) -> None:
        self.first = self.last = self.told = begun
        self.began = self.said = time.monotonic()
        self.say()

    def show(self, progress: BuildProgress) -> None:
        """Take what is new; the first that is told of a step that goes on is what was done before, and a block."""
        if not self.first.total:
            self.first = progress
        self.last = progress
        self.beat()

    def beat(self) -> None:
        """Say something if it is time."""
        if time.monotonic() >= self.said + EVERY:
            self.say()

    def say(self) -> None:
        """Print a line."""
        self.said, self.told = time.monotonic(), self.last
        print(described(self.first, self.last, self.said - self.began), file=sys.stderr, flush=True)

    def end(self) -> None:
        """Say how far the step came, where that was not said."""
        if self.told != self.last or self.told == self.first:
            self.say()


class Bar:
    """The progress of a step as tqdm draws it."""

    def __init__(self, begun: BuildProgress) -> None:
        self.known = bool(begun.total)
        self.drawn = tqdm(desc=begun.step, initial=begun.done, total=begun.total or 1, bar_format=BAR)

    def show(self, progress: BuildProgress) -> None:
        """Take what is new; see `Lines.show`."""
        if not self.known and progress.total:
            self.known, self.drawn.total = True, progress.total
            self.drawn.initial = self.drawn.n = self.drawn.last_print_n = progress.done
        self.drawn.update(progress.done - self.drawn.n)

    def beat(self) -> None:
        """Let its clock go on."""
        self.drawn.refresh()

    def end(self) -> None:
        """Leave it as it is."""
        self.drawn.close()


def described(first: BuildProgress, last: BuildProgress, seconds: float) -> str:
    """How far a step is, how fast it went since it began, and how long it will take."""
    if not last.total:
        return f"{last.step}: begun" if seconds < 1 else f"{last.step}: {clock(seconds)} without a result yet"
    told = f"{last.step}: {last.done:,.0f} of {last.total:,}"
    rate = (last.done - first.done) / max(seconds, 1e-9)
    if rate <= 0 or last.done >= last.total:
        return f"{told}, {clock(seconds)}"
    speed = f"{rate:,.1f} a second" if rate >= 1 else f"{1 / rate:,.1f} s each"
    return f"{told}, {speed}, {clock((last.total - last.done) / rate)} left"


def clock(seconds: float) -> str:
    """A time in the largest two of its units."""
    units = (("d", 86400), ("h", 3600), ("min", 60))
    for (name, size), (below, part) in zip(units, (*units[1:], ("s", 1)), strict=True):
        if seconds >= size:
            whole, rest = divmod(round(seconds / part), size // part)
            return f"{whole} {name} {rest} {below}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"


@contextmanager
def stages() -> Iterator[Callable[[BuildProgress], None]]:
    """A context with a function that is told of a build's progress, and shows it on standard error."""
    kind: type[Bar] | type[Lines] = Bar if sys.stderr.isatty() else Lines
    lock, ended, under_way = threading.Lock(), threading.Event(), dict[str, Bar | Lines]()

    def show(progress: BuildProgress) -> None:
        with lock:
            if progress.step not in under_way:
                end()
                under_way[progress.step] = kind(progress)
            under_way[progress.step].show(progress)

    def end() -> None:
        for each in under_way.values():
            each.end()
        under_way.clear()

    def beat() -> None:
        while not ended.wait(REDRAWN):
            with lock:
                for each in under_way.values():
                    each.beat()

    beating = threading.Thread(target=beat, daemon=True)
    beating.start()
    try:
        yield show
    finally:
        ended.set()
        beating.join()
        end()
