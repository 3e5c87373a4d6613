"""LoRA (Hu et al. 2022): low-rank adapters in the formats that people have.

diffusers   pytorch_lora_weights.safetensors or .bin, with the names of several of its versions
PEFT        a folder with adapter_config.json and adapter_model.safetensors or .bin; or folders unet and text_encoder
kohya       one file, whose names have underscores and whose layers have an alpha each
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from torch import Tensor

from attribution.diffusion.fits import ENCODERS
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
        part: "unet" or a text encoder; None is what each layer's name says.
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
    folders = {None: path} | {part: path / part for part in ("unet", *ENCODERS)}
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
        *(
            f"{folder}{name}"
            for folder in ("", "unet/", *(f"{each}/" for each in ENCODERS))
            for name in (*PEFT, PEFT_CONFIG)
        ),
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
