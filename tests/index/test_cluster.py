"""The same loop on Ray: the same bytes and scores by two workers, whoever of them and of those who ask is lost."""

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import ray
from conftest import make_tiny_tokenizer, random_picture, save_tiny_pipeline
from networks import tiny_clip, tiny_vit

from attribution.cli import main
from attribution.errors import InputError, WorkFailed
from attribution.index.blocks import made_here
from attribution.index.build import build
from attribution.index.cluster import AUTO, ClusterSettings, hired
from attribution.index.crew import TRIES, Crew
from attribution.index.data import DataSettings
from attribution.index.manifest import Manifest
from attribution.index.update import update
from attribution.index.work import ExtendSettings
from attribution.methods import attribute
from attribution.methods.answer import AttributeSettings
from attribution.unlearning.fisher import FisherSettings
from attribution.unlearning.projection import GradientSettings
from attribution.unlearning.race import RaceSettings
from attribution.unlearning.step import UnlearnSettings

pytestmark = [
    pytest.mark.exact_bits,
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),  # Ray's
]
QUICK = AttributeSettings(unlearn=UnlearnSettings(step_size=0.3, timesteps=3, noises=1), batch=6)
ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def address():
    """The address of a Ray of four cores, on this machine; in fact it has what cores there are."""
    quiet = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in quiet.items():
            patch.setenv(name, value)
        begun = ray.init(
            "local", num_cpus=4, object_store_memory=80 * 2**20, include_dashboard=False, log_to_driver=False
        )
        yield begun.address_info["gcs_address"]
        ray.shutdown()


@pytest.fixture(scope="module")
def cluster(address, model32):
    """Two workers that hold the float32 model."""
    with hired(model32, ClusterSettings(AUTO, 2)) as made:
        yield made


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def run(steps):
    for _ in steps:
        pass


# Workers


def hands():
    """A maker of small workers that give a number back, or end, or refuse."""

    class Hand:
        def load(self):
            pass

        def give(self, number, flag=None):
            import os
            import time
            from pathlib import Path

            if flag and not Path(flag).exists():  # the first to be asked ends, and its process with it
                Path(flag).touch()
                os._exit(1)
            time.sleep(0.02 * (number % 3))
            return number

        def end(self):
            import os

            os._exit(1)

        def refuse(self):
            raise ValueError("no")

    return ray.remote(Hand).options(num_cpus=0).remote


def test_results_come_in_order_whoever_is_lost(address, tmp_path):
    crew = Crew(hands(), 2)
    flag = str(tmp_path / "ended")
    calls = [
        partial(lambda number, hand: hand.give.remote(number, flag if number == 7 else None), n) for n in range(20)
    ]
    assert list(crew.results(calls)) == list(range(20))
    assert Path(flag).exists()
    some = crew.results(calls)
    assert [next(some), next(some)] == [0, 1]
    some.close()  # what is under way goes on, and is not waited for
    assert list(crew.results(calls[:3])) == [0, 1, 2]
    with pytest.raises(ValueError, match="no"):
        list(crew.results([lambda hand: hand.refuse.remote()]))
    with pytest.raises(WorkFailed, match=f"^{TRIES} workers were lost with the same work"):
        list(crew.results([lambda hand: hand.end.remote()]))
    crew.leave()
    assert crew.workers == []


# What is made


def test_two_workers_make_every_step_with_the_same_bytes(cluster, model32, tiny_settings, index_folder, tiny_folder):
    """Of features one of pictures and one of captions; gradients of two checkpoints, between which workers change."""
    base = index_folder.parent
    clip, dino = tiny_clip(base / "ray-clip", make_tiny_tokenizer()), tiny_vit(base / "ray-dino")
    asked = ExtendSettings(
        fisher_all=True,
        ekfac=True,
        features=("clip-text", "dino"),
        feature_weights={"clip-text": str(clip), "dino": str(dino)},
        gradients=("loss", "influence", "influence+"),
        projection=GradientSettings(dimension=32),
        checkpoints=(str(save_tiny_pipeline(base / "ray-other", "v_prediction", seed=11)), str(tiny_folder)),
        approximate=("dino",),
    )
    here = shutil.copytree(index_folder, base / "one-process")
    run(build(here, model32, tiny_settings, asked))
    run(build(base / "two-workers", model32, tiny_settings, asked, make=cluster.made))
    assert files_of(base / "two-workers") == files_of(here)
    assert len(Manifest.read(here).steps) == 14


@pytest.mark.parametrize("estimates", ["kept", "anew"])
def test_two_workers_update_an_index_with_the_same_bytes(
    cluster, model32, tiny_settings, index_folder, pictures, tmp_path, estimates
):
    """Of eight pictures one is gone, and one came: what is made of it, and estimates anew, are the workers' work."""
    now = tmp_path / "now"
    now.mkdir()
    held = (pictures / "metadata.jsonl").read_text().splitlines()
    lines = [json.dumps({"file_name": "p8.png", "text": "a key"}), *held[1:]]
    for number in range(1, 8):
        shutil.copyfile(pictures / f"p{number}.png", now / f"p{number}.png")
    random_picture(8).save(now / "p8.png")
    (now / "metadata.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    added = ExtendSettings(ekfac=True, gradients=("loss", "influence+"), projection=GradientSettings(dimension=32))
    full = shutil.copytree(index_folder, index_folder.parent / f"full-then-{estimates}")
    run(build(full, model32, tiny_settings, added))
    changed = replace(tiny_settings, data=DataSettings(train_data_dir=now))
    made = {}
    for name, make in (("here", made_here), ("there", cluster.made)):
        out = shutil.copytree(full, index_folder.parent / f"{name}-{estimates}")
        run(update(out, model32, changed, None, estimates, make=make))
        made[name] = files_of(out)
    assert made["here"] == made["there"]
    assert Manifest.read(out).folder


@pytest.fixture(scope="module")
def many_samples(tiny_settings):
    return replace(tiny_settings, fisher=FisherSettings(samples=120, timesteps=7, seed=6))


@pytest.fixture(scope="module")
def uninterrupted(model32, many_samples, index_folder):
    """An index with many Fisher samples, made by one process."""
    run(build(index_folder.parent / "made-here", model32, many_samples))
    return files_of(index_folder.parent / "made-here")


def test_whoever_asks_is_killed_at_any_moment_and_goes_on_with_the_same_bytes(
    address, cluster, model32, many_samples, tiny_folder, index_folder, uninterrupted
):
    """A stopped process leaves the folder as a killed one does: copies of it are what is gone on with."""
    out = index_folder.parent / "asked"
    left, process = [], ask(address, out, many_samples, tiny_folder)
    for step in ("base_losses", "fisher"):
        while not (out / "manifest.json").exists() or step not in Manifest.read(out).steps:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGSTOP)
        left.append(shutil.copytree(out, out.with_name(f"left-{step}")))
        process.send_signal(signal.SIGCONT)
    process.kill()
    process.wait()
    for folder, make in zip((*left, out), (made_here, cluster.made, made_here), strict=True):
        run(build(folder, model32, many_samples, make=make))
        assert files_of(folder) == uninterrupted


def ask(address, out, settings, model):
    """A process that has an index made by a worker of a cluster."""
    fisher, noise = settings.fisher, settings.noise
    given = {
        "pretrained_model_name_or_path": model,
        "train_data_dir": settings.data.train_data_dir,
        "out": out,
        "timesteps": noise.timesteps,
        "noises": noise.noises,
        "seed": noise.seed,
        "fisher_samples": fisher.samples,
        "fisher_timesteps": fisher.timesteps,
        "fisher_seed": fisher.seed,
        "batch": settings.batch,
        "cluster": address,
        "workers": 1,
    }
    flags = [part for name, value in given.items() for part in (f"--{name}", str(value))]
    return subprocess.Popen([sys.executable, "-m", "attribution", "index", *flags], cwd=ROOT)


# Scores


@pytest.mark.parametrize(
    "settings",
    [
        replace(QUICK, exhaustive=True),
        replace(QUICK, race=RaceSettings(survivors=3, keep=0.5, growth=2.0), top_k=2),
    ],
    ids=["exhaustive", "raced"],
)
def test_scores_are_the_same(cluster, model32, index32, query, settings):
    there = replace(index32, losses_by=cluster.losses(index32.path))
    *progress, by_ray = attribute(model32, there, query, settings)
    *others, here = attribute(model32, index32, query, settings)
    assert [each.evaluations for each in progress] == [each.evaluations for each in others]
    assert replace(by_ray, seconds={}) == replace(here, seconds={})


def test_the_command_line_asks_the_cluster_and_refuses_it_where_it_is_of_no_use(
    cluster, index_folder, refused, monkeypatch, capsys
):
    asked = (
        "attribute",
        "--prompt",
        "a green bus",
        "--seed",
        "1",
        "--unlearn_timesteps",
        "2",
        "--exhaustive",
        "--batch",
        "6",
    )
    told = []
    for machines in ((), ("--cluster", AUTO)):
        monkeypatch.setattr(
            "attribution.cli.attribute.hired", lambda _model, asked: nullcontext(asked.cluster and cluster)
        )
        assert main([*asked, *machines, "--index", str(index_folder)]) == 0
        told.append(capsys.readouterr().out)
    assert told[0] == told[1]
    told = refused("attribute", "--prompt", "a green bus", "--method", "pixel", "--cluster", AUTO)
    assert "pixel does not use --cluster" in told


# Refusals, in seconds


@pytest.fixture
def alone(monkeypatch):
    """This process has not joined a cluster."""
    monkeypatch.setattr(ray, "is_initialized", lambda: False)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("--cluster", "127.0.0.1:9"), "no Ray cluster answers at 127.0.0.1:9"),
        (("--cluster", "nowhere.invalid:6379"), "no Ray cluster answers at nowhere.invalid:6379"),
        (
            ("--cluster", "gpu7"),
            "--cluster gpu7 is not possible; accepted are auto, for this machine, and the HOST:PORT",
        ),
        (("--cluster", AUTO, "--workers", "0"), "--workers 0 is not possible; accepted are whole numbers from 1"),
        (("--workers", "2"), "--workers 2 is not possible; it is for --cluster"),
        (("--cluster", AUTO, "--dry_run"), "--dry_run is for this process alone"),
    ],
)
def test_a_cluster_that_does_not_answer_is_refused_in_one_line(alone, refused, tmp_path, monkeypatch, given, told):
    monkeypatch.setattr("attribution.cli.index.open_model", lambda *_: pytest.fail("work"))
    asked = ("--pretrained_model_name_or_path", "none", "--train_data_dir", "none", "--out", str(tmp_path / "index"))
    began = time.monotonic()
    assert told in refused("index", *asked, *given, index=None)
    assert time.monotonic() - began < 8
    assert not (tmp_path / "index").exists()


def test_another_program_that_answers_is_told_from_ray(alone, refused, tmp_path, monkeypatch):
    """Ray itself would ask it for minutes, and write a line each time."""
    monkeypatch.setattr("attribution.index.cluster.JOINED", 0.2)
    asked = ("--pretrained_model_name_or_path", "none", "--train_data_dir", "none", "--out", str(tmp_path / "index"))
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        told = refused("index", *asked, "--cluster", address, index=None)
    assert f"what answers at {address} is no Ray cluster, or one that could not be joined within 0 s" in told


def test_ray_that_is_not_installed_is_told_with_what_installs_it(alone, refused, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    asked = ("--pretrained_model_name_or_path", "none", "--train_data_dir", "none", "--out", str(tmp_path / "index"))
    for command in (("index", *asked), ("attribute", "--prompt", "a green bus")):
        assert 'pip install "ray>=2.40"' in refused(*command, "--cluster", AUTO, index=None)


def test_more_workers_than_cores_are_refused(address, model32):
    with pytest.raises(InputError, match="9 workers of 1 threads each are not possible on 4 cores"):
        hired(model32, ClusterSettings(AUTO, 9)).__enter__()


# At the end, as the worker that begins anew takes seconds that nobody waits for


def test_a_lost_worker_costs_its_block(cluster, model32, many_samples, index_folder, uninterrupted):
    out, crew, lost = index_folder.parent / "lost", cluster.crew, None
    for progress in build(out, model32, many_samples, make=cluster.made):
        if (progress.step, progress.done) == ("fisher", 60):
            lost = next(worker for worker in crew.workers if worker not in crew._beginning.values())
            ray.kill(lost)
    assert files_of(out) == uninterrupted
    assert lost not in crew.workers
    assert len(crew.workers) == 2
