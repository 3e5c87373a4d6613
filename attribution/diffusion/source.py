"""Where a model is, as people hold it: a pipeline, and what is laid over it."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

LATER = {"added": True}  # a field that came after the form of an index's manifest, see `index.typed`
PLACES = ("pretrained_model_name_or_path", "lora_weights", "custom_diffusion", "mscoco_unet")


@dataclass(frozen=True)
class ModelFiles:
    """A pipeline, and what is laid over it; the names are those of diffusers' scripts, where they have one.

    Attributes:
        pretrained_model_name_or_path: a StableDiffusionPipeline folder or hub id.
        revision: of a hub id, a branch, tag or commit.
        variant: of the files, such as fp16; by default the plain ones, or what there is where there are none.
        lora_weights: a LoRA that is merged into the model, in the format of diffusers, PEFT or kohya: a file, folder or
            hub id.
        lora_scale: how strongly it is merged; 1 is as it was trained.
        custom_diffusion: a folder with what Custom Diffusion trained, as diffusers' script leaves it, or its delta.bin.
        textual_inversion: files of new words, each of one or several vectors, in the format of diffusers or the web UI.
        mscoco_unet: model.bin of the paper's MSCOCO model, in place of the pipeline's own U-Net.
        lora_apart: the LoRA's matrices stay weights of their own in the U-Net, which is what attribution by them alone
            needs; what it has of text encoders is merged.
    """

    pretrained_model_name_or_path: str
    revision: str | None = None
    variant: str | None = None
    lora_weights: str | None = None
    lora_scale: float = 1.0
    custom_diffusion: str | None = None
    mscoco_unet: str | None = None
    lora_apart: bool = field(default=False, metadata=LATER)
    textual_inversion: tuple[str, ...] = field(default=(), metadata=LATER)

    def renamed(self, name: Callable[[str], str]) -> "ModelFiles":
        """The same with other names of its files and folders."""
        places: dict[str, Any] = {each: name(held) for each in PLACES if (held := getattr(self, each)) is not None}
        return replace(self, **places, textual_inversion=tuple(map(name, self.textual_inversion)))
