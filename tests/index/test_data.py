"""Pictures from outside: what is accepted, and what is refused in one sentence before it is decoded."""

import io
import json
import zlib

import pytest
from conftest import random_picture
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from attribution.diffusion.pictures import open_upload, to_pixels, to_square
from attribution.errors import InputError
from attribution.index import data
from attribution.index.data import DataSettings, open_training_set

ACCEPTED = "accepted are PNG, JPEG and WebP files up to 10 MB and 4096 px a side"


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def refuse(path, told):
    with pytest.raises(InputError) as caught:
        open_upload(path)
    assert told in str(caught.value)
    assert path.name in str(caught.value)
    assert ACCEPTED in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_pictures_of_the_accepted_kinds_are_read(tmp_path, kind):
    (tmp_path / "picture").write_bytes(encoded(random_picture(0, (48, 40)), kind))
    picture = open_upload(tmp_path / "picture")
    assert picture.size == (48, 40)
    picture.resize((2, 2))  # decoded, though its file is closed


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("text.png", b"hello, I am no picture"),
        ("empty.png", b""),
        ("moving.gif", encoded(random_picture(0), "GIF")),
        ("gif.png", encoded(random_picture(0), "GIF")),
        ("drawing.svg", b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect width="9"/></svg>'),
        ("svg.png", b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>'),
        ("bitmap.bmp", encoded(random_picture(0), "BMP")),
    ],
)
def test_what_is_no_picture_of_these_kinds_is_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    refuse(tmp_path / name, "is not an image that can be read")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_truncated_picture_is_refused_wherever_it_ends(tmp_path, kind):
    content, path = encoded(random_picture(0), kind), tmp_path / "cut"
    for end in range(0, int(0.9 * len(content)), 23):
        path.write_bytes(content[:end])
        refuse(path, "is not an image that can be read")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_picture_with_spoiled_bytes_is_read_or_refused_but_nothing_else(tmp_path, kind):
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    content, path = encoded(random_picture(0), kind, exif=exif.tobytes()), tmp_path / "spoiled"
    outcomes = set()
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :])
        try:
            outcomes.add(type(open_upload(path)))
        except InputError:
            outcomes.add(InputError)
    assert outcomes == {Image.Image, InputError}


def png_header(width, height):
    """A PNG that claims a size: its first chunk is all that is needed to tell."""
    small = encoded(Image.new("L", (8, 8)), "PNG")
    header = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + small[24:29]
    return small[:12] + header + zlib.crc32(header).to_bytes(4, "big") + small[33:]


@pytest.mark.parametrize("size", [(4097, 8), (8, 4097), (13000, 13000), (30000, 30000)])
def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path, monkeypatch, size):
    """Pillow itself warns of 13000 x 13000 pixels, and does not open 30000 x 30000."""
    path = tmp_path / "large.png"
    path.write_bytes(png_header(*size))
    monkeypatch.setattr(PngImageFile, "load", lambda _: pytest.fail("it was decoded"))
    refuse(path, f"large.png is {size[0]} x {size[1]} px" if size[0] < 30000 else "large.png")


def test_the_largest_picture_is_read(tmp_path):
    (tmp_path / "wide.png").write_bytes(encoded(Image.new("L", (4096, 2)), "PNG"))
    assert open_upload(tmp_path / "wide.png").size == (4096, 2)


def test_a_file_over_ten_megabytes_is_refused_before_it_is_opened(tmp_path, monkeypatch):
    monkeypatch.setattr(data.Image, "open", lambda *_, **__: pytest.fail("it was opened"))
    path = tmp_path / "heavy.png"
    path.write_bytes(encoded(random_picture(0), "PNG") + bytes(10_000_001))
    refuse(path, "heavy.png has 10.0 MB")


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    refuse(tmp_path / "nowhere.png", "there is no image file 'nowhere.png'")
    refuse(tmp_path, "there is no image file")


def test_a_rotated_photograph_is_read_as_it_is_shown(tmp_path):
    """Boxes are pixels of the picture as shown, so its EXIF rotation is undone when it is opened."""
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees
    (tmp_path / "turned.jpg").write_bytes(encoded(random_picture(0, (64, 32)), "JPEG", exif=exif.tobytes()))
    picture = open_upload(tmp_path / "turned.jpg")
    assert picture.size == (32, 64)
    assert to_square(picture, 32)[1].top == 16


def test_the_square_of_a_wide_picture_is_its_middle():
    wide = Image.new("RGB", (96, 32), "red")
    wide.paste("blue", (32, 0, 64, 32))
    square, frame = to_square(wide, 32)
    assert square.getcolors() == [(1024, (0, 0, 255))]
    assert (frame.left, frame.top, frame.scale_x, frame.scale_y) == (32, 0, 1, 1)
    squeezed, frame = to_square(wide, 32, center_crop=False)
    assert squeezed.getpixel((2, 16)) == (255, 0, 0)
    assert (frame.left, frame.top, frame.scale_x, frame.scale_y) == (0, 0, 1 / 3, 1)


def test_transparency_is_put_on_white():
    square, _ = to_square(Image.new("RGBA", (32, 32), (0, 0, 0, 0)), 32)
    assert square.getcolors() == [(1024, (255, 255, 255))]


def test_pixels_run_from_minus_one_to_one():
    pixels = to_pixels([Image.new("RGB", (4, 4), (0, 255, 51))])
    assert pixels.shape == (1, 3, 4, 4)
    assert pixels[0, :, 0, 0].tolist() == pytest.approx([-1, 1, -0.6])


def test_columns_that_are_not_there_are_named_with_those_that_are(pictures):
    for change, missing in (({"image_column": "img"}, "img"), ({"caption_column": "words"}, "words")):
        with pytest.raises(InputError, match=f"no column '{missing}'; its columns are image, text"):
            open_training_set(DataSettings(train_data_dir=pictures, **change))


def test_the_first_of_several_captions_is_shown(tmp_path):
    random_picture(0).save(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "text": ["one", "two"]}) + "\n")
    assert open_training_set(DataSettings(train_data_dir=tmp_path)).captions == ["one"]


def test_only_the_first_samples_are_taken(pictures):
    training = open_training_set(DataSettings(train_data_dir=pictures, max_train_samples=3))
    assert (len(training), training.ids) == (3, ["p0.png", "p1.png", "p2.png"])
