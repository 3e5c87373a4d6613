"""Programs that ask and leave: their jobs end with them, or at the limit."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

import httpx
import pytest
from browser import PROMPT
from conftest import UNLEARN
from gradio_client import Client

from attribution.errors import WorkFailed
from attribution.methods import METHODS, check_settings, method_named
from attribution.methods.answer import AttributeSettings
from attribution.query.query import Query
from attribution.ui import api
from attribution.ui.api import LIMIT, Endpoints
from attribution.ui.jobs import Job, attributing


def waiting(address: str) -> int:
    return int(httpx.get(f"{address}/healthz").json()["waiting"])


def await_line(address: str, count: int) -> None:
    until = time.monotonic() + 60
    while waiting(address) != count:
        assert time.monotonic() < until, f"{waiting(address)} wait or work, not {count}"
        time.sleep(0.2)


@contextmanager
def exhaustive(address: str) -> Iterator[Iterator[str]]:
    """The lines that a program is told of its exhaustive run, for as long as it listens."""
    data = [None, PROMPT, 7, [], "", "unlearning", 3, True]
    event = httpx.post(f"{address}/gradio_api/call/attribute", json={"data": data}).json()["event_id"]
    with httpx.stream("GET", f"{address}/gradio_api/call/attribute/{event}", timeout=60) as told:
        yield told.iter_lines()


def test_the_job_of_a_program_that_left_is_ended(address: str) -> None:
    await_line(address, 0)
    with exhaustive(address) as told:
        await_line(address, 1)
        assert next(line for line in told if line.startswith("event:")) == "event: generating"  # it is under way
    await_line(address, 0)


def test_a_job_that_a_client_cancels_is_ended(address: str) -> None:
    client = Client(address, verbose=False, httpx_kwargs={"timeout": 60})  # cancelling waits for a step
    try:
        job = client.submit(prompt=PROMPT, seed=7, exhaustive=True, api_name="/attribute")
        await_line(address, 1)
        job.cancel()
        await_line(address, 0)
    finally:
        client.close()


LEAVING = """
import sys, time
from gradio_client import Client
job = Client(sys.argv[1], verbose=False).submit(prompt=sys.argv[2], exhaustive=True, api_name="/attribute")
while not job.outputs():
    time.sleep(0.1)
print("under way", flush=True)
job.result()
"""


def test_the_job_of_a_client_whose_process_ended_is_ended(address: str) -> None:
    """One that listens already: of one that ends before it does, Gradio knows nothing, and the limit ends its job."""
    command = [sys.executable, "-c", LEAVING, address, PROMPT]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as client:
        try:
            assert client.stdout is not None
            assert client.stdout.readline() == "under way\n"
            assert waiting(address) == 1
        finally:
            client.kill()
    await_line(address, 0)


def test_a_job_is_ended_at_the_limit_that_is_told(studio, query: Query, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = check_settings(studio.model, studio.index, AttributeSettings(top_k=2, unlearn=UNLEARN))
    steps = Endpoints(studio)._followed(Job(attributing, ([query], [settings])))
    monkeypatch.setattr(api, "LIMIT", 0)
    with pytest.raises(WorkFailed, match="more than 0 minutes, the limit for programs"):
        list(steps)
    assert studio.waiting == 0
    assert not studio.model.changed
    assert f"in {LIMIT} minutes" in str(Endpoints.attribute.__doc__)


@pytest.mark.parametrize("method", ["best", "unlearning"])
def test_a_program_is_answered_as_the_command_would(studio, method: str) -> None:
    """By the method's own curvature and step, and among the candidates that the index has."""
    *_, told = Endpoints(studio).attribute(prompt="a red key", seed=3, method=method, top_k=3)
    named = method_named(method, studio.index)
    wanted = check_settings(studio.model, studio.index, AttributeSettings(named, 3))
    assert wanted.unlearn.curvature == METHODS[named].curvature
    assert told["settings"] == asdict(wanted)
    assert told["run"]


def test_the_limit_is_in_the_page_of_the_api(address: str) -> None:
    info = httpx.get(f"{address}/gradio_api/info").json()
    assert f"{LIMIT} minutes" in json.dumps(info["named_endpoints"]["/attribute"])
