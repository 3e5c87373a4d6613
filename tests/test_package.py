"""What is installed: the whole package, with what it was trained to."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
BUILT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]


def test_every_room_is_installed():
    rooms = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "attribution").rglob("*.py")}
    assert set(BUILT["packages"]) == {*rooms, "attribution.assets"}


def test_the_embedded_world_is_installed_inside_the_package():
    assert BUILT["package-dir"] == {"attribution.assets": "assets"}
    patterns = BUILT["package-data"]["attribution.assets"]
    held = {path.relative_to(ROOT / "assets") for each in patterns for path in (ROOT / "assets").glob(each)}
    assert {path for path in held if path.suffix == ".npy"}
    assert Path("emoji-scenes/index/manifest.json") in held
    assert Path("emoji-scenes/model/unet/diffusion_pytorch_model.safetensors") in held


def test_the_image_does_without_history_and_tests():
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    assert {".git", "tests", "**/__pycache__"} <= set(ignored)
    assert not {"assets", "attribution", "app.py", "requirements.txt"} & set(ignored)


def test_the_file_map_of_the_readme_is_the_folder_listing():
    told = (ROOT / "README.md").read_text(encoding="utf-8").split("## The files, as the data flow")[1].split("```")[1]
    found, room = set(), ""
    for line in told.splitlines():
        if started := re.match(r"( {0,2})(\w+)/ ", line):
            room = f"{started[2]}/" if started[1] else ""
        elif not line.startswith("   "):
            room = ""
        found |= {f"{room}{name}" for name in re.findall(r"[\w]+\.py", line)}
    package = ROOT / "attribution"
    files = {str(path.relative_to(package)) for path in package.rglob("*.py") if not path.name.startswith("__")}
    assert found == {*files, "app.py"}
