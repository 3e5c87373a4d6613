"""The one loop over the steps: ended at any moment it goes on, and nothing that is not finite is stored."""

import math
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import CAPTIONS, build_all, random_picture

from attribution.diffusion import memory
from attribution.diffusion.memory import AtOnce
from attribution.diffusion.pipeline import Model
from attribution.errors import InputError
from attribution.index import gradients, stored
from attribution.index.build import build
from attribution.index.data import DataSettings
from attribution.index.index import Index
from attribution.index.manifest import Manifest
from attribution.index.steps import STEPS
from attribution.index.work import ExtendSettings
from attribution.methods import attribute, fitting
from attribution.methods.answer import AttributeSettings
from attribution.unlearning.fisher import Samples
from attribution.unlearning.projection import GradientSettings
from attribution.unlearning.step import UnlearnSettings

MORE = ExtendSettings(
    fisher_all=True,
    ekfac=True,
    gradients=("loss", "influence", "influence+"),
    projection=GradientSettings(dimension=64),
)


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def run(steps):
    for _ in steps:
        pass


class Killed(Exception):
    """The process ends here."""


def test_a_build_that_is_killed_at_every_write_of_its_manifest_has_the_same_bytes(
    model32, tiny_settings, tmp_path, monkeypatch
):
    """Just before and just after each write; each time the build goes on from what there is."""
    more = replace(MORE, fisher_all=False, gradients=("loss", "influence+"))
    run(build(tmp_path / "whole", model32, tiny_settings, more))
    write, attempts, writes = Manifest.write, 0, 0

    def killed(manifest, folder):
        nonlocal writes
        writes += 1
        if writes == 2 and attempts % 2 == 0:
            raise Killed
        write(manifest, folder)
        if writes == 2:
            raise Killed

    monkeypatch.setattr(Manifest, "write", killed)
    for attempts in range(200):  # noqa: B007
        writes = 0
        try:
            run(build(tmp_path / "index", model32, tiny_settings, more))
            break
        except Killed:
            continue
    assert attempts > 30
    assert files_of(tmp_path / "index") == files_of(tmp_path / "whole")


def test_blocks_that_were_made_in_another_order_are_the_same(model32, tiny_settings, index_folder, plain_copy):
    """What a finished part lacks is filled in, wherever it is: here rows 3 to 5 of the losses."""
    folder = plain_copy
    manifest = Manifest.read(folder)
    losses = np.load(folder / "base_losses.npy", mmap_mode="r+")
    losses[3:6] = 0
    losses.flush()
    step = replace(manifest.step("base_losses"), finished=False, blocks=((0, 3), (6, 8)))
    manifest.having("base_losses", step).write(folder)
    done = [(each.step, each.done) for each in build(folder, model32, tiny_settings)]
    assert done == [("base_losses", 8)]
    assert files_of(folder) == files_of(index_folder)


def test_a_half_finished_array_that_was_deleted_is_made_anew(model32, tiny_settings, index_folder, plain_copy):
    folder = plain_copy
    manifest = Manifest.read(folder)
    manifest.having("latents", replace(manifest.step("latents"), finished=False, blocks=((0, 6),))).write(folder)
    (folder / "latents.npy").unlink()
    assert [(each.step, each.done) for each in build(folder, model32, tiny_settings)] == [
        ("latents", 6),
        ("latents", 8),
    ]
    assert files_of(folder) == files_of(index_folder)


def test_an_addition_that_was_begun_with_other_settings_begins_anew(model32, tiny_settings, plain_copy):
    def asked(dimension):
        projection = GradientSettings(dimension=dimension)
        return build(plain_copy, model32, tiny_settings, ExtendSettings(gradients=("loss",), projection=projection))

    steps = asked(32)
    next(steps)
    steps.close()
    run(asked(64))
    assert Index.open(plain_copy).array("gradients/loss").shape == (1, 8, 1, 64)


def test_signed_gradients_without_ekfac_are_refused_before_any_work(model32, tiny_settings, tmp_path):
    asked = ExtendSettings(gradients=("influence+",), projection=MORE.projection)
    with pytest.raises(InputError, match=r"^--gradients influence\+ are whitened by EK-FAC, which .*; add --ekfac$"):
        next(build(tmp_path / "index", model32, tiny_settings, asked))
    assert not (tmp_path / "index" / "manifest.json").exists()


def test_unknown_additions_are_refused_before_any_work(model32, tiny_settings, tmp_path):
    with pytest.raises(InputError, match="no feature 'sift'"):
        next(build(tmp_path / "index", model32, tiny_settings, ExtendSettings(features=("sift",))))
    assert not (tmp_path / "index" / "manifest.json").exists()


# Numbers that are not finite


def test_a_model_that_went_nan_is_told_with_the_first_image(tiny_folder, tiny_settings, tmp_path):
    broken = Model.load(tiny_folder, torch.device("cpu"))
    for parameter in broken.unet.parameters():
        parameter.data.fill_(torch.nan)
    with pytest.raises(InputError, match=r"^base_losses of training image p0.png is not finite; check the model's"):
        run(build(tmp_path / "index", broken, tiny_settings))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e6])
def test_latents_that_float16_does_not_hold_are_told(model32, tiny_settings, tmp_path, monkeypatch, value):
    encode = model32.encode_images

    def spoiled(pixels, seen=[]):  # noqa: B006
        seen.append(len(pixels))
        latents = encode(pixels).clone()
        if sum(seen) == 16:  # the mirrors of the last two
            latents[1, 2, 3, 4] = value
        return latents

    monkeypatch.setattr(model32, "encode_images", spoiled)
    with pytest.raises(InputError, match=r"^latents of training image p7.png is not finite"):
        run(build(tmp_path / "index", model32, tiny_settings))


@pytest.mark.parametrize("step", ["fisher", "ekfac-factors", "ekfac", "fisher-all"])
def test_sums_name_the_image_that_is_not_finite(model32, tiny_settings, plain_copy, monkeypatch, step):
    drawn = Samples.draw(8, 2, 7, seed=6)
    bad = drawn[9][0]
    work = STEPS[step].work

    def spoiled(source, record):
        made = work(source, record)

        def block(samples):
            (sums,) = made.block(samples)
            name = next(iter(sums))
            if any(drawn[sample][0] == bad for sample in samples):
                sums[name] = sums[name] * torch.nan
            yield sums

        return replace(made, block=block)

    if step == "fisher":
        Manifest.read(plain_copy).lacking("fisher").write(plain_copy)
    monkeypatch.setitem(STEPS, step, replace(STEPS[step], work=spoiled))
    with pytest.raises(InputError, match=rf"^{step} of training image p{bad}.png is not finite"):
        run(build(plain_copy, model32, tiny_settings, ExtendSettings(fisher_all=True, ekfac=True)))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("batch", [1, 6])
def test_a_signed_gradient_that_is_not_finite_names_its_image(
    model32, tiny_settings, plain_copy, monkeypatch, value, batch
):
    """Its signs would be as good as any other's."""
    asked = replace(MORE, fisher_all=False, gradients=("influence+",))
    run(build(plain_copy, model32, tiny_settings, replace(asked, gradients=())))
    wanted = model32.encode_captions([CAPTIONS[5]])
    by_call = gradients.gradients_by_call

    def spoiled(model, subset, latents, text, *rest):
        rows = [number for number, each in enumerate(text) if torch.allclose(each, wanted[0], atol=1e-5)]
        for share, sums in by_call(model, subset, latents, text, *rest):
            sums = sums.clone()
            sums[rows, 3] = value
            yield share, sums

    monkeypatch.setattr(gradients, "gradients_by_call", spoiled)
    settings = replace(tiny_settings, batch=batch)
    told = "^the gradient of training image p5.png is not finite; check the model's weights, mend the image or leave"
    with pytest.raises(InputError, match=told):
        run(build(plain_copy, model32, settings, asked))
    assert "gradients/influence+" not in Index.open(plain_copy).artifacts
    monkeypatch.undo()
    run(build(plain_copy, model32, settings, asked))
    assert Index.open(plain_copy).array("gradients/influence+").dtype == np.uint8


# What opening reads


def test_opening_reads_no_tensor(full_folder, model32, monkeypatch):
    monkeypatch.setattr(stored, "load_file", lambda *_: pytest.fail("tensors were read"))
    index = Index.open(full_folder)
    index.check(model32)
    for curvature, names in (
        ("diagonal", dict(model32.unet.named_parameters())),
        ("ek-fac", stored.tensor_shapes(index.path / "fisher.safetensors")),
    ):
        index.require_information(names, curvature)
    assert isinstance(index.latents, np.memmap)
    assert isinstance(index.base_losses, np.memmap)


# The training images themselves


@pytest.fixture
def large_pictures(tmp_path):
    """Eight pictures of 200 x 160 px; the model sees the middle square of each at 32 px."""
    folder = tmp_path / "large"
    folder.mkdir()
    lines = []
    for row, caption in enumerate(CAPTIONS):
        random_picture(row, (200, 160)).save(folder / f"p{row}.png")
        lines.append(f'{{"file_name": "p{row}.png", "text": "{caption}"}}\n')
    (folder / "metadata.jsonl").write_text("".join(lines))
    return folder


def test_a_training_picture_is_the_image_itself_where_it_is_still_there(
    model32, tiny_settings, large_pictures, tmp_path
):
    settings = replace(tiny_settings, data=DataSettings(train_data_dir=large_pictures))
    folder = build_all(tmp_path / "index", model32, settings)
    assert Manifest.read(folder).source == "../large"  # both can be moved together
    index = Index.open(folder)
    assert index.picture(3).tobytes() == random_picture(3, (200, 160)).tobytes()
    random_picture(50, (200, 160)).save(large_pictures / "p4.png")
    assert Index.open(folder).picture(4).size == (32, 32)  # it is another picture now
    (large_pictures / "p5.png").write_bytes(b"")
    assert Index.open(folder).picture(5).size == (32, 32)
    shutil.rmtree(large_pictures)
    assert Index.open(folder).picture(3).size == (32, 32)


# Precision and room


def test_an_index_of_a_bfloat16_model_can_be_built_and_asked(tiny_folder, tiny_settings, query, tmp_path):
    half = Model.load(tiny_folder, torch.device("cpu"), torch.bfloat16)
    folder = tmp_path / "index"
    run(build(folder, half, tiny_settings, replace(MORE, fisher_all=False, gradients=("influence", "influence+"))))
    index = Index.open(folder)
    assert (index.latents.dtype, index.base_losses.dtype) == (np.float16, np.float32)
    assert all(values.dtype == torch.float32 for values in index.fisher.values())
    assert len(np.unique(index.base_losses)) > 100  # not rounded to three digits
    unlearn = UnlearnSettings(timesteps=3, noises=2)
    for method in ("unlearning+", "influence", "influence+"):
        settings = fitting(AttributeSettings(top_k=3, unlearn=unlearn), method)
        *_, answer = attribute(half, index, query, settings)
        assert len(answer.results) == 3


def test_a_disk_with_too_little_room_is_told_before_the_array_is_begun(model32, tiny_settings, tmp_path, monkeypatch):
    monkeypatch.setattr(stored.shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    with pytest.raises(InputError, match=r"latents.npy needs 0 MB of disk, 0 MB are free; make room"):
        run(build(tmp_path / "index", model32, tiny_settings))
    assert not (tmp_path / "index" / "latents.npy").exists()


# How many at once, and how far a block is


def test_each_call_of_a_block_is_told(model32, tiny_settings, tmp_path):
    told = []
    more = ExtendSettings(gradients=("loss",), projection=GradientSettings(dimension=64))
    yielded = list(build(tmp_path / "index", model32, tiny_settings, more, told.append))
    shares = [each.done for each in told if each.step == "base_losses"]
    assert shares == pytest.approx(
        [
            0,
            *(3 * k / 8 for k in range(1, 8)),
            *(3 + 3 * k / 8 for k in range(1, 8)),
            *(6 + 2 * k / 8 for k in range(1, 8)),
        ]
    )  # blocks of three images at eight noises each
    calls = math.ceil(6 * 2 * 8 / 6) + math.ceil(2 * 2 * 8 / 6)
    assert len([each for each in (*told, *yielded) if each.step == "gradients/loss"]) == 1 + calls
    begun = [each.step for each in told if not each.total]
    assert begun == ["captions", "thumbnails", "latents", "base_losses", "fisher", "gradients/loss"]
    assert all(each.total in (0, 8, 37) for each in told)


def test_large_pictures_are_encoded_one_by_one_and_are_the_same(
    model32, tiny_settings, index_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(memory, "ENCODED", 1.0)
    encode, sizes = model32.encode_images, []
    monkeypatch.setattr(model32, "encode_images", lambda pixels: sizes.append(len(pixels)) or encode(pixels))
    steps = build(tmp_path / "index", model32, tiny_settings)
    while next(steps).step != "base_losses":
        pass
    steps.close()
    assert sizes == [1] * 16
    found, known = (np.load(folder / "latents.npy") for folder in (tmp_path / "index", index_folder))
    np.testing.assert_allclose(found, known, rtol=2e-3, atol=1e-3)


def test_what_is_given_at_once_follows_the_networks(model32, monkeypatch):
    """The U-Net's follow memory on the CPU alone: other devices tell when theirs is full."""
    assert AtOnce.of(model32, 64) == AtOnce(64, 64, 64)
    largest, total = memory.outputs(model32.unet, lambda: memory._predict(model32))
    assert largest < total
    monkeypatch.setattr(memory, "PREDICTED", 8.5 * memory.KEPT * total)
    assert AtOnce.of(model32, 64).gradients == (8 if model32.device.type == "cpu" else 64)
    assert AtOnce.of(model32, 64, captions=4).gradients == (2 if model32.device.type == "cpu" else 64)
    monkeypatch.setattr(memory, "PREDICTED", 1.0)
    monkeypatch.setattr(memory, "ENCODED", 1.0)
    assert AtOnce.of(model32, 64) == (AtOnce(1, 1, 1) if model32.device.type == "cpu" else AtOnce(1, 64, 64))
