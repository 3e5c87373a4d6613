"""What all visitors share: one model on one device, and whose turn it is. Pictures stay with their visitors."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import Condition, Event
from typing import Any

from PIL import Image

from attribution.answers.kept import RunFolder, is_run_id
from attribution.answers.proof import Proof, read_proof
from attribution.answers.provenance import credits_of
from attribution.answers.report import read_zip
from attribution.answers.run import Run
from attribution.diffusion.pipeline import GenerateSettings, Model
from attribution.diffusion.weights import pretrained
from attribution.errors import AttributionError, InputError, NotKept, Stopped, WorkFailed, reason
from attribution.files import assets_folder
from attribution.index.index import Index
from attribution.methods import METHODS, check_settings
from attribution.methods.answer import AttributeSettings, Attribution
from attribution.query.detect import detector_threshold
from attribution.ui.jobs import Job, Steps
from attribution.ui.pace import LONG, Pace, corrected, measured
from attribution.ui.regions import MOST
from attribution.ui.zero import FIRST, LONGEST, on_gpu, on_zero_gpu

LOG = logging.getLogger(__name__)
WAIT = 0.25  # seconds between looks at the line
PATIENCE = 20.0  # seconds to wait for the end of a run that was told to stop
LINE = 20  # runs that may wait or work at once
END = object()  # after a job's last step


@dataclass(frozen=True)
class Picture:
    """A visitor's picture.

    Attributes:
        image: RGB, upright.
        prompt: that it was generated from; None for an upload.
        seed: likewise.
        settings: likewise.
    """

    image: Image.Image
    prompt: str | None = None
    seed: int | None = None
    settings: GenerateSettings | None = None


@dataclass(frozen=True)
class Waiting:
    """How many runs are ahead of one that waits."""

    ahead: int


class Work:
    """A visitor's run in progress: an event that stops it, and one that is set when it has ended."""

    def __init__(self) -> None:
        self.stop, self.ended = Event(), Event()


def title_of(run: Run) -> str:
    """A run's prompt and region, in a line."""
    return f"{run.query.prompt[:80]} · {run.region}"


def run_ids(asked: str) -> list[str]:
    """The ids of runs in a link, such as "0123456789ab,ba9876543210": one for each region, MOST at most."""
    return [each for each in dict.fromkeys(asked.split(",")) if is_run_id(each)][:MOST]


class Studio:
    """The model, the index, the line for the device, the stop events of the runs in progress, and finished runs.

    Gradio frees a slot of its queue before cancelled work has ended, so its limits do not protect the weights: the line
    does. First come, first served. Gradio also takes each step of a generator in any of its threads; work for the
    device is done in one thread of the studio's own, since torch keeps modes, and OpenMP its workers, by thread: with
    more workers in all than there are cores these sleep between two loops, and an answer takes a third longer.

    Short work does not wait for long work: there is a line for each, and of each one job is under way. Their steps take
    turns in the device's thread, where a short one's finds the pretrained weights, also while a long one has changed
    them: a step of the one waits for one step of the other at most.
    """

    def __init__(
        self, model: Model, index: Index, runs: RunFolder, detector: str | None = None, proven: Path | None = None
    ) -> None:
        self.model = model
        self.index = index
        self.runs = runs
        self.detector = detector
        self.proven = proven or (assets_folder() / "proof" if self.embedded else None)
        self.pace: Pace | None = None
        self.ask_above = LONG
        self._turn = Condition()
        self._device = ThreadPoolExecutor(1, "device")
        self._took: dict[str, float] = {}  # by job, the seconds of the last one that ended
        self._steps = on_gpu(self._here, self._estimate)
        self._lines: dict[bool, list[object]] = {False: [], True: []}  # of long jobs, and of short ones
        self._runs: dict[str, Work] = {}

    @property
    def threshold(self) -> float:
        """The least score of an object that the detector here has by default."""
        return detector_threshold(self.index, self.detector)

    @property
    def waiting(self) -> int:
        """Runs that wait or work."""
        return sum(map(len, self._lines.values()))

    def measure(self) -> None:
        """Find out how long answers will take; on ZeroGPU there is no device yet, and the first answer tells."""
        if not on_zero_gpu():
            self.pace = self._on_device(measured, self.model, self.index)

    def learn(self, found: Sequence[Attribution]) -> None:
        """Take the pace of answers that have ended."""
        self.pace = corrected(self.pace, found, self.index)

    @property
    def embedded(self) -> bool:
        """Whether the index says what world it is of: what was measured in that is told with it, and nowhere else."""
        return bool(credits_of(self.index).about)

    @property
    def examples(self) -> Path:
        """Where finished runs that ship with the index are."""
        return self.index.path.resolve().parent / "examples"

    @cached_property
    def shipped(self) -> list[Run]:
        """The examples: boxes, then words, then whole pictures."""
        runs = [read_zip(path) for path in self.examples.glob("*.zip")]
        return sorted(runs, key=lambda run: (not run.query.boxes, run.query.word is None, run.id))

    @cached_property
    def proof(self) -> Proof | None:
        """What was found by training again, of which the page shows nothing where there is no such folder."""
        return read_proof(self.proven) if self.proven else None

    def keep(self, run: Run) -> NotKept | None:
        """Keep a run; gives why it could not be kept, where that is so: what was found out stands without it."""
        try:
            self.runs.keep(run, self.index, self.model)
        except NotKept as error:
            LOG.warning("%s: %s", run.id, error)
            return error
        return None

    def holds(self, run_id: str) -> bool:
        """Whether there is a run of this id, kept or among the examples."""
        return self.runs.holds(run_id) or self._shipped(run_id) is not None

    def read_run(self, run_id: str) -> Run:
        """A kept run or an example.

        Raises:
            InputError: there is none.
        """
        return read_zip(self._shipped(run_id) or self.runs.path(run_id))

    def run_file(self, run_id: str) -> Path:
        """The ZIP of a kept run or an example, which is made whole first.

        Raises:
            InputError: there is none.
        """
        shipped = self._shipped(run_id)
        if shipped is not None and not self.runs.holds(run_id):
            return self.runs.keep(read_zip(shipped), self.index, self.model)
        return self.runs.path(run_id)

    def _shipped(self, run_id: str) -> Path | None:
        path = self.examples / f"{run_id}.zip"
        return path if is_run_id(run_id) and path.is_file() else None

    def methods(self) -> tuple[list[str], dict[str, str]]:
        """The methods that can be used, and why the others cannot."""
        usable, missing = [], {}
        for name in METHODS:
            try:
                check_settings(self.model, self.index, AttributeSettings(method=name, top_k=1))
                usable.append(name)
            except AttributionError as error:
                missing[name] = str(error)
        return usable, missing

    @contextmanager
    def run(self, visitor: str) -> Iterator[Event]:
        """A visitor's run: gives the event that stops it, and ends the one that the visitor had before."""
        self.end(visitor)
        work = self._runs[visitor] = Work()
        try:
            yield work.stop
        finally:
            if self._runs.get(visitor) is work:
                del self._runs[visitor]
            work.ended.set()

    def stop(self, visitor: str) -> None:
        """Stop a visitor's run, if there is one."""
        if (work := self._runs.get(visitor)) is not None:
            work.stop.set()

    def end(self, visitor: str) -> None:
        """Stop a visitor's run, if there is one, and wait until it has ended, PATIENCE at most."""
        if (work := self._runs.get(visitor)) is not None:
            work.stop.set()
            work.ended.wait(PATIENCE)

    def works(self, visitor: str) -> bool:
        """Whether a visitor's run is in progress."""
        return visitor in self._runs

    def alone(self, job: Job, stop: Event) -> Steps:
        """Do a job when it is its turn: yields Waiting before, then what the job yields.

        The end of the job restores the weights before the next one's turn.

        Raises:
            InputError: too many are waiting.
            Stopped: `stop` was set while waiting.
            WorkFailed: a library's error ended the job.
        """
        short = job.short and not on_zero_gpu()  # there, each job has a process of its own, that nothing can lift
        ticket, steps = self._join(self._lines[short]), self._steps(job, stop)
        try:
            while ahead := self._ahead(self._lines[short], ticket):
                if stop.is_set():
                    raise Stopped("stopped before its turn; nothing was changed")
                yield Waiting(ahead)
            began = time.monotonic()
            step_of = self._lifted if short else next
            while (step := self._on_device(step_of, steps, END)) is not END:
                yield step
            self._took[job.run.__name__] = time.monotonic() - began
        except AttributionError:
            raise
        except Exception as error:
            LOG.exception("%s failed", job.run.__name__)
            raise WorkFailed(f"it could not be done here ({reason(error)}); the model is as it was") from error
        finally:
            self._on_device(steps.close)
            self._leave(self._lines[short], ticket)

    def _join(self, line: list[object]) -> object:
        """A place at the end of a line."""
        ticket = object()
        with self._turn:
            if self.waiting >= LINE:
                raise InputError(f"{self.waiting} runs are waiting already; try again in a few minutes")
            line.append(ticket)
        return ticket

    def _ahead(self, line: list[object], ticket: object) -> int:
        """How many are ahead, after WAIT at most."""
        with self._turn:
            self._turn.wait_for(lambda: line[0] is ticket, WAIT)
            return line.index(ticket)

    def _leave(self, line: list[object], ticket: object) -> None:
        with self._turn:
            line.remove(ticket)
            self._turn.notify_all()

    def _on_device(self, work: Callable[..., Any], *given: Any) -> Any:
        """What `work` gives in the device's thread, in the context of this one: Gradio's progress is found by it."""
        return self._device.submit(copy_context().run, work, *given).result()

    def _lifted(self, steps: Steps, end: object) -> Any:
        """The next step, with the pretrained weights, whatever a long job has changed."""
        with pretrained(self.model):
            return next(steps, end)

    def _here(self, job: Job, stop: Event) -> Steps:
        return job.run(self.model, self.index, stop, *job.asked)

    def _estimate(self, job: Job) -> float:
        """Seconds of a lent GPU to ask for: half again what such a job took last, FIRST before one has ended."""
        took = self._took.get(job.run.__name__)
        return FIRST if took is None else min(LONGEST, 5 + 1.5 * took)
