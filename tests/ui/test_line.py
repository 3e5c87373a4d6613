"""Whose turn it is at the device."""

from contextvars import ContextVar
from threading import Event, Thread, current_thread

import pytest

from attribution.errors import InputError, Stopped, WorkFailed
from attribution.ui.jobs import Job
from attribution.ui.studio import LINE, Waiting


def test_first_come_first_served(studio):
    order, gates = [], {name: Event() for name in "abc"}
    started = Event()

    def work(_model, _index, _stop, name):
        order.append(name)
        started.set()
        gates[name].wait(10)
        yield name

    def visit(name):
        list(studio.alone(Job(work, (name,)), Event()))

    threads = []
    for waiting, name in enumerate("abc", 1):
        threads.append(Thread(target=visit, args=(name,)))
        threads[-1].start()
        if name == "a":
            assert started.wait(10)
        for _ in range(1000):
            if studio.waiting == waiting:
                break
            Event().wait(0.01)
    assert order == ["a"]
    for name in "abc":
        gates[name].set()
    for thread in threads:
        thread.join(10)
    assert order == ["a", "b", "c"]
    assert studio.waiting == 0


def test_those_who_wait_are_told_their_place_and_can_leave(studio):
    ahead = studio.alone(job_of("first", "second"), Event())
    assert next(ahead) == "first"
    stop = Event()
    behind = studio.alone(job_of("mine"), stop)
    assert next(behind) == Waiting(1)
    stop.set()
    with pytest.raises(Stopped):
        next(behind)
    assert studio.waiting == 1
    ahead.close()
    assert studio.waiting == 0
    assert list(studio.alone(job_of("mine"), Event())) == ["mine"]


def test_a_long_line_refuses(studio):
    first = studio.alone(job_of(1, 2), Event())
    next(first)
    others = [studio.alone(job_of(1), Event()) for _ in range(LINE - 1)]
    for other in others:
        next(other)
    with pytest.raises(InputError, match=f"{LINE} runs are waiting already"):
        next(studio.alone(job_of(1), Event()))
    for each in (*others, first):
        each.close()
    assert studio.waiting == 0


def test_a_librarys_error_is_told_in_a_sentence_and_the_next_in_line_goes_on(studio, caplog):
    with pytest.raises(WorkFailed, match=r"could not be done here \(out of memory\)"):
        list(studio.alone(Job(broken, ()), Event()))
    assert "broken failed" in caplog.text
    assert "RuntimeError: out of memory" in caplog.text
    assert list(studio.alone(job_of("next"), Event())) == ["next"]


def broken(_model, _index, _stop):
    yield 1
    raise RuntimeError("out of memory\nand pages of hints")


def test_every_step_is_taken_in_one_thread_in_the_context_of_who_asks(studio):
    """Gradio takes a generator's steps in any of its threads; torch keeps its modes by thread."""
    asking = ContextVar("asking", default="nobody")

    def work(_model, _index, _stop):
        try:
            for _ in range(3):
                yield current_thread().name, asking.get()
        finally:
            ended.append(current_thread().name)

    def ask(name):
        asking.set(name)
        taken.append(next(steps))

    ended, taken = [], []
    steps = studio.alone(Job(work, ()), Event())
    for name in "ab":
        thread = Thread(target=ask, args=(name,))
        thread.start()
        thread.join(10)
    steps.close()
    (device,) = {name for name, _ in taken}
    assert [who for _, who in taken] == ["a", "b"]
    assert ended == [device]
    assert device != current_thread().name


def told(_model, _index, _stop, *values):
    yield from values


def job_of(*values):
    return Job(told, values)
