"""A pipeline's networks, loaded one by one, each with all of its weights; no code that comes with them is run."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import (
    DDPMScheduler,
    DiffusionPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)

from attribution.diffusion.fits import check_family, check_keys
from attribution.diffusion.source import ModelFiles
from attribution.diffusion.tensors import read_tensors
from attribution.errors import InputError

LIBRARIES = {"diffusers": diffusers, "transformers": transformers}
PARTS = ("unet", "vae", "text_encoder")
XL_ENCODER = "text_encoder_2"  # which SDXL has beside them
# The paper's MSCOCO model, which Georgiev et al. 2023 trained from nothing on the latents and texts of Stable
# Diffusion 2 (Wang et al. 2024, B.1): its U-Net, and the schedule, diffusers' default, of 1000 steps.
MSCOCO_UNET = {
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 2,
    "block_out_channels": (128, 256, 256, 256),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "cross_attention_dim": 1024,
    "attention_head_dim": 8,
}
MSCOCO_SCHEDULE = {"num_train_timesteps": 1000, "steps_offset": 1, "clip_sample": False}  # latents are not in [-1, 1]


def load_pipeline(files: ModelFiles, dtype: torch.dtype) -> StableDiffusionPipeline | StableDiffusionXLPipeline:
    """A pipeline whose networks are loaded one by one, each with all of its weights.

    Raises:
        InputError: it has other networks, or weights are missing.
        OSError: it cannot be had.
    """
    source, revision = files.pretrained_model_name_or_path, files.revision
    if revision is not None and Path(source).is_dir():
        raise InputError(f"--revision {revision} is of no use for the folder {source}; leave it out, or name a hub id")
    config = DiffusionPipeline.load_config(source, revision=revision)
    parts = (*PARTS, XL_ENCODER) if any(config.get(XL_ENCODER) or ()) else PARTS
    check_family(source, config, parts, tuple(LIBRARIES))
    own: dict[str, Any] = {}
    if files.mscoco_unet is not None:
        own = {"unet": mscoco_unet(files.mscoco_unet, dtype), "scheduler": DDPMScheduler(**MSCOCO_SCHEDULE)}
    for part in parts:
        if part not in own:
            library, kind = config[part]
            own[part] = load_network(getattr(LIBRARIES[library], kind), files, part, dtype)
    if XL_ENCODER in parts:
        return StableDiffusionXLPipeline.from_pretrained(
            source, **own, dtype=dtype, revision=revision, add_watermarker=False
        )
    return StableDiffusionPipeline.from_pretrained(
        source, **own, dtype=dtype, revision=revision, safety_checker=None, requires_safety_checker=False
    )


def load_network(kind: Any, files: ModelFiles, part: str, dtype: torch.dtype) -> Any:
    """A network of a pipeline, from the files of the variant that is named.

    Where none is, from its plain files, or from those of a variant such as half precision where there are no plain.

    Raises:
        InputError: weights are missing.
        OSError: it cannot be had.
    """
    source = files.pretrained_model_name_or_path
    how = {"subfolder": part, "torch_dtype": dtype, "output_loading_info": True, "revision": files.revision}
    variants = [None, *_variants(Path(source, part))] if files.variant is None else [files.variant]
    network, told = _first_there(lambda variant: kind.from_pretrained(source, variant=variant, **how), variants)
    check_keys(source, part, told, all_used=part == "unet")
    return network


def mscoco_unet(file: str, dtype: torch.dtype) -> UNet2DConditionModel:
    """The U-Net of the paper's MSCOCO model, from its model.bin.

    Raises:
        InputError: the file cannot be read, or holds the weights of another network.
    """
    unet, held = UNet2DConditionModel(**MSCOCO_UNET), read_tensors(Path(file))
    wanted = {name: value.shape for name, value in unet.state_dict().items()}
    told = {
        "missing_keys": wanted.keys() - held.keys(),
        "unexpected_keys": held.keys() - wanted.keys(),
        "mismatched_keys": [name for name in wanted.keys() & held.keys() if wanted[name] != held[name].shape],
    }
    check_keys(file, "unet", told, all_used=True)
    unet.load_state_dict(held)
    return unet.to(dtype)


def _variants(folder: Path) -> list[str]:
    """What else than its plain files a network may be loaded from; on the hub, half precision."""
    if not folder.is_dir():
        return ["fp16"]
    named = (re.fullmatch(r"[a-z_]+\.(\w+)(-\d+-of-\d+)?\.(safetensors|bin)", path.name) for path in folder.iterdir())
    return sorted({found[1] for found in named if found})


def _first_there(load: Callable[[str | None], Any], variants: Sequence[str | None]) -> Any:
    """What is loaded of the first variant that there is.

    Raises:
        OSError: there is none; what was said of the first.
    """
    errors = []
    for variant in variants:
        try:
            return load(variant)
        except OSError as error:
            errors.append(error)
    raise errors[0]
