"""A picture is read in one way everywhere: uploads as a person sees them, training images as diffusers' script does."""

import io
import json
import struct
import zlib

import datasets
import numpy as np
import pytest
import torch
from conftest import SIDE, build_all, random_picture
from networks import tiny_vit
from PIL import Image, PngImagePlugin
from torchvision import transforms

from attribution.diffusion.pictures import as_trained, open_upload, to_pixels, to_square, upright
from attribution.index.build import ExtendSettings, build
from attribution.index.data import DataSettings, open_training_set
from attribution.index.features import open_feature, pixel_vectors
from attribution.index.index import Index


def stored(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def uploaded(tmp_path, content):
    (tmp_path / "upload").write_bytes(content)
    return open_upload(tmp_path / "upload")


def ramp():
    """Greys of 16 bits from black to white, (16, 16)."""
    return np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)


# Uploads: as a person sees them


def test_greys_of_16_bits_are_scaled_not_cut_off(tmp_path):
    picture = uploaded(tmp_path, stored(Image.fromarray(ramp())))
    assert (np.asarray(picture)[..., 1] == np.arange(256).reshape(16, 16)).all()
    assert picture.mode == "RGB"


def test_a_transparent_grey_of_16_bits_is_white(tmp_path):
    greys = np.full((4, 4), 1000, np.uint16)
    greys[0, 0] = 2000
    content = stored(Image.fromarray(greys))
    key = b"tRNS" + struct.pack(">H", 1000)
    chunk = struct.pack(">I", 2) + key + struct.pack(">I", zlib.crc32(key))
    place = content.index(b"IDAT") - 4
    picture = uploaded(tmp_path, content[:place] + chunk + content[place:])
    assert picture.getpixel((3, 3)) == (255, 255, 255)
    assert picture.getpixel((0, 0)) == (8, 8, 8)


def png_of_16_bits(colours, key=None):
    """A PNG of (H, W, 3) colours of 16 bits, which Pillow cannot write."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = colours.shape[:2]
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in colours)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0))
    keyed = b"" if key is None else chunk(b"tRNS", struct.pack(">HHH", *key))
    return b"\x89PNG\r\n\x1a\n" + header + keyed + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def test_colours_of_16_bits_and_their_transparent_key(tmp_path):
    colours = np.full((4, 4, 3), (0x1234, 0x8000, 0xFFFF), np.uint16)
    assert uploaded(tmp_path, png_of_16_bits(colours)).getpixel((1, 1)) == (0x12, 0x80, 0xFF)
    keyed = uploaded(tmp_path, png_of_16_bits(colours, key=(0x1234, 0x8000, 0xFFFF)))
    assert keyed.getpixel((1, 1)) == (255, 255, 255)


def in_mode(mode):
    """A red, half or wholly transparent where the mode can be, in the left half."""
    picture = Image.new("RGBA", (8, 8), (255, 0, 0, 255))
    picture.paste((255, 0, 0, 0), (0, 0, 4, 8))
    if mode == "P":
        palette = Image.new("P", (8, 8), 0)
        palette.putpalette([255, 0, 0, 0, 0, 200])
        palette.paste(1, (0, 0, 4, 8))
        return palette, {"transparency": bytes([255, 0])}
    if mode == "key":
        keyed = picture.convert("RGB")
        keyed.paste((1, 2, 3), (0, 0, 4, 8))
        return keyed, {"transparency": (1, 2, 3)}
    return picture.convert(mode), {}


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "key"])
def test_transparency_of_every_kind_is_white_for_a_person(tmp_path, mode):
    picture, how = in_mode(mode)
    shown = uploaded(tmp_path, stored(picture, **how))
    assert shown.getpixel((1, 1)) == (255, 255, 255)
    assert shown.getpixel((6, 6)) != (255, 255, 255)
    assert upright(shown).tobytes() == shown.tobytes()  # nothing is left in it that would be undone twice


def test_cyan_magenta_yellow_and_black(tmp_path):
    red = uploaded(tmp_path, stored(Image.new("RGB", (8, 8), (250, 5, 5)).convert("CMYK"), "JPEG", quality=95))
    assert np.abs(np.asarray(red, int) - (250, 5, 5)).max() < 6


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_rotation_is_undone_once(tmp_path, kind, turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    content = stored(random_picture(0, (64, 32)), kind, exif=exif.tobytes())
    shown = uploaded(tmp_path, content)
    assert shown.size == ((64, 32) if turn < 5 else (32, 64))
    assert to_square(shown, 32)[0].tobytes() == to_square(upright(shown), 32)[0].tobytes()
    assert as_trained(Image.open(io.BytesIO(content))).tobytes() == shown.tobytes()


@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"])
def test_damaged_exif_data_do_not_refuse_a_picture(tmp_path, exif):
    assert uploaded(tmp_path, stored(random_picture(0), "JPEG", exif=exif)).size == (SIDE, SIDE)


@pytest.mark.parametrize("kind", ["zTXt", "iTXt", "tEXt", "iCCP"])
def test_large_metadata_do_not_refuse_a_picture(tmp_path, kind):
    """Pillow refuses a PNG with more than 1 MB of text or profile, as programs that draw with a workflow write."""
    told, how = PngImagePlugin.PngInfo(), {}
    if kind == "iCCP":
        how["icc_profile"] = bytes(3_000_000)
    elif kind == "iTXt":
        told.add_itxt("workflow", "x" * 3_000_000, zip=True)
    else:
        told.add_text("workflow", "x" * 3_000_000, zip=kind == "zTXt")
    picture = random_picture(0)
    assert uploaded(tmp_path, stored(picture, pnginfo=told, **how)).tobytes() == picture.tobytes()


def test_a_jpeg_of_several_pictures_shows_its_first(tmp_path):
    first = random_picture(0)
    content = stored(first, "MPO", save_all=True, append_images=[random_picture(1)], quality=95)
    assert np.abs(np.asarray(uploaded(tmp_path, content), int) - np.asarray(first, int)).mean() < 4


# Training images: as diffusers' script reads them


def script_reads(path, side):
    """What train_text_to_image.py makes of an image, with --center_crop: (3, side, side) in [-1, 1]."""
    image = datasets.Image().decode_example({"path": str(path), "bytes": None})
    made = transforms.Compose(
        [
            transforms.Resize(side, interpolation=transforms.InterpolationMode.BILINEAR),
            transforms.CenterCrop(side),
            transforms.ToTensor(),
            transforms.Normalize([0.5], [0.5]),
        ]
    )
    return made(image.convert("RGB"))


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return {"exif": exif.tobytes()}


TRAINING = {
    "wide.png": (random_picture(0, (150, 64)), {}),
    "tall.png": (random_picture(1, (33, 47)), {}),
    "small.png": (random_picture(2, (20, 9)), {}),
    "same.png": (random_picture(3), {}),
    "large.jpg": (random_picture(4, (301, 200)), {}),
    "turned.jpg": (random_picture(5, (90, 60)), turned()),
    "rgba.png": (in_mode("RGBA")[0], {}),
    "la.png": (in_mode("LA")[0], {}),
    "palette.png": in_mode("P"),
    "key.png": in_mode("key"),
    "deep.png": (Image.fromarray(ramp()), {}),
    "cmyk.jpg": (random_picture(6, (50, 40)).convert("CMYK"), {}),
    "grey.png": (random_picture(7, (50, 40)).convert("L"), {}),
}


@pytest.fixture(scope="module")
def odd_folder(tmp_path_factory):
    """An imagefolder of pictures of many sizes and kinds."""
    folder = tmp_path_factory.mktemp("odd")
    for name, (picture, how) in TRAINING.items():
        picture.save(folder / name, **how)
    rows = "".join(json.dumps({"file_name": name, "text": name}) + "\n" for name in TRAINING)
    (folder / "metadata.jsonl").write_text(rows)
    return folder


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
@pytest.mark.parametrize("name", TRAINING)
def test_the_square_of_a_training_image_is_that_of_the_script(odd_folder, name):
    training = open_training_set(DataSettings(train_data_dir=odd_folder))
    ours = to_pixels([training.square(training.ids.index(name), SIDE)])[0]
    assert (ours - script_reads(odd_folder / name, SIDE)).abs().max() <= 1.01 / 127.5  # one level, of rounding


def test_without_center_crop_a_training_image_is_squeezed(odd_folder):
    training = open_training_set(DataSettings(train_data_dir=odd_folder, center_crop=False))
    wide = random_picture(0, (150, 64)).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    assert training.square(training.ids.index("wide.png"), SIDE).tobytes() == wide.tobytes()


@pytest.mark.parametrize("center_crop", [True, False])
def test_an_index_knows_one_view_of_each_image(model32, tiny_settings, odd_folder, tmp_path, center_crop):
    """Latents, features, thumbnails and the pixel baseline are of the same square, also of pictures that are none."""
    data = DataSettings(train_data_dir=odd_folder, center_crop=center_crop)
    settings = type(tiny_settings)(data, tiny_settings.noise, tiny_settings.fisher, tiny_settings.batch)
    build_all(tmp_path / "index", model32, settings)
    dino = str(tiny_vit(tmp_path / "dino"))
    for _ in build(
        tmp_path / "index", model32, settings, ExtendSettings(features=("dino",), feature_weights={"dino": dino})
    ):
        pass
    index, training = Index.open(tmp_path / "index"), open_training_set(data)
    squares = [training.square(row, SIDE) for row in range(len(training))]
    latents = model32.encode_images(to_pixels(squares))
    torch.testing.assert_close(torch.from_numpy(index.latents[:, 0].astype(np.float32)), latents, atol=2e-3, rtol=2e-3)
    vectors = open_feature("dino", dino)(squares)
    held = torch.from_numpy(index.array("features/dino")[:, 0].astype(np.float32))
    torch.testing.assert_close(held, vectors, atol=2e-3, rtol=2e-3)
    assert (index.pictures.pixels(range(len(index))) == pixel_vectors(squares)).all()
    for row, square in enumerate(squares):
        assert index.pictures.small(row).tobytes() == square.tobytes()


# The frame


@pytest.mark.parametrize("size", [(150, 64), (33, 47), (4032, 3024), (96, 32), (5, 400)])
@pytest.mark.parametrize("center_crop", [True, False])
def test_the_frame_maps_the_square_into_the_picture(size, center_crop):
    square, frame = to_square(Image.new("RGB", size, "red"), 32, center_crop)
    assert square.size == (32, 32)
    for edge, scale, length in ((frame.left, frame.scale_x, size[0]), (frame.top, frame.scale_y, size[1])):
        assert -1e-6 <= edge <= edge + 32 / scale <= length + 1e-6
    if not center_crop:
        assert (frame.left, frame.top, 32 / frame.scale_x, 32 / frame.scale_y) == (0, 0, *size)


def test_a_very_long_picture_takes_little_memory():
    """The script resizes the whole of it: 4096 x 2 px would become a million px wide."""
    square, frame = to_square(Image.new("L", (4096, 2)), 512)
    assert (square.size, frame.scale_y) == ((512, 512), 256)
