"""What a model of a real size takes: `python tests/real_size.py` on the machine in question, no hub needed.

A pipeline of Stable Diffusion 1.4's shape with random weights generates, takes gradients and makes predictions in
batches of several sizes, then indexes 32 scenes of 512 px and answers a query. Prints a line of JSON for each: seconds,
and the most memory of a CUDA device that was allocated, in GB.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import tyro
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

sys.path.insert(0, str(Path(__file__).parent.parent))

from conftest import build_all, make_tiny_tokenizer

from attribution.diffusion.loss import denoising_loss
from attribution.diffusion.noise import NoiseBank, NoiseSettings
from attribution.diffusion.pipeline import Model, default_device
from attribution.errors import WorkFailed
from attribution.index.data import DataSettings
from attribution.index.index import Index
from attribution.index.work import BuildSettings
from attribution.methods import attribute
from attribution.methods.answer import AttributeSettings
from attribution.query.query import Query
from attribution.scenes.compose import draw_scene, make_scenes
from attribution.unlearning.fisher import FisherSettings
from attribution.unlearning.step import UnlearnSettings, query_gradient

IMAGES, PROMPT = 32, "a flat drawing of a red apple"


def random_pipeline(small: bool) -> StableDiffusionPipeline:
    """Of Stable Diffusion 1.4's shape, or narrower at 128 px; a tokenizer of few words."""
    width, wide, side = (64, (32, 64, 64, 64), 16) if small else (768, (320, 640, 1280, 1280), 64)
    tokenizer = make_tiny_tokenizer()
    tokenizer.model_max_length = 77
    text = CLIPTextConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=2 if small else 12,
        num_attention_heads=4 if small else 12,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    unet = {
        "sample_size": side,
        "block_out_channels": wide,
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        "cross_attention_dim": width,
        "attention_head_dim": 8,
    }
    vae = {
        "block_out_channels": (32, 32, 32, 32) if small else (128, 256, 512, 512),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 2,
        "latent_channels": 4,
    }
    schedule = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)
    with default_device():
        parts = AutoencoderKL(**vae), CLIPTextModel(text), tokenizer, UNet2DConditionModel(**unet)
    return StableDiffusionPipeline(*parts, schedule, None, None, requires_safety_checker=False)


def measured(what: str, work: Callable[[], Any]) -> None:
    """Do some work and print what it took."""
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    began, failed = time.monotonic(), ""
    try:
        work()
    except (torch.OutOfMemoryError, WorkFailed) as error:
        failed = str(error)[:100]
    if cuda:
        torch.cuda.synchronize()
    memory = torch.cuda.max_memory_allocated() / 1e9 if cuda else None
    print(json.dumps({"what": what, "s": time.monotonic() - began, "gb": memory, "failed": failed}), flush=True)


def run_through(steps: Iterable[Any]) -> None:
    """Take all steps."""
    for _ in steps:
        pass


def measure(small: bool = False) -> None:
    """Measure everything, on CUDA, MPS or the CPU.

    Args:
        small: a narrower model, to try this out.
    """
    model = Model(random_pipeline(small), "random")
    latents, text = torch.randn(1, *model.latent_shape), model.encode_text([PROMPT])

    def bank(columns: int) -> NoiseBank:
        return NoiseBank.draw(NoiseSettings(columns), model.latent_shape, model.train_timesteps)

    def gradients(count: int) -> None:
        run_through(query_gradient(model, "cross-attn-kv", latents, text, bank(count), None, count))

    @torch.inference_mode()
    def predictions(count: int) -> None:
        denoising_loss(model, latents, text, bank(count)).cpu()

    model.generate(PROMPT, 1)
    gradients(1)  # what only the first call does is done
    measured("a picture, 25 steps", lambda: model.generate(PROMPT, 3))
    for count in (1, 8, 32):
        measured(f"gradient of {count} predictions at once", lambda count=count: gradients(count))  # type: ignore[misc]
    for count in (8, 64):
        measured(f"{count} predictions at once", lambda count=count: predictions(count))  # type: ignore[misc]
    with tempfile.TemporaryDirectory() as folder:
        _whole_way(model, Path(folder))


def scenes_of(folder: Path, side: int, count: int) -> Path:
    """A folder of so many scenes of a size in px, where it is not there already."""
    if folder.exists():
        return folder
    folder.mkdir()
    scenes = make_scenes("train", count)
    rows = [{"file_name": f"{row:03d}.png", "text": scene.caption} for row, scene in enumerate(scenes)]
    for row, scene in zip(rows, scenes, strict=True):
        draw_scene(scene).resize((side, side)).save(folder / row["file_name"])
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def _whole_way(model: Model, folder: Path) -> None:
    """An index of a folder of pictures, and an answer."""
    data = scenes_of(folder / "data", model.resolution, IMAGES)
    settings = BuildSettings(DataSettings(train_data_dir=data), fisher=FisherSettings(samples=2 * IMAGES))
    measured(f"an index of {IMAGES} images", lambda: build_all(folder / "index", model, settings))
    index, query = Index.open(folder / "index"), Query(PROMPT, model.generate(PROMPT, 3), 3)
    for batch in (32, 8):
        asked = AttributeSettings(top_k=5, unlearn=UnlearnSettings(batch=batch))
        measured(
            f"an answer among {IMAGES}, gradients in batches of {batch}",
            lambda asked=asked: run_through(attribute(model, index, query, asked)),  # type: ignore[misc]
        )


if __name__ == "__main__":
    tyro.cli(measure)
