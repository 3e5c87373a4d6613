"""LoRA (Hu et al. 2022): low-rank adapters in the formats that people have, merged into a model's weights.

W' = W + scale (alpha / r) B A, of linear layers and convolutions, in the U-Net and the text encoder. The formats are

diffusers   pytorch_lora_weights.safetensors or .bin, with the names of several of its versions
PEFT        a folder with adapter_config.json and adapter_model.safetensors or .bin; or folders unet and text_encoder
kohya       one file, whose names have underscores and whose layers have an alpha each
"""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from torch import Tensor, nn

from attribution.diffusion.pipeline import Model
from attribution.diffusion.tensors import read_notes, read_tensors
from attribution.errors import HUB, InputError, WeightsUnavailable, reason

DIFFUSERS = ("pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin")
PEFT = ("adapter_model.safetensors", "adapter_model.bin")
PEFT_CONFIG = "adapter_config.json"
NOTES = "lora_adapter_metadata"  # of diffusers' files: PEFT's configuration of each part
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
ACCEPTED = "accepted are LoRAs in the format of diffusers, PEFT or kohya"
FACTOR = re.compile(r"(.+?)[._]lora(?:_linear_layer)?[._](A|B|down|up)(?:\.\w+)?\.weight$")
ALPHA = re.compile(r"(.+?)(?:[._]lora)?\.alpha$")
PART = re.compile(r"(?:base_model\.model\.)?(?:(unet|text_encoder)\.|lora_(unet|te|te1)_)?")
PARTS = {"unet": "unet", "text_encoder": "text_encoder", "te": "text_encoder", "te1": "text_encoder"}
PLAIN = {"use_dora": False, "lora_bias": False, "bias": "none", "modules_to_save": None, "peft_type": "LORA"}


@dataclass(frozen=True)
class Factors:
    """What a LoRA adds to one layer: (alpha / r) `up` @ `down`.

    Attributes:
        down: (r, inputs, ...), A.
        up: (outputs, r, ...), B.
        alpha: None is r, whatever that is.
    """

    down: Tensor
    up: Tensor
    alpha: float | None = None


@dataclass(frozen=True)
class Lora:
    """An adapter as it was read.

    Attributes:
        source: its file or folder.
        part: "unet" or "text_encoder"; None is what each layer's name says.
        layers: by the name that they have in the file, which is resolved where it is merged.
        config: PEFT's configuration, by part, as far as there is one; "" is that of any part.
    """

    source: str
    part: str | None
    layers: dict[str, Factors]
    config: dict[str, dict[str, Any]]


def read_lora(source: str) -> list[Lora]:
    """The adapters of a file, or of a folder or hub id of diffusers' or PEFT's; nothing is unpickled.

    Raises:
        InputError: there is none, or it is damaged, or of a kind other than plain LoRA.
        WeightsUnavailable: it is a hub id, and the hub could not provide it.
    """
    path = Path(source)
    if not path.exists() and HUB_ID.fullmatch(source):
        path = _fetched(source)
    if file := _single_file(path):
        return [_read(file, None, _noted(file))]
    folders = {None: path, "unet": path / "unet", "text_encoder": path / "text_encoder"}
    found = [_read_peft(folder, part) for part, folder in folders.items() if (folder / PEFT_CONFIG).is_file()]
    if not found:
        raise InputError(
            f"{source} is no file of a LoRA, nor a folder with {DIFFUSERS[0]} or {PEFT_CONFIG}; {ACCEPTED}"
        )
    return found


def _single_file(path: Path) -> Path | None:
    """The file that holds all of an adapter, as diffusers looks for it; None where it is not of one file."""
    for file in (path, *(path / name for name in DIFFUSERS)):
        if file.is_file():
            return file
    others = list(path.glob("*.safetensors"))
    return others[0] if len(others) == 1 and not (path / PEFT_CONFIG).is_file() else None


def _fetched(source: str) -> Path:
    """The folder that a hub id's adapter was fetched to."""
    files = [
        *DIFFUSERS,
        *(f"{folder}{name}" for folder in ("", "unet/", "text_encoder/") for name in (*PEFT, PEFT_CONFIG)),
    ]
    try:
        return Path(snapshot_download(source, allow_patterns=files))
    except Exception as error:  # the hub raises a dozen kinds
        raise WeightsUnavailable(
            f"there is no file or folder {source}, nor could a LoRA of that name be had from the hub ({reason(error)});"
            f" name a file or folder, or use {HUB}"
        ) from error


def _read_peft(folder: Path, part: str | None) -> Lora:
    try:
        config = json.loads((folder / PEFT_CONFIG).read_text(encoding="utf-8"))
        files = [folder / name for name in PEFT if (folder / name).is_file()]
        return _read(files[0], part, {"": dict(config)})
    except (ValueError, TypeError, IndexError) as error:
        raise InputError(f"{folder} holds no whole {PEFT_CONFIG} and {PEFT[0]}; save the adapter anew") from error


def _noted(path: Path) -> dict[str, dict[str, Any]]:
    """What diffusers noted of each part in a file: {"unet": PEFT's configuration, ...}."""
    read_tensors(path)  # refuses what is damaged
    noted = read_notes(path).get(NOTES) or {}
    config: dict[str, dict[str, Any]] = {}
    for name, value in noted.items():
        part, _, key = name.partition(".")
        config.setdefault(part, {})[key] = value
    return config


def _read(path: Path, part: str | None, config: dict[str, dict[str, Any]]) -> Lora:
    for each in config.values():
        for key, plain in PLAIN.items():
            if each.get(key, plain) not in (plain, None):
                raise InputError(f"the LoRA {path} has {key} = {each[key]!r}; {ACCEPTED}, with {key} = {plain!r}")
    told: dict[str, dict[str, Any]] = {}
    for name, value in read_tensors(path).items():
        layer, what = _read_name(path, name)
        told.setdefault(layer, {})[what] = float(value) if what == "alpha" else value
    for layer, held in told.items():
        if held.keys() - {"alpha"} != {"down", "up"}:
            raise InputError(f"the LoRA {path} has only a part of the layer {layer}; save it anew")
    if not told:
        raise InputError(f"{path} holds no LoRA; {ACCEPTED}")
    return Lora(str(path), part, {layer: Factors(**held) for layer, held in told.items()}, config)


def _read_name(path: Path, name: str) -> tuple[str, str]:
    """The layer that a tensor is of, and what it is there: "down", "up" or "alpha"."""
    if found := FACTOR.fullmatch(name):
        return found[1], "down" if found[2] in ("A", "down") else "up"
    if found := ALPHA.fullmatch(name):
        return found[1], "alpha"
    raise InputError(f"the LoRA {path} holds {name}, which is no part of a plain LoRA; {ACCEPTED}")


@torch.no_grad()
def merge_lora(model: Model, lora: Lora, scale: float = 1.0) -> None:
    """Add an adapter to a model's weights, in place; all of it, or nothing.

    Raises:
        InputError: it was trained for another model.
    """
    for name, weight in list(_resolved(model, lora)):  # refuses before the first is changed
        up, down = (factor.double().flatten(1) for factor in (lora.layers[name].up, lora.layers[name].down))
        added = scale * _strength(lora, name, len(down)) * up @ down
        weight.copy_(weight.double() + added.reshape(weight.shape).to(weight.device))


def _resolved(model: Model, lora: Lora) -> Iterator[tuple[str, Tensor]]:
    """Each layer's name in the file, and the weight of the model that it is of."""
    tables = {part: _by_names(getattr(model, part)) for part in ("unet", "text_encoder")}
    for name in lora.layers:
        part, own = _named(lora, name)
        layer = tables[part].get(own)
        if not isinstance(layer, nn.Linear | nn.Conv2d):
            raise InputError(
                f"the LoRA {lora.source} was made for another model: {model.source} has no layer {own} in its {part};"
                " name the model that it was trained on"
            )
        _check_shape(lora, name, layer.weight)
        yield name, layer.weight


def _by_names(network: nn.Module) -> dict[str, nn.Module]:
    """Its layers by name, with points and with underscores, with and without the `text_model` of some versions."""
    named = {name.removeprefix("text_model."): layer for name, layer in network.named_modules()}
    named |= {f"text_model.{name}": layer for name, layer in named.items()}
    return {spelt: layer for name, layer in named.items() for spelt in (name, name.replace(".", "_"))}


def _named(lora: Lora, name: str) -> tuple[str, str]:
    """The part of the pipeline that a layer of the file is in, and its name there, as far as that goes."""
    start = PART.match(name)
    told, own = (start[1] or start[2], name[start.end() :]) if start else (None, name)
    text = own.startswith(("text_model", "encoder."))
    part = PARTS.get(told or lora.part or "", "text_encoder" if text else "unet")
    own = own.replace(".processor.", ".")
    if part == "text_encoder":
        return part, re.sub(r"\.to_(q|k|v|out)$", r".\1_proj", own)
    return part, re.sub(r"\.to_out$", ".to_out.0", own)


def _check_shape(lora: Lora, name: str, weight: Tensor) -> None:
    """Refuse the factors of a layer whose product is of another shape than the layer's weight."""
    up, down = lora.layers[name].up, lora.layers[name].down
    outputs, inputs = len(up), down[0].numel()
    if (up[0].numel(), outputs, inputs) != (len(down), len(weight), weight[0].numel()):
        raise InputError(
            f"the LoRA {lora.source} was made for another model: its layer {name} is of {outputs} by {inputs} weights,"
            f" that of {len(weight)} by {weight[0].numel()} here; name the model that it was trained on"
        )


def _strength(lora: Lora, name: str, rank: int) -> float:
    """Alpha / r, or alpha / sqrt(r) as PEFT's rank-stabilised LoRA has it."""
    part, own = _named(lora, name)
    config = lora.config.get(part) or lora.config.get("") or {}
    alpha = lora.layers[name].alpha
    if alpha is None:
        alpha = _by_pattern(config.get("alpha_pattern") or {}, own, config.get("lora_alpha", rank))
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _by_pattern(patterns: dict[str, float], name: str, otherwise: float) -> float:
    """The value of the first pattern that a layer's name ends with, as PEFT reads them."""
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", name)), otherwise)
