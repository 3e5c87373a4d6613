"""A U-Net trained from nothing: one after the other on a CPU, several at once on a GPU.

A step of so small a network is a thousand kernels, each of which fills a small part of a GPU and takes longer to
launch than to run. There a step is recorded once, as a CUDA graph, and graphs of several U-Nets are replayed side by
side, each on a stream of its own. All that chance decides is drawn on the CPU, in the same order, wherever the training
runs.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn

from attribution.scenes.networks import TRAIN_TIMESTEPS, make_scheduler, make_unet

DROPPED_CAPTIONS = 0.1
LANES = 16  # trainings at once on a GPU
WARM_UP = 3  # steps before one is recorded, in which libraries choose and allocate what they need


@dataclass(frozen=True)
class RetrainSettings:
    """How the U-Net is trained from nothing; all of it, with the seed, makes the weights.

    Attributes:
        scenes: N, of the training set.
        channels: of the U-Net's two levels.
        steps: of AdamW; the learning rate rises over the first twentieth and falls by a cosine to nothing.
        batch: images a step.
        learning_rate: its peak.
        ema_decay: of the averaged weights, which are the result.
    """

    scenes: int = 1024
    channels: tuple[int, int] = (48, 96)
    steps: int = 1000
    batch: int = 32
    learning_rate: float = 3e-3
    ema_decay: float = 0.995

    def rate(self, step: int) -> float:
        """The learning rate at a step."""
        rising = min(1.0, (step + 1) / max(1, self.steps // 20))
        return self.learning_rate * rising * 0.5 * (1 + math.cos(math.pi * step / self.steps))

    def renewed(self, step: int) -> float:
        """The share of the averaged weights that a step replaces."""
        return 1 - min(self.ema_decay, (1 + step) / (10 + step))


@dataclass(frozen=True)
class Lessons:
    """A training set as the U-Net sees it.

    Attributes:
        latents: (N, 2, C, h, w) of each image and its mirror.
        text: (N, L, D) states of each caption.
        unprompted: (L, D) states of the empty caption.
    """

    latents: Tensor
    text: Tensor
    unprompted: Tensor

    def to(self, device: torch.device) -> "Lessons":
        """The same on a device."""
        return Lessons(self.latents.to(device), self.text.to(device), self.unprompted.to(device))


@dataclass(frozen=True)
class Drawn:
    """What chance decides in a step.

    Attributes:
        rows: (B,) images.
        mirrored: (B,) 1 where the mirror is taken.
        noise: (B, C, h, w).
        t: (B,) timesteps.
        dropped: (B, 1, 1) where the caption is left out.
    """

    rows: Tensor
    mirrored: Tensor
    noise: Tensor
    t: Tensor
    dropped: Tensor

    def tensors(self) -> tuple[Tensor, ...]:
        """All of them."""
        return (self.rows, self.mirrored, self.noise, self.t, self.dropped)


def draw(lessons: Lessons, rows: Tensor, generator: torch.Generator) -> Drawn:
    """Chance for a batch of rows (B,)."""
    count = len(rows)
    mirrored = torch.randint(2, (count,), generator=generator)
    noise = torch.randn((count, *lessons.latents.shape[2:]), generator=generator)
    t = torch.randint(TRAIN_TIMESTEPS, (count,), generator=generator)
    return Drawn(rows, mirrored, noise, t, torch.rand(count, 1, 1, generator=generator) < DROPPED_CAPTIONS)


def draws(lessons: Lessons, rows: Sequence[int], settings: RetrainSettings, seed: int) -> Iterator[Drawn]:
    """Chance for every step of a training on some rows."""
    kept, generator = torch.as_tensor(rows), torch.Generator().manual_seed(seed)
    for _ in range(settings.steps):
        yield draw(lessons, kept[torch.randint(len(kept), (settings.batch,), generator=generator)], generator)


def drawn_loss(unet: Any, lessons: Lessons, drawn: Drawn, scheduler: DDIMScheduler) -> Tensor:
    """The denoising loss of a batch, all of which is on the U-Net's device: a number."""
    x = lessons.latents[drawn.rows, drawn.mirrored]
    text = torch.where(drawn.dropped, lessons.unprompted, lessons.text[drawn.rows])
    predicted = unet(scheduler.add_noise(x, drawn.noise, drawn.t), drawn.t, text).sample
    loss: Tensor = (predicted - scheduler.get_velocity(x, drawn.noise, drawn.t)).square().mean()
    return loss


def lesson_loss(unet: Any, lessons: Lessons, rows: Tensor, generator: torch.Generator) -> Tensor:
    """The denoising loss of a batch of rows (B,), mirrored at random, some of it without its captions."""
    drawn = draw(lessons, rows, generator)
    moved = Drawn(*(part.to(unet.device) for part in drawn.tensors()))
    return drawn_loss(unet, lessons.to(unet.device), moved, make_scheduler())


def first_unet(channels: tuple[int, int], seed: int) -> UNet2DConditionModel:
    """An untrained U-Net."""
    torch.manual_seed(seed)
    return make_unet(channels=channels)


@lru_cache(8)
def first_weights(channels: tuple[int, int], seed: int) -> tuple[Tensor, ...]:
    """What trainings of a seed begin with."""
    return tuple(weight.detach() for weight in first_unet(channels, seed).parameters())


class Training:
    """One U-Net after another, trained on a device by steps that take nothing from the host.

    Chance for all steps of a training lies on the device; which step it is, is counted there.
    """

    def __init__(self, lessons: Lessons, settings: RetrainSettings, device: torch.device) -> None:
        self.lessons, self.settings, self.scheduler = lessons.to(device), settings, make_scheduler()
        self.unet = make_unet(channels=settings.channels).to(device).train()
        self.weights = list(self.unet.parameters())
        self.average = [weight.detach().clone() for weight in self.weights]
        every = range(settings.steps)
        self.rates = torch.tensor([settings.rate(step) for step in every], device=device)
        self.renewed = torch.tensor([settings.renewed(step) for step in every], device=device)
        self.rate, self.step_done = torch.zeros((), device=device), torch.zeros(1, dtype=torch.long, device=device)
        on_gpu = device.type == "cuda"
        self.optimizer = torch.optim.AdamW(
            self.weights, lr=self.rate, weight_decay=0.01, betas=(0.9, 0.99), capturable=on_gpu, foreach=on_gpu
        )
        self.chance: tuple[Tensor, ...] = ()

    @torch.no_grad()
    def begin(self, chance: Sequence[Drawn], seed: int) -> None:
        """Start anew, with what chance decides and the seed of the first weights."""
        first = first_weights(self.settings.channels, seed)
        for weight, average, start in zip(self.weights, self.average, first, strict=True):
            weight.copy_(start)
            average.copy_(start)
        for state in self.optimizer.state.values():
            for value in state.values():
                value.zero_()
        self.step_done.zero_()
        stacked = [torch.stack(parts) for parts in zip(*(drawn.tensors() for drawn in chance), strict=True)]
        if not self.chance:
            self.chance = tuple(part.to(self.rate.device) for part in stacked)
        for held, part in zip(self.chance, stacked, strict=True):
            held.copy_(part)

    def step(self) -> None:
        """One step of the training."""

        def now(table: Tensor) -> Tensor:
            return table.index_select(0, self.step_done).squeeze(0)

        self.rate.copy_(now(self.rates))
        self.optimizer.zero_grad(set_to_none=True)
        drawn_loss(self.unet, self.lessons, Drawn(*map(now, self.chance)), self.scheduler).backward()
        nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimizer.step()
        with torch.no_grad():
            moved = torch._foreach_sub(self.weights, self.average)
            torch._foreach_mul_(moved, now(self.renewed))
            torch._foreach_add_(self.average, moved)
        self.step_done += 1

    def result(self) -> dict[str, Tensor]:
        """The averaged weights, on the CPU."""
        names = (name for name, _ in self.unet.named_parameters())
        return {name: average.cpu() for name, average in zip(names, self.average, strict=True)}


class Lane:
    """A training whose step is recorded as a CUDA graph, on a stream of its own."""

    def __init__(self, training: Training) -> None:
        self.training, self.stream, self.graph = training, torch.cuda.Stream(), torch.cuda.CUDAGraph()
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            for _ in range(WARM_UP):
                training.step()
        self.stream.synchronize()
        with torch.cuda.graph(self.graph, stream=self.stream):
            training.step()

    def step(self) -> None:
        """Begin a step, and do not wait for it."""
        with torch.cuda.stream(self.stream):
            self.graph.replay()


def retrain(
    lessons: Lessons,
    rows: Sequence[int],
    seed: int,
    settings: RetrainSettings,
    on_step: Callable[[int], None] = lambda step: None,
) -> dict[str, Tensor]:
    """The weights of a U-Net trained from nothing on some of the images, on the CPU.

    Args:
        lessons: the whole training set.
        rows: that are trained on.
        seed: of first weights, batches and noises.
        settings: the recipe.
        on_step: called with the number of steps made; may raise to stop.
    """
    unet = first_unet(settings.channels, seed).train()
    average = {name: value.detach().clone() for name, value in unet.state_dict().items()}
    optimizer, scheduler = torch.optim.AdamW(unet.parameters(), weight_decay=0.01, betas=(0.9, 0.99)), make_scheduler()
    for step, drawn in enumerate(draws(lessons, rows, settings, seed)):
        for group in optimizer.param_groups:
            group["lr"] = settings.rate(step)
        optimizer.zero_grad(set_to_none=True)
        drawn_loss(unet, lessons, drawn, scheduler).backward()
        nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        for name, value in unet.state_dict().items():
            average[name].lerp_(value, settings.renewed(step))
        on_step(step + 1)
    return average


def unet_of(weights: dict[str, Tensor], settings: RetrainSettings) -> UNet2DConditionModel:
    """A trained U-Net, frozen."""
    unet = make_unet(channels=settings.channels)
    unet.load_state_dict(weights)
    return unet.requires_grad_(False).eval()


Job = tuple[Sequence[int], int]  # rows that are trained on, seed
Prepared = list[tuple[list[Drawn], int]]  # what chance decides, seed


class Lanes:
    """Several trainings at once on a GPU; what is recorded serves one group of them after another."""

    def __init__(self, lessons: Lessons, settings: RetrainSettings, device: torch.device) -> None:
        self.lessons, self.settings, self.device = lessons, settings, device
        self.open: list[Lane] = []

    def prepare(self, jobs: Sequence[Job]) -> Prepared:
        """What chance decides in some trainings, which may be drawn while others run."""
        with ThreadPoolExecutor(len(jobs)) as pool:
            return list(pool.map(lambda job: (list(draws(self.lessons, job[0], self.settings, job[1])), job[1]), jobs))

    def train(self, prepared: Prepared, on_step: Callable[[int], None] = lambda step: None) -> list[dict[str, Tensor]]:
        """The weights of U-Nets trained from nothing side by side, in the order of the jobs.

        Args:
            prepared: of jobs, LANES or so.
            on_step: called when a step of every job is begun, with how many are; may raise to stop.
        """
        for place, (chance, seed) in enumerate(prepared):
            if place == len(self.open):
                training = Training(self.lessons, self.settings, self.device)
                training.begin(chance, seed)
                self.open.append(Lane(training))
            self.open[place].training.begin(chance, seed)
        torch.cuda.synchronize(self.device)
        lanes = self.open[: len(prepared)]
        for step in range(self.settings.steps):
            for lane in lanes:
                lane.step()
            on_step(step + 1)
        torch.cuda.synchronize(self.device)
        return [lane.training.result() for lane in lanes]
