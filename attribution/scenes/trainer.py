"""How any network of this world is trained: a recipe, and a trainer that checkpoints and goes on where it stopped."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

Shape = Literal["cosine", "constant", "linear"]


@dataclass(frozen=True)
class Recipe:
    """How one stage is trained.

    Attributes:
        minutes: length of the schedule, over all sittings.
        batch: images a step.
        learning_rate: its peak.
        warmup_steps: of a linear rise to the peak.
        shape: what the learning rate does after it: a cosine to a fiftieth, nothing, or a straight line to nothing.
        ema_decay: of the averaged weights.
        bfloat16: whether convolutions and matrix products are computed in 16 bits; losses never are.
        checkpoint_minutes: between two checkpoints.
    """

    minutes: float
    batch: int
    learning_rate: float
    warmup_steps: int
    shape: Shape = "cosine"
    ema_decay: float = 0.999
    bfloat16: bool = False
    checkpoint_minutes: float = 5.0

    def rate(self, step: int, seconds: float) -> float:
        """The learning rate at a step, so many seconds after the first."""
        progress = min(1.0, seconds / (60 * self.minutes))
        falls = {
            "cosine": 0.02 + 0.98 * 0.5 * (1 + float(np.cos(np.pi * progress))),
            "constant": 1.0,
            "linear": 1 - progress,
        }
        return self.learning_rate * min(1.0, (step + 1) / self.warmup_steps) * falls[self.shape]


class Trainer:
    """Optimiser, schedule, EMA and checkpoints of one stage; `run` calls `loss(generator)` until time is up."""

    def __init__(self, modules: dict[str, nn.Module], path: Path, recipe: Recipe, seed: int) -> None:
        self.modules = nn.ModuleDict(modules)
        self.path = path
        self.recipe = recipe
        self.parameters = [p for p in self.modules.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=recipe.learning_rate, weight_decay=0.01, betas=(0.9, 0.99)
        )
        self.ema = {name: value.detach().clone() for name, value in self.modules.state_dict().items()}
        self.step, self.seconds = 0, 0.0
        self.began_at = 0  # the step that the optimiser's state begins at
        self.generator = torch.Generator().manual_seed(seed)
        if path.exists():
            self.load(path)

    def run(self, loss: Callable[[torch.Generator], Tensor], sheet: Callable[[Path], None]) -> None:
        """Train until the recipe's minutes are used up, saving a checkpoint and a contact sheet on the way."""
        began, saved, mean = time.monotonic() - self.seconds, self.seconds, 0.0
        first = self.step
        while self.seconds < 60 * self.recipe.minutes:
            for group in self.optimizer.param_groups:
                group["lr"] = self.recipe.rate(self.step - self.began_at, self.seconds)
            with torch.autocast("cpu", torch.bfloat16, enabled=self.recipe.bfloat16):
                value = loss(self.generator)
            self.optimizer.zero_grad(set_to_none=True)
            value.backward()
            nn.utils.clip_grad_norm_(self.parameters, 1.0)
            self.optimizer.step()
            self.step += 1
            self._average()
            mean += max(0.01, 1 / (self.step - first)) * (value.item() - mean)
            self.seconds = time.monotonic() - began
            if self.step % 100 == 0:
                print(f"step {self.step} {self.seconds / 60:.1f} min loss {mean:.5f}", flush=True)
            if self.seconds - saved > 60 * self.recipe.checkpoint_minutes:
                began += self._checkpoint(sheet)
                saved = self.seconds
        self._checkpoint(sheet)

    def _checkpoint(self, sheet: Callable[[Path], None]) -> float:
        """Save and draw; returns the seconds that it took, which are no training."""
        began = time.monotonic()
        self.save()
        sheet(self.path.with_name(f"{self.path.stem}-{self.step:06d}.png"))
        return time.monotonic() - began

    def _average(self) -> None:
        decay = min(self.recipe.ema_decay, (1 + self.step) / (10 + self.step))
        for name, value in self.modules.state_dict().items():
            if value.is_floating_point():
                self.ema[name].lerp_(value, 1 - decay)

    def save(self) -> None:
        """Write the checkpoint, whole or not at all."""
        state = {
            "modules": self.modules.state_dict(),
            "ema": self.ema,
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "generator": self.generator.get_state(),
        }
        partial = self.path.with_suffix(".partial")
        torch.save(state, partial)
        partial.rename(self.path)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint."""
        state = torch.load(path, weights_only=True)
        self.modules.load_state_dict(state["modules"])
        self.ema = state["ema"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]
        self.generator.set_state(state["generator"])

    def load_kept(self, path: Path) -> None:
        """Go on from what `keep` wrote: all but the optimiser's state, which starts anew."""
        kept = load_file(path)
        with safe_open(path, "pt") as file:
            progress = file.metadata()
        self.modules.load_state_dict(part_of(kept, "raw."))
        self.ema = {name: value.to(self.ema[name].dtype) for name, value in averaged(kept).items()}
        self.step, self.seconds = int(progress["step"]), float(progress["seconds"])
        self.began_at = self.step
        self.generator.manual_seed(self.step)


def part_of(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The weights whose names begin so, without that beginning."""
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def averaged(kept: dict[str, Tensor]) -> dict[str, Tensor]:
    """The averaged weights of what `keep` wrote, or the raw ones where it left those out."""
    return part_of(kept, "ema.") or part_of(kept, "raw.")


def halved(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights in float16, ready to be written; whole numbers stay as they are."""
    return {name: (v.half() if v.is_floating_point() else v).contiguous() for name, v in weights.items()}


def keep(checkpoint: dict[str, Any], path: Path, kinds: tuple[str, ...] = ("raw", "ema")) -> None:
    """Write of a checkpoint what a later sitting needs to go on: raw and averaged weights, in float16.

    The optimiser's state is left out: it averages over a hundred steps, and warms up anew.
    """
    of = {"raw": checkpoint["modules"], "ema": checkpoint["ema"]}
    weights = {f"{kind}.{name}": value for kind in kinds for name, value in of[kind].items()}
    progress = {"step": str(checkpoint["step"]), "seconds": f"{checkpoint['seconds']:.0f}"}
    save_file(halved(weights), path, progress)
