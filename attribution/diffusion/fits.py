"""Whether a pipeline is one that can be attributed: found out when it is loaded, before anything is written."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from attribution.errors import InputError

XL = "text_time"  # what SDXL's U-Net says of its added conditions
PREDICTIONS = ("epsilon", "v_prediction")
CONDITIONS = {  # of a U-Net's configuration: inputs beside the latents, the timestep and the text
    "addition_embed_type": "more than a text, as other families do",
    "class_embed_type": "class labels",
    "num_class_embeds": "class labels",
    "time_cond_proj_dim": "a guidance scale, as latent consistency models do",
    "encoder_hid_dim_type": "another encoder's states",
}
FITS = "accepted are text-to-image models of Stable Diffusion 1.x, 2.x and XL"

ENCODERS = ("text_encoder", "text_encoder_2")  # of texts; SDXL has both
BESIDE = (
    "tokenizer",
    "tokenizer_2",
    "scheduler",
    "safety_checker",
    "feature_extractor",
    "image_encoder",
)  # parts that do no harm


def check_family(source: str, config: Mapping[str, Any], parts: tuple[str, ...], libraries: tuple[str, ...]) -> None:
    """Refuse a pipeline that has other networks, by its class, before any of them is loaded.

    Args:
        source: the pipeline.
        config: what it is made of, by part: the library and the class.
        parts: the networks that it must have.
        libraries: that their classes may be of.

    Raises:
        InputError: naming the class, and the first part that it lacks or has beside.
    """
    family = f"{source} is a {config.get('_class_name')}"
    held = {part: made for part, made in config.items() if isinstance(made, list | tuple) and any(made)}
    for part in parts:
        if part not in held:
            raise InputError(f"{family} and has no {part}; {FITS}")
        if held[part][0] not in libraries:
            raise InputError(f"{family} and brings the code of its {part}, which is never run; {FITS}")
    for part in held:
        if part not in (*parts, *BESIDE):
            raise InputError(f"{family} and also has a {part}; {FITS}")


def check_scheduler(source: str, scheduler: Any) -> None:
    """Refuse a model that was not trained with the noise of denoising diffusion.

    Raises:
        InputError: naming the scheduler, or what the model predicts.
    """
    name, config = type(scheduler).__name__, scheduler.config
    flow = config.get("use_flow_sigmas") or "flow" in str(config.get("prediction_type"))
    if not hasattr(scheduler, "alphas_cumprod") or flow:
        raise InputError(
            f"{source} has the scheduler {name}, whose noise is not that of denoising diffusion (flow matching, EDM,"
            f" consistency); {FITS}, with a scheduler such as DDIM, PNDM, Euler or DPM-Solver"
        )
    if (predicted := config.get("prediction_type", "epsilon")) not in PREDICTIONS:
        raise InputError(f"{source} predicts {predicted!r}; accepted are 'epsilon' and 'v_prediction' schedulers")


def check_unet(source: str, unet: Any, vae: Any, width: int, encoders: int) -> None:
    """Refuse a U-Net that reads something other than latents of the VAE, a timestep and the text.

    Args:
        source: the pipeline.
        unet: its U-Net.
        vae: its autoencoder.
        width: of the states that its text encoders make together.
        encoders: how many text encoders it has; with two, it reads all that SDXL does.

    Raises:
        InputError: naming what it reads.
    """
    config, channels = unet.config, int(vae.config.latent_channels)
    if config.in_channels != channels:
        more = " (inpainting)" if config.in_channels == 2 * channels + 1 else ""
        raise InputError(
            f"the U-Net of {source} reads {config.in_channels} channels{more}, its VAE makes {channels}; {FITS}"
        )
    if config.out_channels != channels:
        raise InputError(f"the U-Net of {source} predicts {config.out_channels} channels, not {channels}; {FITS}")
    if encoders > 1 and config.get("addition_embed_type") != XL:
        raise InputError(f"{source} has two text encoders, and its U-Net does not read both as SDXL does; {FITS}")
    if vae.config.get("latents_mean") is not None:
        raise InputError(f"the VAE of {source} shifts its latents by a mean (latents_mean); {FITS}")
    for key, what in CONDITIONS.items():
        if config.get(key) not in ((None, XL) if encoders > 1 else (None,)):
            raise InputError(f"the U-Net of {source} also reads {what} ({key} = {config[key]!r}); {FITS}")
    wanted = config.cross_attention_dim
    if {width} != set(wanted if isinstance(wanted, list | tuple) else [wanted]):
        raise InputError(f"the U-Net of {source} reads texts of width {wanted}, its text encoder makes {width}; {FITS}")


def latent_side(source: str, unet: Any, vae: Any, scale: int) -> int:
    """Latent cells of a side of the pictures that the U-Net was made for; where it does not say, the VAE does.

    Raises:
        InputError: neither says, or it is not a square of whole cells.
    """
    said, made_for = unet.config.get("sample_size"), vae.config.get("sample_size")
    if said is None and isinstance(made_for, int) and made_for >= 8 * scale:  # 32 px are but the default of diffusers
        said = made_for // scale
    side = said[0] if isinstance(said, list | tuple) and len(said) == 2 and said[0] == said[1] else said
    if isinstance(side, bool) or not isinstance(side, int) or side < 1:
        raise InputError(
            f"{source} was made for latents of {unet.config.get('sample_size')!r} cells; accepted is a whole number, or"
            " a square such as [64, 64]: write it as sample_size into unet/config.json"
        )
    if side * scale % 8:  # diffusers generates no others
        raise InputError(f"{source} was made for pictures of {side * scale} px; accepted are multiples of 8")
    return side


def check_keys(source: str, part: str, told: Mapping[str, Any], all_used: bool) -> None:
    """Refuse weights that a library would have filled up with random ones, with a warning alone.

    Args:
        source: the pipeline.
        part: "unet", "vae" or "text_encoder".
        told: what the library says of loading: `missing_keys`, `unexpected_keys`, `mismatched_keys`.
        all_used: weights that nothing reads are refused too.

    Raises:
        InputError: naming the first.
    """
    missing = sorted(map(str, [*told.get("missing_keys", ()), *told.get("mismatched_keys", ())]))
    unread = sorted(map(str, told.get("unexpected_keys", ())))
    adapted = any(mark in name for name in unread for mark in ("base_layer", "lora"))
    hint = "; it was saved while a LoRA was loaded: fuse it (fuse_lora, unload_lora_weights) and save again"
    if missing or (unread and (all_used or adapted)):
        what = f"lacks {len(missing)} weights ({missing[0]}, ...)" if missing else f"has others ({unread[0]}, ...)"
        advice = hint if adapted else f"; {FITS}"
        raise InputError(f"the {part} of {source} does not fit its configuration: it {what}{advice}")


def check_finite(source: str, parts: Mapping[str, nn.Module]) -> None:
    """Refuse weights that are not finite, as a training that went wrong leaves them.

    Raises:
        InputError: naming the first tensor.
    """
    bad = [
        f"{part} {name}"
        for part, module in parts.items()
        for name, value in module.state_dict().items()
        if value.is_floating_point() and not torch.isfinite(value).all()
    ]
    if bad:
        raise InputError(
            f"{len(bad)} weights of {source} are not finite, the first is {bad[0]}; its training went wrong: name an"
            " earlier checkpoint"
        )
