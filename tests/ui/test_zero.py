"""A ZeroGPU Space: jobs go to another process and come back."""

import os
import pickle
import subprocess
import sys
from threading import Event
from types import SimpleNamespace

import gradio as gr
import pytest
from browser import ROOT
from conftest import random_picture
from test_line import broken

from attribution.diffusion.pipeline import GenerateSettings
from attribution.errors import DeviceUnavailable, InputError, Stopped
from attribution.methods.answer import AttributeSettings
from attribution.query.query import Query
from attribution.ui.jobs import Job, attributing, detecting, generating, mapping
from attribution.ui.studio import Studio


@pytest.fixture
def lent(studio, monkeypatch):
    """A studio whose jobs are sent as `spaces` 0.51 sends them, and what was asked of it and closed.

    Arguments and steps go through pipes; of an error only its kind comes back; closing the stream stops the work.
    """
    asked, closed = [], []

    def gpu(duration):
        def decorate(task):
            def sent(*given):
                asked.append(duration(*given))
                steps = task(*pickle.loads(pickle.dumps(given)))
                try:
                    for step in steps:
                        yield pickle.loads(pickle.dumps(step))
                except GeneratorExit:
                    closed.append(True)
                    raise
                except gr.Error:
                    raise
                except Exception as error:
                    raise gr.Error(type(error).__name__, title="ZeroGPU worker error") from None

            return sent

        return decorate

    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    monkeypatch.setitem(sys.modules, "spaces", SimpleNamespace(GPU=gpu))
    return Studio(studio.model, studio.index, studio.runs), asked, closed


QUERY = Query("a red bird", random_picture(99), 3)
QUICK = Job(attributing, ([QUERY], [AttributeSettings(method="pixel", top_k=2)]))


def test_jobs_can_be_sent_to_the_process_that_has_the_gpu(lent):
    """`spaces.GPU` is asked for as many seconds as the job's last took, and half of that more."""
    studio, asked, _ = lent
    *_, (place, method, answer) = studio.alone(QUICK, Event())
    assert (place, method, len(answer.results)) == (0, "pixel", 2)
    *_, picture = studio.alone(Job(generating, ("a red bird", 3, GenerateSettings(steps=2))), Event())
    assert picture.size == (32, 32)
    list(studio.alone(Job(detecting, (QUERY.image, ["bird"], "a red bird", 0.3, None)), Event()))
    assert asked == [60.0] * 3
    list(studio.alone(QUICK, Event()))
    assert 5 < asked[-1] < 60


def test_a_stop_ends_the_work_of_the_process_that_has_the_gpu(lent):
    studio, _, closed = lent
    stop = Event()
    steps = studio.alone(QUICK, stop)
    stop.set()
    with pytest.raises(Stopped):
        list(steps)
    assert closed == [True]
    assert studio.waiting == 0


def test_errors_of_the_process_that_has_the_gpu_arrive_whole(lent):
    studio, _, _ = lent
    with pytest.raises(InputError, match="the word 'cat' is not in the prompt"):
        list(studio.alone(Job(mapping, (QUERY.image, "a red bird", ["cat"])), Event()))
    with pytest.raises(DeviceUnavailable, match="gave no answer: RuntimeError"):
        list(studio.alone(Job(broken, ()), Event()))
    assert studio.waiting == 0


def test_spaces_is_imported_before_torch(tmp_path):
    """It stands in for CUDA, which a model looks for when it is loaded."""
    code = "import sys; sys.exit('torch: ' + str('torch' in sys.modules))"
    (tmp_path / "spaces.py").write_text(code)
    environment = {**os.environ, "SPACES_ZERO_GPU": "true", "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "app.py"]
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert ended.stderr.splitlines()[-1] == "torch: False"
