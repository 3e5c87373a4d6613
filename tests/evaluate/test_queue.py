"""A folder of jobs: each is done once, also when processes are killed at any moment, and other settings are refused."""

import json
import multiprocessing
import os
import signal
import time
from collections import Counter

import numpy as np
import pytest

from attribution.errors import InputError
from attribution.evaluate import queue
from attribution.evaluate.queue import open_queue

SETTINGS = {"images": 64, "seed": 3}
NAMES = [f"job-{number:02d}" for number in range(12)]
SPAWN = multiprocessing.get_context("spawn")


def work(folder, log, pause):
    """Do all jobs: log each beginning and each end, one line in one write."""
    jobs = open_queue(folder, SETTINGS)
    for name in jobs.claimed(NAMES):
        with log.open("a") as file:
            file.write(f"begins {name}\n")
        time.sleep(pause)
        jobs.keep(name, {"value": np.arange(int(name[-2:]))})
        with log.open("a") as file:
            file.write(f"ends {name}\n")


def lines(log):
    return log.read_text().splitlines() if log.is_file() else []


def test_two_processes_share_the_jobs(tmp_path):
    log = tmp_path / "log"
    workers = [SPAWN.Process(target=work, args=(tmp_path / "queue", log, 0.02)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert sorted(line for line in lines(log) if line.startswith("begins")) == [f"begins {name}" for name in NAMES]
    jobs = open_queue(tmp_path / "queue", SETTINGS)
    for number, name in enumerate(NAMES):
        assert jobs.result(name)["value"].tolist() == list(range(number))
    assert not list((tmp_path / "queue").glob("*.claim"))
    assert not list((tmp_path / "queue").glob(".*.partial"))


def test_killed_at_ten_moments_nothing_is_lost_and_nothing_is_done_twice(tmp_path):
    log, rng = tmp_path / "log", np.random.default_rng(5)
    killed = 0
    while killed < 10:
        worker = SPAWN.Process(target=work, args=(tmp_path / "queue", log, 0.05))
        before = len(lines(log))
        worker.start()
        while worker.is_alive() and len(lines(log)) == before:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.06))
        if not worker.is_alive():
            break
        os.kill(worker.pid, signal.SIGKILL)
        worker.join()
        killed += 1
    work(tmp_path / "queue", log, 0.0)
    jobs = open_queue(tmp_path / "queue", SETTINGS)
    assert all(jobs.done(name) for name in NAMES)
    ended = Counter(line for line in lines(log) if line.startswith("ends"))
    assert max(ended.values()) == 1
    begun = Counter(line for line in lines(log) if line.startswith("begins"))
    assert sum(begun.values()) <= len(NAMES) + killed  # only what was killed on the way was begun anew
    assert not list((tmp_path / "queue").glob("*.claim"))


def test_a_claim_of_a_living_process_is_left_alone(tmp_path):
    jobs, other = open_queue(tmp_path, SETTINGS), open_queue(tmp_path, SETTINGS)
    mine = jobs.claimed(NAMES)
    first = next(mine)
    assert next(other.claimed(NAMES)) == NAMES[1]
    mine.close()
    assert not (tmp_path / f"{first}.claim").exists()


def test_a_claim_of_another_machine_dies_of_silence(tmp_path, monkeypatch):
    jobs = open_queue(tmp_path, SETTINGS)
    claim = tmp_path / f"{NAMES[0]}.claim"
    claim.write_text(json.dumps({"host": "elsewhere", "pid": 1, "started": 0.0}))
    assert next(jobs.claimed(NAMES)) == NAMES[1]
    monkeypatch.setattr(queue, "PATIENCE", 10.0)
    os.utime(claim, (time.time() - 11, time.time() - 11))
    assert next(jobs.claimed(NAMES)) == NAMES[0]


def test_a_touched_claim_lives_on(tmp_path, monkeypatch):
    jobs = open_queue(tmp_path, SETTINGS)
    claim = tmp_path / f"{NAMES[0]}.claim"
    claim.write_text(json.dumps({"host": "elsewhere", "pid": 1, "started": 0.0}))
    monkeypatch.setattr(queue, "PATIENCE", 10.0)
    os.utime(claim, (time.time() - 11, time.time() - 11))
    jobs.touch(NAMES[0])
    assert next(jobs.claimed(NAMES)) == NAMES[1]


def test_a_process_that_has_another_ones_number_is_not_taken_for_it(tmp_path):
    jobs = open_queue(tmp_path, SETTINGS)
    told = {"host": queue.socket.gethostname(), "pid": os.getpid(), "started": 1.0}
    (tmp_path / f"{NAMES[0]}.claim").write_text(json.dumps(told))
    assert next(jobs.claimed(NAMES)) == NAMES[0]


def test_other_settings_are_refused_with_both_values(tmp_path):
    open_queue(tmp_path, SETTINGS)
    with pytest.raises(InputError, match="seed = 3, now it is 4"):
        open_queue(tmp_path, {**SETTINGS, "seed": 4})
    assert json.loads((tmp_path / "queue.json").read_text()) == SETTINGS


def test_a_damaged_result_is_named(tmp_path):
    jobs = open_queue(tmp_path, SETTINGS)
    jobs.keep(NAMES[3], {"value": np.zeros(100)})
    file = tmp_path / f"{NAMES[3]}.npz"
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(InputError, match=NAMES[3]):
        jobs.result(NAMES[3])
