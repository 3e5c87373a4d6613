"""Train the embedded feature networks, a small CLIP and a small DINO, or report what they find.

    python -m attribution.scenes.encoders --stage clip --work WORK --minutes 11.5
    python -m attribution.scenes.encoders --stage dino --work WORK --minutes 24
    python -m attribution.scenes.encoders --stage report --work WORK

Both see the training scenes alone, at 64 px (SEEN): the world's own pictures, which are twice as large, are reduced to
that by the image processors that are saved beside the networks, as those of published networks reduce photographs.
Every stage resumes from WORK, its learning rate a cosine over the minutes given, counted over all sittings; each
checkpoint writes the folder under `out` anew. CLIP is as published, but half of its batches are of one style and one
background, so that only objects tell captions apart. DINO departs from its paper where few steps ask for it: targets
are centred by Sinkhorn and Knopp's iteration (as in DINOv2; with a running mean nothing was learned in these minutes),
the head has batch normalisation, the teacher sees two of the local views too, and the strength of recolouring and
repainting grows from nothing.
"""

import json
import time
from copy import deepcopy
from dataclasses import dataclass
from math import cos, log, pi
from pathlib import Path
from typing import Literal

import torch
import tyro
from torch import Tensor, nn
from torch.nn import functional

from attribution.scenes import nearest
from attribution.scenes.compose import make_scenes
from attribution.scenes.pictures import mirror_half
from attribution.scenes.trainer import Recipe, Trainer
from attribution.scenes.views import captioned_boxes, likeness, look, pools, views

Stage = Literal["clip", "dino", "report"]

PROTOTYPES, BOTTLENECK = 128, 64
RAMP = 0.4  # share of the schedule over which recolouring grows to its full strength
MOMENTUM = 0.98  # the teacher's at first
STUDENT_TEMPERATURE, TEACHER_TEMPERATURES = 0.1, (0.04, 0.05)
OWN = {"clip": (64, 128), "dino": (32, 96)}  # batch and width


@dataclass
class EncoderArgs:
    """Train the CLIP or the DINO, or report on both.

    Attributes:
        stage: what to do.
        work: folder of checkpoints.
        minutes: length of this stage's schedule, over all sittings.
        out: the folder with `clip` and `dino` in it; `model/tokenizer` is read from the shipped one.
        batch: scenes a step; 0 is the stage's own.
        learning_rate: peak learning rate.
        width: hidden width of every transformer; 0 is the stage's own.
        layers: of the vision transformer; CLIP's text transformer has one less.
        scenes: how many scenes of the training split are composed.
        heldout: how many held-out scenes a checkpoint is judged on.
        seed: of weights, batches and views.
    """

    stage: Stage = "clip"
    work: Path = Path("work")
    minutes: float = 30.0
    out: Path = Path("assets/emoji-scenes")
    batch: int = 0
    learning_rate: float = 1e-3
    width: int = 0
    layers: int = 4
    scenes: int = 4096
    heldout: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        batch, width = OWN.get(self.stage, (0, 0))
        self.batch, self.width = self.batch or batch, self.width or width


def make_trainer(args: EncoderArgs, model: nn.Module) -> Trainer:
    """The trainer of the stage's network, resumed if there is a checkpoint."""
    recipe = Recipe(args.minutes, args.batch, args.learning_rate, warmup_steps=100, checkpoint_minutes=2.5)
    return Trainer({args.stage: model}, args.work / f"{args.stage}.pt", recipe, args.seed)


class Status:
    """Prints where training stands, at most every 30 seconds."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.last = trainer, time.monotonic()

    def __call__(self, loss: Tensor, *targets: Tensor) -> None:
        """Print the loss and the targets' entropies, if it is time."""
        if time.monotonic() - self.last >= 30:
            self.last = time.monotonic()
            line = f"step {self.trainer.step} {self.trainer.seconds / 60:.1f} min loss {loss.item():.3f}"
            print(line, *map(entropies, targets), flush=True)


def contrastive_loss(pictures: Tensor, texts: Tensor, names: list[str], scale: Tensor) -> Tensor:
    """Symmetric cross-entropy over a batch (Radford et al. 2021, figure 3); equal captions share their target.

    Args:
        pictures: (B, 64) projected features, any length.
        texts: (B, 64) likewise.
        names: the captions.
        scale: logarithm of the inverse temperature.
    """
    numbers = torch.tensor([names.index(name) for name in names])
    same = (numbers[:, None] == numbers).float()
    target = same / same.sum(1, keepdim=True)
    logits = scale.clamp(max=log(100)).exp() * functional.normalize(texts) @ functional.normalize(pictures).T
    return (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2


def train_clip(args: EncoderArgs) -> Trainer:
    """Train the CLIP; half of the batches are of one style and background."""
    torch.manual_seed(args.seed)
    pool, heldout = pools(args.scenes, args.heldout)
    tokenizer = nearest.shipped_tokenizer()
    groups = likeness(pool.scenes)
    model = nearest.make_clip(tokenizer, args.width, args.layers)
    trainer = make_trainer(args, model)
    tell = Status(trainer)

    def batch_loss(generator: torch.Generator) -> Tensor:
        alike = groups[int(torch.randint(len(groups), (), generator=generator))]
        rows = torch.arange(len(pool.scenes)) if trainer.step % 2 else alike
        rows = rows[torch.randint(len(rows), (args.batch,), generator=generator)]
        names, boxes = captioned_boxes([pool.scenes[row] for row in rows.tolist()], generator)
        pictures = mirror_half(look(pool.pixels[rows], boxes), generator)
        text = tokenizer(names, padding=True, return_tensors="pt").input_ids
        seen, read = model.get_image_features(pictures).pooler_output, model.get_text_features(text).pooler_output
        loss = contrastive_loss(seen, read, names, model.logit_scale)
        tell(loss)
        return loss

    def sheet(path: Path) -> None:
        average = nearest.make_clip(tokenizer, args.width, args.layers)
        average.load_state_dict({k.removeprefix("clip."): v for k, v in trainer.ema.items()})
        print(path.stem, nearest.recall_in(average.eval(), tokenizer, heldout), flush=True)
        nearest.save_clip(average, tokenizer, args.out / "clip")

    trainer.run(batch_loss, sheet)
    return trainer


class Twin(nn.Module):
    """Student or teacher: a ViT and a projection head with a normalised bottleneck and weight-normalised prototypes.

    Source: Caron et al. 2021, "Emerging properties in self-supervised vision transformers", section 3 and appendix C.
    """

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.vit = nearest.make_vit(width, layers)
        hidden = 4 * width
        inner: list[nn.Module] = []
        for before in (width, hidden):
            inner += [nn.Linear(before, hidden), nn.BatchNorm1d(hidden, track_running_stats=False), nn.GELU()]
        self.head = nn.Sequential(*inner, nn.Linear(hidden, BOTTLENECK))
        self.prototypes = nn.Parameter(torch.randn(PROTOTYPES, BOTTLENECK))

    def forward(self, pictures: Tensor) -> Tensor:
        """(B, PROTOTYPES) cosines of the projected class token and the prototypes."""
        bottleneck = functional.normalize(self.head(nearest.class_token(self.vit, pictures)), dim=-1)
        return bottleneck @ functional.normalize(self.prototypes, dim=-1).T


class Dino(nn.Module):
    """Student and momentum teacher."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.student = Twin(width, layers)
        self.teacher = deepcopy(self.student).requires_grad_(False)

    @torch.no_grad()
    def follow(self, momentum: float) -> None:
        """The teacher's weights go on towards the student's."""
        for old, new in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            old.lerp_(new, 1 - momentum)

    @torch.no_grad()
    def targets(self, views: list[Tensor], temperature: float) -> Tensor:
        """(B, PROTOTYPES) teacher probabilities, sharpened, and centred so that every prototype is used alike."""
        scores = torch.cat([self.teacher(view) for view in views]) / temperature
        shares = (scores - scores.amax()).exp()
        for _ in range(3):  # Sinkhorn and Knopp
            shares = shares / shares.sum(0)
            shares = shares / shares.sum(1, keepdim=True)
        return shares

    def loss(self, large: list[Tensor], local: list[Tensor], temperature: float) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy of every teacher view and every student view of another crop, and the teacher's targets.

        The teacher sees the large views and half of the local ones: what one object is, is learned from these.
        """
        taught = local[: len(local) // 2]
        targets = self.targets([torch.cat(large), torch.cat(taught)], temperature)
        outputs = torch.cat([self.student(torch.cat(large)), self.student(torch.cat(local))]) / STUDENT_TEMPERATURE
        students = outputs.log_softmax(-1).chunk(len(large) + len(local))
        teachers = targets.chunk(len(large) + len(taught))
        pairs = [(t, s) for i, t in enumerate(teachers) for j, s in enumerate(students) if i != j]
        return torch.stack([-(t * s).sum(-1).mean() for t, s in pairs]).mean(), targets


def entropies(targets: Tensor) -> str:
    """Mean entropy of the targets and entropy of their mean, in nats: equal to each other or both 0 is collapse."""
    each = torch.special.entr(targets).sum(-1).mean()
    return f"entropy {each:.2f} of mean {torch.special.entr(targets.mean(0)).sum():.2f} of {log(len(targets.T)):.2f}"


def train_dino(args: EncoderArgs) -> Trainer:
    """Train the DINO; its teacher is what is saved."""
    torch.manual_seed(args.seed)
    pool, heldout = pools(args.scenes, args.heldout)
    model = Dino(args.width, args.layers)
    trainer = make_trainer(args, model)
    tell = Status(trainer)

    def batch_loss(generator: torch.Generator) -> Tensor:
        progress = min(1.0, trainer.seconds / (60 * args.minutes))
        model.follow(1 - (1 - MOMENTUM) * (1 + cos(pi * progress)) / 2)
        rows = torch.randint(len(pool.pixels), (args.batch,), generator=generator)
        cold, warm = TEACHER_TEMPERATURES
        temperature = cold + (warm - cold) * min(1.0, progress / 0.3)
        loss, targets = model.loss(*views(pool.pixels[rows], min(1.0, progress / RAMP), generator), temperature)
        tell(loss, targets)
        return loss

    def sheet(path: Path) -> None:
        vit = deepcopy(model.teacher.vit).eval()
        print(path.stem, nearest.scene_purity(nearest.dino_features(vit, heldout.pixels), heldout.scenes), flush=True)
        nearest.save_vit(vit, args.out / "dino")

    trainer.run(batch_loss, sheet)
    return trainer


def main(args: EncoderArgs) -> None:
    """Run one stage."""
    args.work.mkdir(parents=True, exist_ok=True)
    if args.stage == "report":
        training, heldout = make_scenes("train", args.scenes), make_scenes("heldout", args.heldout)
        print(json.dumps(nearest.report(training, heldout, args.out, args.work), indent=1))
    else:
        (train_clip if args.stage == "clip" else train_dino)(args)


if __name__ == "__main__":
    main(tyro.cli(EncoderArgs))
