"""`python -m attribution generate`."""

from pathlib import Path

from PIL import Image

from attribution.cli.asked import check_file, opened
from attribution.diffusion.pictures import FORMATS
from attribution.diffusion.pipeline import GenerateSettings, check_seed
from attribution.diffusion.tokens import check_prompt
from attribution.files import whole


def generate(prompt: str, out: Path, seed: int = 0, *, settings: GenerateSettings, index: Path | None = None) -> None:
    """Generate a picture with the index's model.

    Args:
        prompt: what to draw.
        out: a PNG, JPEG or WebP file, by its ending.
        seed: 0 to 2**63 - 1.
        settings: how it is sampled.
        index: an index folder; the embedded one by default.
    """
    formats = {ending: kind for ending, kind in Image.registered_extensions().items() if kind in FORMATS}
    check_file("--out", out, tuple(formats))
    check_prompt(prompt)
    check_seed(seed)
    model, _ = opened(index)
    picture = model.generate(prompt, seed, settings)
    with whole(out) as partial:
        picture.save(partial, formats[out.suffix.lower()])
    print(out)
