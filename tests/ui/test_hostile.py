"""Hostile input to the served page: each gets a sentence, the server goes on, and its memory stays bounded."""

import socket
import struct
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from browser import PROMPT, generate, toast
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image
from playwright.sync_api import Page, expect

ACCEPTED = "accepted are PNG, JPEG and WebP"
GROWTH = 300e6  # bytes that any of this may cost


@pytest.fixture(scope="module")
def client(address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    made = Client(address, verbose=False, download_files=str(tmp_path_factory.mktemp("down")))
    yield made
    made.close()


@pytest.fixture
def server(address: str) -> Iterator[psutil.Process]:
    """The server; afterwards it must still answer, and must not have grown by more than GROWTH."""
    port = address.rpartition(":")[2]
    found = next(each for each in psutil.process_iter(["cmdline"]) if port in (each.info["cmdline"] or []))
    before = found.memory_info().rss
    yield found
    assert httpx.get(f"{address}/healthz").json()["status"] == "ok"
    assert found.memory_info().rss - before < GROWTH


def ask(client: Client, image: Any = None, **changed: Any) -> dict[str, Any]:
    """An attribution by the quickest method."""
    asked = {"image": image, "prompt": PROMPT, "seed": 7, "boxes": [], "word": "", "method": "pixel", "top_k": 3}
    answer: dict[str, Any] = client.predict(*{**asked, **changed}.values(), False, api_name="/attribute")
    return answer


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def vast_png() -> bytes:
    """13,000 x 13,000 px in 160 KB or less."""
    side = 13_000
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    rows = zlib.compressobj(9)
    packed = b"".join(rows.compress(bytes(side + 1)) for _ in range(side)) + rows.flush()
    made = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
    assert len(made) < 170_000
    return made


def gif_bomb() -> bytes:
    """One vast frame, thousands of times."""
    frame = b"\x2c" + struct.pack("<HHHHB", 0, 0, 65_535, 65_535, 0) + b"\x02\x02\x4c\x01\x00"
    return b"GIF89a" + struct.pack("<HHBBB", 65_535, 65_535, 0x80, 0, 0) + bytes(6) + frame * 5000 + b"\x3b"


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    held = BytesIO()
    image.save(held, kind, **options)
    return held.getvalue()


def noise(mode: str = "RGB") -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 48, 3), np.uint8)).convert(mode)


def turned() -> bytes:
    exif = Image.Exif()
    exif[274] = 6
    return saved(noise(), "JPEG", exif=exif)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("vast.png", vast_png),
        ("truncated.png", lambda: saved(noise(), "PNG")[:-40]),
        ("drawing.svg", lambda: b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>"),
        ("drawing.png", lambda: b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>"),
        ("bomb.gif", gif_bomb),
        ("heavy.png", lambda: saved(noise(), "PNG") + bytes(12_000_000)),
        ("empty.png", lambda: b""),
    ],
)
def test_files_that_are_refused(
    client: Client, server: psutil.Process, tmp_path: Path, name: str, content: Callable[[], bytes]
) -> None:
    path = tmp_path / name
    path.write_bytes(content())
    with pytest.raises(AppError, match=ACCEPTED):
        ask(client, handle_file(str(path)))


def test_a_file_of_25_megabytes_is_refused_at_the_door(address: str, server: psutil.Process) -> None:
    answer = httpx.post(f"{address}/gradio_api/upload", files={"files": ("vast.png", bytes(25_000_000))}, timeout=60)
    assert answer.status_code == 413
    assert "20" in answer.text


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("cmyk.jpg", lambda: saved(noise("CMYK"), "JPEG")),
        ("sixteen.png", lambda: saved(Image.fromarray(np.full((64, 64), 40_000, np.uint16)), "PNG")),
        ("palette.png", lambda: saved(noise().quantize(16), "PNG", transparency=3)),
        ("dot.png", lambda: saved(Image.new("RGB", (1, 1), "red"), "PNG")),
        ("turned.jpg", turned),
    ],
)
def test_files_that_are_read(
    client: Client, server: psutil.Process, tmp_path: Path, name: str, content: Callable[[], bytes]
) -> None:
    path = tmp_path / name
    path.write_bytes(content())
    assert len(ask(client, handle_file(str(path)))["results"]) == 3


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"prompt": "x" * 100_000}, "100,000 characters; accepted are up to 4,000"),
        ({"prompt": "a red\x00 apple"}, "accepted is text without control characters"),
        ({"prompt": " \n "}, "The prompt is empty"),
        ({"seed": 2**70}, "accepted are whole numbers from 0 to"),
        ({"seed": -1}, "accepted are whole numbers from 0 to"),
        ({"top_k": 0}, "accepted are 1 to"),
        ({"top_k": 5000}, "accepted are 1 to 100"),
        ({"boxes": [["NaN", 0, 32, 32]]}, "accepted"),
        ({"boxes": [[-5, 0, 32, 32]]}, "reaches outside the picture"),
        ({"boxes": [[32, 0, 8, 32]]}, "is empty, reversed or too small"),
        ({"boxes": [[8, 8, 8, 32]]}, "is empty, reversed or too small"),
        ({"boxes": [[0, 0, 10**9, 32]]}, "reaches outside the picture"),
        ({"boxes": [[0, 0, 32, 32]] * 1000}, "1,000 boxes are given; accepted are up to 64"),
        ({"boxes": "<b>"}, "accepted is"),
        ({"boxes": [[0, 0, 32]]}, "accepted"),
        ({"word": "<script>alert(1)</script>"}, "word"),
        ({"method": "../../etc/passwd"}, "There is no method"),
    ],
)
def test_values_that_are_refused(client: Client, server: psutil.Process, changed: dict[str, Any], said: str) -> None:
    with pytest.raises(AppError, match=said):
        ask(client, **changed)


@pytest.mark.parametrize("labels", ["", " . . ", "x\x07y", " . ".join(f"n{i}" for i in range(1000)), "y" * 100_000])
def test_labels_that_are_refused(client: Client, server: psutil.Process, tmp_path: Path, labels: str) -> None:
    path = tmp_path / "picture.png"
    noise().save(path)
    with pytest.raises(AppError, match="accepted are"):
        client.predict(handle_file(str(path)), labels, "", 0.3, api_name="/detect")


@pytest.mark.parametrize("run_id", ["../../etc/passwd", "..%2f..%2fapp", "0" * 12, "<script>", "a" * 100_000])
def test_runs_that_are_not_there(client: Client, server: psutil.Process, run_id: str) -> None:
    with pytest.raises(AppError, match="is not kept here"):
        client.predict(run_id, api_name="/report")


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "app.py", "../app.py", "/proc/self/environ", "assets/../app.py", "%2e%2e/%2e%2e/etc/passwd"]
)
def test_no_file_is_served_but_thumbnails_and_runs(address: str, path: str) -> None:
    for route in ("gradio_api/file=", "file=", "thumbnails/", "runs/", "static/"):
        answer = httpx.get(f"{address}/{route}{path}")
        assert answer.status_code in (403, 404, 405, 422), (route, path)
        assert "root:" not in answer.text


@pytest.mark.parametrize(
    "image",
    [
        {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}},
        {"path": "../../app.py", "meta": {"_type": "gradio.FileData"}},
        {"path": "http://127.0.0.1:22/x.png", "meta": {"_type": "gradio.FileData"}},
        {"path": "x.png", "url": "http://169.254.169.254/latest/", "meta": {"_type": "gradio.FileData"}},
        {"path": "file:///etc/passwd", "meta": {"_type": "gradio.FileData"}},
    ],
)
def test_paths_and_addresses_in_place_of_an_upload(address: str, server: psutil.Process, image: dict[str, Any]) -> None:
    refused(address, image)


def refused(address: str, image: dict[str, Any]) -> None:
    """Send it as an upload: the answer is an error that tells nothing."""
    data = [image, PROMPT, 7, [], "", "pixel", 3, False]
    event = httpx.post(f"{address}/gradio_api/call/attribute", json={"data": data}, timeout=60)
    told = event.text
    if event.status_code == 200:
        told = httpx.get(f"{address}/gradio_api/call/attribute/{event.json()['event_id']}", timeout=60).text
        assert "event: error" in told
    assert "root:" not in told
    assert "results" not in told


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0", "[::1]", "127.1", "2130706433"])
def test_a_local_address_is_not_asked(address: str, server: psutil.Process, host: str) -> None:
    asked: list[str] = []

    class Picture(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(saved(noise(), "PNG"))

        do_HEAD = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
    inner = type("Inner", (ThreadingHTTPServer,), {"address_family": family})(
        ("::1" if family == socket.AF_INET6 else "127.0.0.1", 0), Picture
    )
    with inner, ThreadPoolExecutor(1) as pool:
        pool.submit(inner.serve_forever)
        try:
            url = f"http://{host}:{inner.server_address[1]}/x.png"
            httpx.get(url)
            assert asked  # by this test, so it can be asked
            asked.clear()
            for image in ({"path": url}, {"path": "x.png", "url": url}, {"path": url, "url": url}):
                refused(address, {**image, "meta": {"_type": "gradio.FileData"}})
            assert asked == []
        finally:
            inner.shutdown()


def test_a_path_in_an_uploads_name_stays_in_its_folder(address: str, server: psutil.Process, tmp_path: Path) -> None:
    content = saved(noise(), "PNG")
    files = {"files": ("../../../../tmp/escaped-by-name.png", content)}
    kept = Path(httpx.post(f"{address}/gradio_api/upload", files=files, timeout=60).json()[0])
    assert ".." not in kept.parts
    assert not Path("/tmp/escaped-by-name.png").exists()


def test_html_in_prompt_and_labels_is_shown_as_text(page: Page) -> None:
    evil = "<img src=x onerror='document.title=\"taken\"'> a red apple"
    generate(page, evil)
    expect(page.locator("#picture-note")).to_contain_text("onerror")
    page.fill("#labels input, #labels textarea", evil)
    page.click("#find")
    expect(page.locator("#found")).not_to_be_empty()
    assert page.title() != "taken"
    assert page.locator("img[src=x]").count() == 0


def test_a_prompt_of_100000_characters(page: Page) -> None:
    page.fill("#prompt textarea", "apple " * 16_667)
    expect(page.locator("#tokens")).to_contain_text("accepted are up to 4,000")
    page.click("#generate")
    assert "accepted are up to 4,000" in toast(page)
    expect(page.locator("#generate")).to_be_enabled()
