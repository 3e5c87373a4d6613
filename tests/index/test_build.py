"""Building an index: resumable to the byte, and refused where it does not fit."""

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import torch
from conftest import CAPTIONS as TEXTS
from conftest import build_all, save_tiny_pipeline
from PIL import Image
from safetensors.torch import load_file, save_file

from attribution.diffusion.noise import NoiseSettings
from attribution.diffusion.pipeline import Model
from attribution.errors import IndexMismatch, InputError, WeightsUnavailable
from attribution.index.build import build
from attribution.index.index import Index, open_index
from attribution.index.steps import REQUIRED as STEPS
from attribution.index.texts import CAPTIONS, packed_texts
from attribution.unlearning.fisher import FisherSettings


@pytest.fixture(scope="module")
def long_settings(tiny_settings):
    """Enough Fisher samples for its running sums to be saved half way."""
    return replace(tiny_settings, fisher=FisherSettings(samples=120, timesteps=7, seed=6))


@pytest.fixture(scope="module")
def uninterrupted(model32, long_settings, tmp_path_factory):
    return files_of(build_all(tmp_path_factory.mktemp("whole") / "index", model32, long_settings))


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def interrupt(steps, stop_at):
    """Run a build until it reports `stop_at` = (step, how many times), then close it."""
    seen = 0
    for progress in steps:
        seen += progress.step == stop_at[0]
        if seen == stop_at[1]:
            steps.close()
            return
    pytest.fail(f"the build never reported {stop_at}")


@pytest.mark.parametrize(
    "stop_at", [*((step, 1) for step in STEPS), ("base_losses", 2), ("fisher", 16), ("fisher", 18)]
)
def test_a_resumed_build_has_the_same_bytes(model32, long_settings, uninterrupted, tmp_path, stop_at):
    out = tmp_path / "index"
    interrupt(build(out, model32, long_settings), stop_at)
    with pytest.raises(IndexMismatch, match=r"unfinished|no manifest"):
        Index.open(out)
    redone = {progress.step for progress in build(out, model32, long_settings)}
    assert redone == set(STEPS[STEPS.index(stop_at[0]) :])
    assert files_of(out) == uninterrupted


def test_a_build_interrupted_again_and_again_has_the_same_bytes(model32, long_settings, uninterrupted, tmp_path):
    for stop_at in [("thumbnails", 1), ("latents", 1), ("base_losses", 1), ("base_losses", 1), ("fisher", 17)]:
        interrupt(build(tmp_path / "index", model32, long_settings), stop_at)
    dones = [p.done for p in build(tmp_path / "index", model32, long_settings)]
    assert dones == [108, 114, 120]
    assert files_of(tmp_path / "index") == uninterrupted


def test_an_interrupted_step_goes_on_where_it_was(model32, long_settings, tmp_path):
    interrupt(build(tmp_path / "index", model32, long_settings), ("latents", 1))
    first = []
    for _ in range(4):  # each time, one chunk more
        steps = build(tmp_path / "index", model32, long_settings)
        progress = next(steps)
        steps.close()
        first.append((progress.step, progress.done))
    assert first == [("latents", 8), ("base_losses", 3), ("base_losses", 6), ("base_losses", 8)]


def test_a_finished_index_is_not_built_again(model32, tiny_settings, index_folder):
    before = files_of(index_folder)
    assert list(build(index_folder, model32, tiny_settings)) == []
    assert files_of(index_folder) == before


def test_another_model_is_refused_with_both_hashes(tiny_settings, index_folder, model32, tmp_path):
    other = Model.load(save_tiny_pipeline(tmp_path / "model", "v_prediction", seed=1), torch.device("cpu"))
    other.source = model32.source
    with pytest.raises(IndexMismatch) as caught:
        next(build(index_folder, other, tiny_settings))
    assert model32.sha256 in str(caught.value)
    assert other.sha256 in str(caught.value)
    with pytest.raises(IndexMismatch) as caught:
        Index.open(index_folder).check(other)
    assert model32.sha256[:12] in str(caught.value)
    assert other.sha256[:12] in str(caught.value)


def test_other_data_are_refused_with_what_changed(tiny_settings, index_folder, model32, pictures, tmp_path):
    changed = tmp_path / "pictures"
    shutil.copytree(pictures, changed)
    text = (changed / "metadata.jsonl").read_text().replace("a green bus", "a green tram")
    (changed / "metadata.jsonl").write_text(text)
    shutil.copytree(index_folder, tmp_path / "index")
    settings = replace(tiny_settings, data=replace(tiny_settings.data, train_data_dir=changed))
    folder = shutil.copytree(model32.source, tmp_path / "model")  # beside the index, as the manifest says
    with pytest.raises(IndexMismatch, match=r"8 then, 8 now \(0 new, 1 changed and 0 gone\); add --update to keep"):
        next(build(tmp_path / "index", Model.load(folder, torch.device("cpu")), settings))


@pytest.mark.parametrize(
    ("change", "values"),
    [
        ({"noise": NoiseSettings(4, 2, 9)}, ("'seed': 5", "'seed': 9")),
        ({"noise": NoiseSettings(3, 2, 5)}, ("'timesteps': 4", "'timesteps': 3")),
        ({"fisher": FisherSettings(samples=40, timesteps=7, seed=6)}, ("'samples': 37", "'samples': 40")),
        ({"fisher": FisherSettings("attn", 37, 7, 6)}, ("'weights': 'cross-attn-kv'", "'weights': 'attn'")),
    ],
)
def test_other_settings_are_refused_with_both_values(tiny_settings, index_folder, model32, change, values):
    before = files_of(index_folder)
    with pytest.raises(IndexMismatch) as caught:
        next(build(index_folder, model32, replace(tiny_settings, **change)))
    assert all(value in str(caught.value) for value in values)
    assert "name another --out folder" in str(caught.value)
    assert files_of(index_folder) == before


def test_other_data_settings_are_refused(tiny_settings, index_folder, model32):
    settings = replace(tiny_settings, data=replace(tiny_settings.data, random_flip=False))
    with pytest.raises(IndexMismatch, match=r"'random_flip': True.*'random_flip': False"):
        next(build(index_folder, model32, settings))


def test_another_batch_size_is_no_other_setting(tiny_settings, index_folder, model32):
    assert list(build(index_folder, model32, replace(tiny_settings, batch=2))) == []


def test_empty_data_and_unreadable_data_are_refused(tiny_settings, model32, tmp_path):
    for folder, told in ((tmp_path / "nowhere", "could not be read"), (tmp_path, "could not be read")):
        settings = replace(tiny_settings, data=replace(tiny_settings.data, train_data_dir=folder))
        with pytest.raises(InputError, match=told):
            next(build(tmp_path / "index", model32, settings))
    settings = replace(tiny_settings, data=replace(tiny_settings.data, max_train_samples=0))
    with pytest.raises(InputError, match="empty"):
        next(build(tmp_path / "index", model32, settings))
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"batch": 0}, "batch = 0 and .* is not possible"),
        ({"fisher": FisherSettings(samples=0)}, "0 Fisher samples"),
        ({"noise": NoiseSettings(timesteps=1001)}, "1001 timesteps x 1 noises"),
    ],
)
def test_impossible_build_settings_are_refused_before_any_work(tiny_settings, model32, tmp_path, change, told):
    with pytest.raises(InputError, match=told):
        next(build(tmp_path / "index", model32, replace(tiny_settings, **change)))
    assert not (tmp_path / "index").exists()


def test_an_index_records_what_it_was_made_of(index32, model32, pictures):
    assert index32.ids == [f"p{row}.png" for row in range(8)]
    assert index32.captions == TEXTS
    assert index32.manifest.model.sha256 == model32.sha256
    assert index32.manifest.model.source == "../model"  # the two folders can be moved together
    assert index32.manifest.data.count == 8
    assert index32.manifest.settings.noise == NoiseSettings(4, 2, 5)
    assert index32.manifest.source == str(pictures)
    assert index32.latents.shape == (8, 2, 4, 8, 8)
    assert index32.base_losses.shape == (8, 2, 8)
    assert len(index32.id) == 12
    assert Image.open(io.BytesIO(index32.thumbnail(7))).size == (32, 32)


# Folders that are no index, or no longer one


def cut(name: str, share: float) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(share * len(content))])

    return damage


def write(name: str, content: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(content)  # type: ignore[func-returns-value]


def edit_manifest(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_text())
        change(manifest)
        (folder / "manifest.json").write_text(json.dumps(manifest))

    return damage


def fewer_captions(folder: Path) -> None:
    (folder / CAPTIONS).write_bytes(packed_texts(["p0.png"] * 5, TEXTS[:5], {}))


def other_columns(folder: Path) -> None:
    table = pyarrow.table({"a": TEXTS, "b": TEXTS})
    with pyarrow.ipc.new_file(folder / CAPTIONS, table.schema) as file:
        file.write(table)


def fewer_thumbnails(folder: Path) -> None:
    np.save(folder / "thumbnails.npy", np.load(folder / "thumbnails.npy")[:7])


def pickled_latents(folder: Path) -> None:
    np.save(folder / "latents.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)


def fewer_losses(folder: Path) -> None:
    np.save(folder / "base_losses.npy", np.load(folder / "base_losses.npy")[:7])


def delete(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


DAMAGES = {
    "empty folder": (lambda folder: (shutil.rmtree(folder), folder.mkdir()), "it has no manifest.json"),
    "no folder": (shutil.rmtree, "it has no manifest.json"),
    "random JSON": (write("manifest.json", '{"a": [1, 2]}'), "damaged or of another program"),
    "a JSON list": (write("manifest.json", "[1, 2]"), "damaged or of another program"),
    "not JSON": (write("manifest.json", "hello"), "damaged or of another program"),
    "version alone": (
        write("manifest.json", '{"format_version": 2}'),
        "of another program (its manifest lacks",
    ),
    "manifest cut": (cut("manifest.json", 0.5), "damaged or of another program"),
    "newer version": (edit_manifest(lambda m: m.update(format_version=99)), "format version 99, this program reads 2"),
    "older version": (edit_manifest(lambda m: m.update(format_version=1)), "format version 1, this program reads 2"),
    "no settings": (edit_manifest(lambda m: m.pop("settings")), "damaged or of another program"),
    "settings of another kind": (edit_manifest(lambda m: m.update(settings=3)), "damaged or of another program"),
    "unfinished": (edit_manifest(lambda m: m["steps"].pop("fisher")), "unfinished (fisher)"),
    "latents cut": (cut("latents.npy", 0.5), "latents.npy is missing or truncated"),
    "latents header cut": (cut("latents.npy", 0.01), "latents.npy is missing or truncated"),
    "latents emptied": (cut("latents.npy", 0), "latents.npy is missing or truncated"),
    "latents deleted": (delete("latents.npy"), "latents.npy is missing or truncated"),
    "latents pickled": (pickled_latents, "latents.npy is missing or truncated"),
    "losses deleted": (delete("base_losses.npy"), "base_losses.npy is missing or truncated"),
    "losses of other data": (fewer_losses, "base_losses.npy has shape (7, 2, 8), the manifest says (8, 2, 8)"),
    "captions deleted": (delete("captions.arrow"), "captions.arrow is missing or truncated"),
    "captions cut": (cut("captions.arrow", 0.5), "captions.arrow is missing or truncated"),
    "captions too few": (fewer_captions, "captions.arrow has 5 rows, the manifest says 8"),
    "captions of another kind": (other_columns, "captions.arrow is missing or truncated"),
    "fisher garbage": (
        write("fisher.safetensors", "garbage, and more of it"),
        "fisher.safetensors is missing or damaged",
    ),
    "fisher cut": (cut("fisher.safetensors", 0.5), "fisher.safetensors is missing or damaged"),
    "fisher deleted": (delete("fisher.safetensors"), "fisher.safetensors is missing or damaged"),
    "thumbnails deleted": (delete("thumbnails.bin"), "thumbnails.bin is missing or empty; run the same index command"),
    "thumbnails' places deleted": (delete("thumbnails.npy"), "thumbnails.npy is missing or truncated"),
    "thumbnails cut": (cut("thumbnails.bin", 0.5), "bytes where"),
    "thumbnails too few": (fewer_thumbnails, "thumbnails.npy has shape (7,), the manifest says (8,)"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_index_is_refused_in_one_line(index_folder, tmp_path, name):
    damage, told = DAMAGES[name]
    folder = shutil.copytree(index_folder, tmp_path / "index")
    damage(folder)
    with pytest.raises(IndexMismatch) as caught:
        Index.open(folder)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(IndexMismatch, match="is not an index"):
        Index.open(tmp_path / "file")


def test_building_on_in_a_foreign_folder_is_refused(model32, tiny_settings, tmp_path):
    (tmp_path / "manifest.json").write_text('{"format_version": 2}')
    with pytest.raises(IndexMismatch, match="damaged or of another program"):
        next(build(tmp_path, model32, tiny_settings))


def test_fisher_information_of_another_model_is_refused(index_folder, model32, tmp_path):
    folder = shutil.copytree(index_folder, tmp_path / "index")
    fisher = load_file(folder / "fisher.safetensors")
    fisher.pop(next(iter(fisher)))
    save_file(fisher, folder / "fisher.safetensors")
    with pytest.raises(IndexMismatch, match="Fisher information"):
        Index.open(folder).check(model32)


def test_an_index_beside_another_model_is_refused(index_folder, tmp_path):
    shutil.copytree(index_folder, tmp_path / "index")
    save_tiny_pipeline(tmp_path / "model", "v_prediction", seed=2)
    with pytest.raises(IndexMismatch, match="build an index for this model"):
        open_index(tmp_path / "index")


def test_an_index_and_its_model_can_be_moved_together(index_folder, model32, tmp_path):
    shutil.copytree(index_folder, tmp_path / "index")
    shutil.copytree(model32.source, tmp_path / "model")
    model, index = open_index(tmp_path / "index")
    assert model.source == str(tmp_path / "model")
    assert index.id == Index.open(index_folder).id


def test_an_index_without_its_model_is_refused_in_one_line(index_folder, tmp_path):
    folder = shutil.copytree(index_folder, tmp_path / "index")
    with pytest.raises(WeightsUnavailable) as caught:
        open_index(folder)
    assert "no Stable Diffusion pipeline could be loaded from '../model'" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("step", "name"), [("latents", "latents.npy"), ("fisher", "latents.npy")])
def test_going_on_with_a_truncated_build_is_refused(model32, long_settings, tmp_path, step, name):
    interrupt(build(tmp_path / "index", model32, long_settings), (step, 1))
    cut(name, 0.5)(tmp_path / "index")
    with pytest.raises(IndexMismatch, match=r"latents.npy is missing or truncated"):
        list(build(tmp_path / "index", model32, long_settings))


def test_damaged_running_sums_are_taken_anew(model32, long_settings, uninterrupted, tmp_path):
    interrupt(build(tmp_path / "index", model32, long_settings), ("fisher", 17))
    cut("fisher.partial.safetensors", 0.5)(tmp_path / "index")
    assert len(list(build(tmp_path / "index", model32, long_settings))) == 20
    assert files_of(tmp_path / "index") == uninterrupted
