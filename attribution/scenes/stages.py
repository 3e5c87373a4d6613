"""The stages that a world's model is trained in, and what they are told; `train.py` has the commands."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from attribution.errors import InputError
from attribution.scenes.compose import WORLDS, WorldSettings

Stage = Literal["status", "autoencoder", "diffusion", "cooldown", "judge", "keep", "save", "report"]
MODEL = Path("assets/emoji-scenes/model")  # the one that ships
CHECKPOINTS: dict[Stage, str] = {
    "autoencoder": "autoencoder.pt",
    "diffusion": "diffusion.pt",
    "cooldown": "cooled.pt",
}
KEPT = "diffusion.safetensors"  # of a diffusion that may go on


@dataclass(frozen=True)
class TrainArgs:
    """Train, save or report on a world's model.

    Attributes:
        work: folder of checkpoints and contact sheets.
        kept: folder of what an earlier sitting kept, used where WORK has nothing of its own.
        small: the finished model of 64 px, which that of 128 px grows from; its U-Net and text encoder are needed only
            where nothing was kept.
        out: the finished StableDiffusionPipeline folder.
        stage: what to do.
        side: of the world's scenes, px.
        minutes: length of this stage's schedule, over all sittings.
        batch: images a step.
        learning_rate: peak learning rate.
        shift: of the timesteps that are trained at towards noise, where it is decided what is where; 1 takes all alike.
        guidance: of the pictures that are judged.
        report: measure the finished pipeline (the same as `--stage report`).
        seed: of weights, batches and noises.
    """

    work: Path = Path("work")
    kept: Path = Path("work/kept")
    small: Path = Path("work/64/model")
    out: Path = MODEL
    stage: Stage = "status"
    side: Literal[64, 128] = 128
    minutes: float = 40.0
    batch: int = 8
    learning_rate: float = 1e-3
    shift: float = 1.0
    guidance: float = 3.0
    report: bool = False
    seed: int = 0

    @property
    def world(self) -> WorldSettings:
        """The world of that side."""
        return WORLDS[self.side]

    def part(self, name: str) -> Path:
        """The folder of a network of the small model.

        Raises:
            InputError: it is not there.
        """
        folder = self.small / name
        if not folder.is_dir():
            raise InputError(
                f"the world of {self.side} px grows from the finished model of 64 px, and {str(self.small)!r} holds no"
                f" {name}; train that one first, with --side 64, and name its folder with --small"
            )
        return folder
