"""Files of tensors that people bring: safetensors, or torch's own, of which nothing but tensors is ever unpickled."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from attribution.errors import InputError, reason

ENDINGS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")


def read_file(path: Path) -> dict[str, Any]:
    """What a file holds, by name: tensors, and in torch's own format dictionaries of them too; on the CPU.

    Raises:
        InputError: it is not there, is of another format or damaged.
    """
    if not path.is_file():
        raise InputError(f"there is no file {path}; name one that ends in {', '.join(ENDINGS)}")
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt", "cpu") as opened:
                return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (it has no iterator)
        held = torch.load(path, "cpu", weights_only=True)
    except Exception as error:  # torch and safetensors raise a dozen kinds
        raise InputError(f"{path} could not be read ({reason(error)}); make it anew") from error
    if not isinstance(held, dict):
        raise InputError(f"{path} holds a {type(held).__name__}; accepted are tensors by name")
    return {str(key): value for key, value in held.items()}


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, by name, those of a `state_dict` inside it included; what else it holds is passed over.

    Raises:
        InputError: it is not there, is of another format or damaged.
    """
    held = read_file(path)
    inner = held.get("state_dict")
    return {key: value for key, value in (inner or held).items() if isinstance(value, Tensor)}


def read_notes(path: Path) -> dict[str, Any]:
    """What a safetensors file says of itself, each note that is JSON read; nothing of files of another format."""
    if path.suffix != ".safetensors":
        return {}
    with safe_open(path, "pt", "cpu") as opened:
        notes = opened.metadata() or {}
    return {key: read for key, text in notes.items() if (read := _json(text)) is not None}


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None
