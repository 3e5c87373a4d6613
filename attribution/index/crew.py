"""Workers of Ray, kept at work: what they are asked for comes back in order, and nothing is lost with one of them."""

from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from attribution.errors import InputError, WorkFailed, reason

BEGINS = 600.0  # s within which a worker has to begin where none is at work
TRIES = 3  # workers, one after another, that may be lost with the same work
EACH = 2  # calls that a worker is given at a time: it need not wait until the first one's result is fetched
AHEAD = 3  # results of each worker that may wait for an earlier one

Call = Callable[[Any], Any]  # of a worker: where its result will be


def ray() -> Any:
    """Ray, which takes a while to import, and is not needed without a cluster.

    Raises:
        InputError: it is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise InputError('--cluster needs Ray, which is not installed; pip install "ray>=2.40" does that') from error
    return ray


@dataclass
class Job:
    """A call whose result is wanted: which one of all, and how many workers were lost with it."""

    number: int
    call: Call
    lost: int = 0


@dataclass
class Jobs:
    """Calls of which all results are wanted, in order.

    Attributes:
        later: not begun yet.
        next: the first of these; None where there is none.
        lost: to be begun again.
        under_way: with the worker that has each, by where its result will be.
        done: results by number, until those before them have come.
    """

    later: Iterator[Job]
    next: Job | None = None
    lost: list[Job] = field(default_factory=list)
    under_way: dict[Any, tuple[Job, Any]] = field(default_factory=dict)
    done: dict[int, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, calls: Iterable[Call]) -> "Jobs":
        """None of them begun."""
        later = (Job(number, call) for number, call in enumerate(calls))
        return cls(later, next(later, None))

    @property
    def left(self) -> bool:
        """Whether there is anything to do or to wait for."""
        return bool(self.next or self.lost or self.under_way)

    def take(self, most: int) -> Job | None:
        """The one to begin now, if any; of new ones only while fewer than `most` are under way or wait for others."""
        if self.lost:
            return self.lost.pop()
        if self.next is None or len(self.under_way) + len(self.done) >= most:
            return None
        job, self.next = self.next, next(self.later, None)
        return job


class Crew:
    """Workers that begin now, and others in the place of those that are lost.

    Attributes:
        workers: all that there are, those included that have just begun.
    """

    def __init__(self, hire: Callable[[], Any], count: int) -> None:
        """Begin with some workers.

        Args:
            hire: makes one, an actor of Ray with a method `load`.
            count: how many there are at any time.
        """
        self._hire, self._most, self._failed = hire, count * AHEAD, 0
        self.workers: list[Any] = []
        self._beginning: dict[Any, Any] = {}  # those that load what they hold, by where it will be told
        self._free: list[Any] = []  # EACH times those that have nothing to do
        for _ in range(count):
            self._begin()

    def _begin(self) -> None:
        worker = self._hire()
        self.workers.append(worker)
        self._beginning[worker.load.remote()] = worker

    def results(self, calls: Iterable[Call]) -> Generator[Any, None, None]:
        """What calls give, in their order, each made by whichever worker is free.

        Raises:
            WorkFailed: no worker begins, or several are lost one after another; and whatever a call raises.
        """
        jobs, coming = Jobs.of(calls), 0
        try:
            while jobs.left:
                while self._free and (job := jobs.take(self._most)):
                    worker = self._free.pop(0)
                    jobs.under_way[job.call(worker)] = job, worker
                self._receive(jobs)
                while coming in jobs.done:
                    yield jobs.done.pop(coming)
                    coming += 1
        finally:
            self._free += [worker for _, worker in jobs.under_way.values()]

    def _receive(self, jobs: Jobs) -> None:
        """Wait for one thing that was asked for."""
        patience = None if jobs.under_way else BEGINS
        come, _ = ray().wait([*jobs.under_way, *self._beginning], num_returns=1, timeout=patience)
        if not come:
            raise WorkFailed(f"no worker of the cluster began within {BEGINS:.0f} s; it may be busy with other work")
        if come[0] in self._beginning:
            self._welcome(come[0], self._beginning.pop(come[0]))
        else:
            self._keep(jobs, come[0], *jobs.under_way.pop(come[0]))

    def _welcome(self, told: Any, worker: Any) -> None:
        """Take on a worker that has begun; where it was lost, another."""
        try:
            _got(told)
        except ray().exceptions.RayError as error:
            self._failed += 1
            if self._failed == TRIES:
                raise WorkFailed(f"{TRIES} workers were lost while they loaded the model ({reason(error)})") from error
            self._end(worker)
            self._begin()
        else:
            self._failed = 0
            self._free += [worker] * EACH

    def _keep(self, jobs: Jobs, place: Any, job: Job, worker: Any) -> None:
        """Keep what a worker gave; where it was lost, its job is to be done again, and another begins in its place."""
        try:
            jobs.done[job.number] = _got(place)
        except ray().exceptions.RayError as error:
            job.lost += 1
            if job.lost == TRIES:
                raise WorkFailed(f"{TRIES} workers were lost with the same work ({reason(error)})") from error
            jobs.lost.append(job)
            self._replace(jobs, worker)
        else:
            self._free.append(worker)

    def _replace(self, jobs: Jobs, worker: Any) -> None:
        self._free = [free for free in self._free if free != worker]
        if all(worker != other for _, other in jobs.under_way.values()):  # this was the last that it had
            self._end(worker)
            self._begin()

    def _end(self, worker: Any) -> None:
        self.workers.remove(worker)
        ray().kill(worker)

    def leave(self) -> None:
        """Let all workers go."""
        for worker in list(self.workers):
            self._end(worker)


def _got(place: Any) -> Any:
    """A result; raises the error of a call as it was raised there, and a RayError where there is neither."""
    try:
        return ray().get(place)
    except ray().exceptions.RayTaskError as error:
        raise error.cause from error
