"""A model as people hold it: a pipeline with what is laid over it, merged into the weights that are attributed."""

from pathlib import Path

import torch

from attribution.diffusion.custom import customise_with, read_custom
from attribution.diffusion.lora import merge_lora, read_lora
from attribution.diffusion.pipeline import Model
from attribution.diffusion.source import ModelFiles
from attribution.errors import InputError


def open_model(files: ModelFiles, device: torch.device | None = None, dtype: torch.dtype = torch.float32) -> Model:
    """Load a pipeline, and merge what is laid over it; its hash is that of the merged weights.

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
    model = Model.load(files, device, dtype)
    if custom is not None:
        customise_with(model, custom)
    for lora in loras:
        merge_lora(model, lora, files.lora_scale)
    if loras or custom is not None:
        model.try_out()
    return model
