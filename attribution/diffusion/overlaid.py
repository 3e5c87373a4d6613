"""A model as people hold it: a pipeline with what is laid over it, merged into its weights or kept beside them."""

from pathlib import Path

import torch

from attribution.diffusion.adapted import keep_apart, merge_lora
from attribution.diffusion.custom import customise_with, read_custom
from attribution.diffusion.inversion import read_inversion, teach
from attribution.diffusion.lora import read_lora
from attribution.diffusion.pipeline import Model
from attribution.diffusion.source import ModelFiles
from attribution.errors import InputError


def open_model(files: ModelFiles, device: torch.device | None = None, dtype: torch.dtype = torch.float32) -> Model:
    """Load a pipeline, and merge what is laid over it; its hash is that of all weights then, those kept apart included.

    Raises:
        InputError: a file cannot be used, or was made for another model; or see `Model.load`.
        WeightsUnavailable: the pipeline, or a LoRA of the hub, cannot be had.
    """
    if files.lora_weights is None and files.lora_scale != 1:
        raise InputError(
            f"--lora_scale {files.lora_scale} is of no use without --lora_weights; name a LoRA, or leave it out"
        )
    loras = [] if files.lora_weights is None else read_lora(files.lora_weights)
    custom = None if files.custom_diffusion is None else read_custom(Path(files.custom_diffusion))
    words = [read_inversion(Path(file)) for file in files.textual_inversion]
    model = Model.load(files, device, dtype)
    for word in words:
        teach(model, word)
    if custom is not None:
        customise_with(model, custom)
    for lora in loras:
        (keep_apart if files.lora_apart else merge_lora)(model, lora, files.lora_scale)
    if loras or words or custom is not None:
        model.try_out()
    return model
