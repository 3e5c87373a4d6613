"""Train the embedded feature networks, a small CLIP and a small DINO, and measure what they find.

    python -m attribution.scenes.encoders --stage clip --work WORK --minutes 11.5
    python -m attribution.scenes.encoders --stage dino --work WORK --minutes 24
    python -m attribution.scenes.encoders --stage report --work WORK

Both see the training scenes of EmojiScenes alone. A view is a box of a scene on a white square, resized: the whole
scene, a crop, or one object, as a region of a query is. Every stage resumes from WORK, its learning rate a cosine over
the minutes given, counted over all sittings; at each checkpoint the folder under `out` is written anew.

CLIP is as published, but half of its batches are of one style and one background, so that only objects tell captions
apart. DINO departs from its paper where few steps ask for it: targets are centred by Sinkhorn and Knopp's iteration (as
in DINOv2; with a running mean nothing was learned in these minutes), the head has batch normalisation, the teacher sees
two of the local views too, local views are taken where there is something to see, backgrounds are repainted, and
the strength of recolouring grows from nothing.
"""

import json
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from math import cos, log, pi
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPTokenizer,
    CLIPVisionConfig,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)
from transformers.models.clip import CLIPConfig

from attribution.scenes.compose import CELL, LATTICE, OBJECTS, SIZE, Scene, caption, draw_scene, make_scenes
from attribution.scenes.judge import labels
from attribution.scenes.networks import MAX_TOKENS
from attribution.scenes.pictures import mirror_half, to_unit
from attribution.scenes.train import Recipe, Trainer

Stage = Literal["clip", "dino", "report"]

PATCH = 8  # px
PROTOTYPES, BOTTLENECK = 128, 64
RAMP = 0.4  # share of the schedule over which recolouring grows to its full strength
MOMENTUM = 0.98  # the teacher's at first
STUDENT_TEMPERATURE, TEACHER_TEMPERATURES = 0.1, (0.04, 0.05)
WHOLE = (0, 0, SIZE, SIZE)
HALF = [0.5, 0.5, 0.5]
OWN = {"clip": (64, 128), "dino": (32, 96)}  # batch and width
SQUARE = {"height": SIZE, "width": SIZE}


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


# --- views ---


@dataclass(frozen=True)
class Pool:
    """Composed scenes; `pixels` are (N, 3, SIZE, SIZE) uint8."""

    scenes: list[Scene]
    pixels: Tensor

    @classmethod
    def compose(cls, scenes: list[Scene]) -> "Pool":
        """Draw the scenes."""
        pictures = np.stack([np.asarray(draw_scene(scene)) for scene in scenes])
        return cls(scenes, torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous())


def pools(args: EncoderArgs) -> tuple[Pool, Pool]:
    """Training and held-out scenes."""
    return Pool.compose(make_scenes("train", args.scenes)), Pool.compose(make_scenes("heldout", args.heldout))


def look(pixels: Tensor, boxes: Tensor, side: int = SIZE) -> Tensor:
    """Each picture's box, padded with white to a square and resized bilinearly.

    Args:
        pixels: (B, 3, SIZE, SIZE) uint8.
        boxes: (B, 4) x0, y0, x1, y1 in px.
        side: of the view, px.

    Returns:
        (B, 3, side, side) float32 in [-1, 1].
    """
    low, high = boxes[:, :2, None], boxes[:, 2:, None]
    steps = (torch.arange(side) + 0.5) / side - 0.5
    points = (low + high) / 2 + (high - low).amax(1, keepdim=True) * steps  # (B, 2, side) px
    x, y = points[:, 0, None, :].expand(-1, side, -1), points[:, 1, :, None].expand(-1, -1, side)
    inside = ((points >= low) & (points <= high)).unsqueeze(1)
    grid = torch.stack([x, y], -1) * 2 / SIZE - 1
    seen = functional.grid_sample(to_unit(pixels), grid, padding_mode="border", align_corners=False)
    return torch.where(inside[:, :, 0, None, :] & inside[:, :, 1, :, None], seen, 1.0)


def random_boxes(count: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    """(count, 4) boxes inside a scene with sides uniform in [low, high] px, half of them square."""
    sides = low + (high - low) * torch.rand(count, 2, generator=generator)
    square = torch.rand(count, 1, generator=generator) < 0.5
    sides = torch.where(square, sides[:, :1], sides)
    corner = (SIZE - sides) * torch.rand(count, 2, generator=generator)
    return torch.cat([corner, corner + sides], 1)


def busy_cells(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """(B, 4) boxes of CELL px on the lattice, likelier the less background (the corner's colour) they show."""
    shown = (pixels != pixels[:, :, :1, :1]).any(1, keepdim=True).float()
    shares = functional.avg_pool2d(shown, CELL, LATTICE)
    place = torch.multinomial(shares.flatten(1) ** 4, 1, generator=generator)
    corner = LATTICE * torch.cat([place % shares.shape[-1], place // shares.shape[-1]], 1).float()
    return torch.cat([corner, corner + CELL], 1)


def jitter(boxes: Tensor, low: float, high: float, generator: torch.Generator) -> Tensor:
    """Boxes with each edge moved outwards by between `low` and `high` px, but not out of the scene."""
    out = low + (high - low) * torch.rand(boxes.shape, generator=generator)
    return (boxes + out * torch.tensor([-1, -1, 1, 1])).clamp(0, SIZE)


def repaint(pixels: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Scenes on random light backgrounds, white at strength 0; background is what equals the corner."""
    shades = torch.rand(len(pixels), 3, 1, 1, generator=generator)
    paint = (255 - 96 * strength * shades).to(torch.uint8)
    return torch.where((pixels == pixels[:, :, :1, :1]).all(1, keepdim=True), paint, pixels)


def recolour(x: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Random hue, saturation, contrast and brightness of each (3, H, W) in [-1, 1]; some gray."""
    angle, saturation, contrast, brightness = strength * (torch.rand(4, len(x), 1, 1, generator=generator) - 0.5)
    colourless = torch.rand(len(x), 1, 1, generator=generator) < 0.05 * strength
    saturation = torch.where(colourless, 0.0, 1 + 0.8 * saturation)
    gray = torch.full((3, 3), 1 / 3)
    cross = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / 3**0.5
    turn = angle.cos() * torch.eye(3) + (1 - angle.cos()) * gray + angle.sin() * cross  # about the gray axis
    mix = (1 + 0.4 * contrast) * (saturation * turn + (1 - saturation) * gray)
    mixed: Tensor = (mix @ x.flatten(2)).view_as(x) + 0.2 * brightness[..., None]
    return mixed.clamp(-1, 1)


class Every:
    """True when so many seconds have gone by since it last was."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.last = seconds, time.monotonic()

    def __call__(self) -> bool:
        """Whether it is time."""
        due = time.monotonic() - self.last >= self.seconds
        self.last = time.monotonic() if due else self.last
        return due


# --- CLIP ---


def shipped_tokenizer() -> CLIPTokenizer:
    """The tokenizer of the embedded pipeline."""
    root = Path(__file__).parents[2] / "assets" / "emoji-scenes"
    return CLIPTokenizer.from_pretrained(str(root / "model" / "tokenizer"))


def make_clip(tokenizer: CLIPTokenizer, width: int, layers: int) -> CLIPModel:
    """A CLIP of SIZE px pictures and MAX_TOKENS tokens, projected to 64 dimensions."""
    shape = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": width // 32}
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=MAX_TOKENS,
        num_hidden_layers=max(1, layers - 1),
        **shape,
        **special,
    )
    vision = CLIPVisionConfig(image_size=SIZE, patch_size=PATCH, num_hidden_layers=layers, **shape)
    return CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=64))


def captioned_boxes(scenes: list[Scene], generator: torch.Generator) -> tuple[list[str], Tensor]:
    """Each scene's caption and the whole scene, or, for two in five, one object's own caption and about its box."""
    chance, which = torch.rand(2, len(scenes), generator=generator)
    whole = chance < 0.6
    placed = [scene.objects[int(at * len(scene.objects))] for scene, at in zip(scenes, which.tolist(), strict=True)]
    names = [
        scene.caption if all_of_it else caption((one.name,), scene.style, scene.background)
        for scene, one, all_of_it in zip(scenes, placed, whole.tolist(), strict=True)
    ]
    boxes = jitter(torch.tensor([one.box for one in placed]), -2, 4, generator)
    return names, torch.where(whole[:, None], torch.tensor(WHOLE), boxes)


def likeness(scenes: list[Scene]) -> list[Tensor]:
    """Rows of the scenes that share style and background, for batches that only objects tell apart."""
    groups: dict[tuple[str, str], list[int]] = {}
    for row, scene in enumerate(scenes):
        groups.setdefault((scene.style, scene.background), []).append(row)
    return [torch.tensor(rows) for rows in groups.values()]


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
    pool, heldout = pools(args)
    tokenizer = shipped_tokenizer()
    groups, every = likeness(pool.scenes), Every(30)
    model = make_clip(tokenizer, args.width, args.layers)
    recipe = Recipe(args.minutes, args.batch, args.learning_rate, warmup_steps=100, checkpoint_minutes=2.5)
    trainer = Trainer({"clip": model}, args.work / "clip.pt", recipe, args.seed)

    def batch_loss(generator: torch.Generator) -> Tensor:
        alike = groups[int(torch.randint(len(groups), (), generator=generator))]
        rows = torch.arange(len(pool.scenes)) if trainer.step % 2 else alike
        rows = rows[torch.randint(len(rows), (args.batch,), generator=generator)]
        names, boxes = captioned_boxes([pool.scenes[row] for row in rows.tolist()], generator)
        pictures = mirror_half(look(pool.pixels[rows], boxes), generator)
        text = tokenizer(names, padding=True, return_tensors="pt").input_ids
        loss = contrastive_loss(picture_features(model, pictures), text_features(model, text), names, model.logit_scale)
        if every():
            print(f"step {trainer.step} {trainer.seconds / 60:.1f} min loss {loss.item():.3f}", flush=True)
        return loss

    def sheet(path: Path) -> None:
        average = make_clip(tokenizer, args.width, args.layers)
        average.load_state_dict({k.removeprefix("clip."): v for k, v in trainer.ema.items()})
        print(path.stem, recall(average.eval(), tokenizer, heldout), flush=True)
        save_clip(average, tokenizer, args.out / "clip")

    trainer.run(batch_loss, sheet)
    return trainer


def picture_features(model: CLIPModel, pictures: Tensor) -> Tensor:
    """(B, 64) projected, not normalised features of (B, 3, SIZE, SIZE) pictures in [-1, 1]."""
    features: Tensor = model.get_image_features(pictures).pooler_output
    return features


def text_features(model: CLIPModel, ids: Tensor) -> Tensor:
    """(B, 64) projected, not normalised features of (B, L) token ids."""
    features: Tensor = model.get_text_features(ids).pooler_output
    return features


def save_clip(model: CLIPModel, tokenizer: CLIPTokenizer, out: Path) -> None:
    """Write the CLIPModel folder in float16, with its tokenizer and image processor."""
    deepcopy(model).half().save_pretrained(out)
    tokenizer.save_pretrained(out)
    tokenizer.backend_tokenizer.model.save(str(out))  # vocab.json and merges.txt, for older readers
    processor = CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size=SQUARE, image_mean=HALF, image_std=HALF)
    processor.save_pretrained(out)


# --- DINO ---


def make_vit(width: int, layers: int) -> ViTModel:
    """A ViT of SIZE px pictures; its class token is the feature."""
    return ViTModel(
        ViTConfig(
            image_size=SIZE,
            patch_size=PATCH,
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=width // 32,
        ),
        add_pooling_layer=False,
    )


def class_token(vit: ViTModel, pictures: Tensor) -> Tensor:
    """(B, width) last hidden state of the class token; pictures of any side that is a multiple of PATCH."""
    token: Tensor = vit(pictures, interpolate_pos_encoding=True).last_hidden_state[:, 0]
    return token


class Twin(nn.Module):
    """Student or teacher: a ViT and a projection head with a normalised bottleneck and weight-normalised prototypes.

    Source: Caron et al. 2021, "Emerging properties in self-supervised vision transformers", section 3 and appendix C.
    """

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.vit = make_vit(width, layers)
        hidden = 4 * width
        inner: list[nn.Module] = []
        for before in (width, hidden):
            inner += [nn.Linear(before, hidden), nn.BatchNorm1d(hidden, track_running_stats=False), nn.GELU()]
        self.head = nn.Sequential(*inner, nn.Linear(hidden, BOTTLENECK))
        self.prototypes = nn.Parameter(torch.randn(PROTOTYPES, BOTTLENECK))

    def forward(self, pictures: Tensor) -> Tensor:
        """(B, PROTOTYPES) cosines of the projected class token and the prototypes."""
        bottleneck = functional.normalize(self.head(class_token(self.vit, pictures)), dim=-1)
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


def views(pixels: Tensor, strength: float, generator: torch.Generator) -> tuple[list[Tensor], list[Tensor]]:
    """Two global views of SIZE px and four local ones of half the side of each scene, mirrored and recoloured.

    Global: the whole scene, a large crop, or an object enlarged. Local: an object as large as it is, or about so.
    """

    def view(boxes: Tensor, side: int) -> Tensor:
        seen = look(repaint(pixels, strength, generator), boxes, side)
        return recolour(mirror_half(seen, generator), strength, generator)

    def some(first: Tensor, second: Tensor, share: float) -> Tensor:
        return torch.where(torch.rand(len(pixels), 1, generator=generator) < share, first, second)

    def object_boxes() -> Tensor:
        return jitter(busy_cells(pixels, generator), -4, 8, generator)

    def large() -> Tensor:
        whole = torch.tensor(WHOLE).expand(len(pixels), 4)
        return some(some(whole, random_boxes(len(pixels), 40, SIZE, generator), 0.6), object_boxes(), 0.7)

    local = [some(busy_cells(pixels, generator), object_boxes(), 0.5) for _ in range(4)]
    return [view(large(), SIZE) for _ in range(2)], [view(boxes, SIZE // 2) for boxes in local]


def entropies(targets: Tensor) -> str:
    """Mean entropy of the targets and entropy of their mean, in nats: equal to each other or both 0 is collapse."""
    each = torch.special.entr(targets).sum(-1).mean()
    return f"entropy {each:.2f} of mean {torch.special.entr(targets.mean(0)).sum():.2f} of {log(len(targets.T)):.2f}"


def train_dino(args: EncoderArgs) -> Trainer:
    """Train the DINO; its teacher is what is saved."""
    torch.manual_seed(args.seed)
    pool, heldout = pools(args)
    every = Every(30)
    model = Dino(args.width, args.layers)
    recipe = Recipe(args.minutes, args.batch, args.learning_rate, warmup_steps=100, checkpoint_minutes=2.5)
    trainer = Trainer({"dino": model}, args.work / "dino.pt", recipe, args.seed)

    def batch_loss(generator: torch.Generator) -> Tensor:
        progress = min(1.0, trainer.seconds / (60 * args.minutes))
        model.follow(1 - (1 - MOMENTUM) * (1 + cos(pi * progress)) / 2)
        rows = torch.randint(len(pool.pixels), (args.batch,), generator=generator)
        cold, warm = TEACHER_TEMPERATURES
        temperature = cold + (warm - cold) * min(1.0, progress / 0.3)
        loss, targets = model.loss(*views(pool.pixels[rows], min(1.0, progress / RAMP), generator), temperature)
        if every():
            print(
                f"step {trainer.step} {trainer.seconds / 60:.1f} min loss {loss.item():.3f} {entropies(targets)}",
                flush=True,
            )
        return loss

    def sheet(path: Path) -> None:
        vit = deepcopy(model.teacher.vit).eval()
        print(path.stem, scene_purity(dino_features(vit, heldout.pixels), heldout.scenes), flush=True)
        vit.half().save_pretrained(args.out / "dino")
        processor = ViTImageProcessor(size=SQUARE, image_mean=HALF, image_std=HALF)
        processor.save_pretrained(args.out / "dino")

    trainer.run(batch_loss, sheet)
    return trainer


# --- report ---


@torch.inference_mode()
def clip_features(model: CLIPModel, pixels: Tensor) -> Tensor:
    """(N, 64) image features of uint8 pictures."""
    return torch.cat([picture_features(model, to_unit(part)) for part in pixels.split(128)])


@torch.inference_mode()
def dino_features(vit: ViTModel, pixels: Tensor) -> Tensor:
    """(N, width) class tokens of uint8 pictures."""
    return torch.cat([class_token(vit, to_unit(part)) for part in pixels.split(128)])


def pixel_features(pixels: Tensor) -> Tensor:
    """(N, 3072) intensities at half the side, as the pixel baseline compares them."""
    return functional.avg_pool2d(pixels.float(), 2).flatten(1)


@torch.inference_mode()
def recall(model: CLIPModel, tokenizer: CLIPTokenizer, pool: Pool) -> dict[str, float]:
    """Text to image: share of captions whose own scene is among the 1 and 10 most similar."""
    ids = tokenizer([scene.caption for scene in pool.scenes], padding=True, return_tensors="pt").input_ids
    like = functional.normalize(text_features(model, ids)) @ functional.normalize(clip_features(model, pool.pixels)).T
    rank = (like > like.diagonal()[:, None]).sum(1)
    return {f"recall@{k}": float((rank < k).float().mean()) for k in (1, 10)}


def scene_purity(features: Tensor, scenes: list[Scene]) -> dict[str, float]:
    """Of the ten nearest other scenes: share with an object in common, and mean Jaccard index of the object sets."""
    like = functional.normalize(features) @ functional.normalize(features).T
    return {name: float(m.gather(1, like.fill_diagonal_(-2).topk(10).indices).mean()) for name, m in overlaps(scenes)}


def overlaps(scenes: list[Scene]) -> list[tuple[str, Tensor]]:
    """(N, N) of sharing an object, and of the Jaccard index of the object sets."""
    held = labels(scenes)
    common = held @ held.T
    union = held.sum(1)[:, None] + held.sum(1) - common
    return [("shares_an_object", (common > 0).float()), ("jaccard", common / union)]


def object_queries(pool: Pool) -> tuple[Tensor, Tensor]:
    """Every object of every scene on a white square of SIZE px, (Q, 3, SIZE, SIZE) uint8, and its label."""
    rows = torch.tensor([row for row, scene in enumerate(pool.scenes) for _ in scene.objects])
    placed = [placed for scene in pool.scenes for placed in scene.objects]
    boxes = torch.tensor([one.box for one in placed], dtype=torch.float32)
    columns = torch.tensor([list(OBJECTS).index(one.name) for one in placed])
    return ((look(pool.pixels[rows], boxes) + 1) * 127.5).round().byte(), columns


def object_purity(queries: Tensor, training: Tensor, columns: Tensor, held: Tensor) -> float:
    """Share of the ten nearest training scenes that hold the query's object."""
    nearest = (functional.normalize(queries) @ functional.normalize(training).T).topk(10).indices
    return float(held[nearest, columns[:, None]].mean())


def report(args: EncoderArgs) -> dict[str, Any]:
    """Measure the saved folders; writes `encoders.json`."""
    pool, heldout = pools(args)
    clip = CLIPModel.from_pretrained(args.out / "clip", dtype=torch.float32).eval()
    vit = ViTModel.from_pretrained(args.out / "dino", dtype=torch.float32, add_pooling_layer=False).eval()
    tokenizer = CLIPTokenizer.from_pretrained(args.out / "clip")
    crops, columns = object_queries(heldout)
    held, others = labels(pool.scenes), ~torch.eye(len(heldout.scenes), dtype=torch.bool)
    features: dict[str, Callable[[Tensor], Tensor]] = {
        "clip": lambda pixels: clip_features(clip, pixels),
        "dino": lambda pixels: dino_features(vit, pixels),
        "pixels": pixel_features,
    }
    measured = {
        "clip_text_to_image": recall(clip, tokenizer, heldout) | {"scenes": len(heldout.scenes)},
        "heldout_scenes_nearest_10": {
            **{name: scene_purity(of(heldout.pixels), heldout.scenes) for name, of in features.items()},
            "chance": {name: float(m[others].mean()) for name, m in overlaps(heldout.scenes)},
        },
        "object_crops_nearest_10": {
            **{name: object_purity(of(crops), of(pool.pixels), columns, held) for name, of in features.items()},
            "chance": float(held.mean(0)[columns].mean()),
        },
        **{name: effort(model, args.work / f"{name}.pt") for name, model in (("clip", clip), ("dino", vit))},
    }
    (args.out / "encoders.json").write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    return measured


def effort(model: nn.Module, checkpoint: Path) -> dict[str, float]:
    """Parameters of a network, and the minutes and steps of its training."""
    state = torch.load(checkpoint, weights_only=True)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {"parameters": parameters, "minutes": round(state["seconds"] / 60, 1), "steps": state["step"]}


STAGES: dict[str, Callable[[EncoderArgs], object]] = {"clip": train_clip, "dino": train_dino}


def main(args: EncoderArgs) -> None:
    """Run one stage."""
    args.work.mkdir(parents=True, exist_ok=True)
    if args.stage == "report":
        print(json.dumps(report(args), indent=1))
    else:
        STAGES[args.stage](args)


if __name__ == "__main__":
    main(tyro.cli(EncoderArgs))
