"""The diffusion model: the only file of the application that touches diffusers and transformers.

Any `StableDiffusionPipeline` folder or hub id will do (SD 1.x, 2.x, the embedded model); the VAE, the text
encoder and the U-Net are used as they are, in float32 unless told otherwise.
"""

import hashlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any, Literal

import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from PIL import Image
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from attribution.errors import HUB, InputError, WeightsUnavailable, reason

WeightSubset = Literal["cross-attn-kv", "cross-attn", "attn", "all"]

# Layers of the U-Net by diffusers' names: attn1 is self-, attn2 cross-attention.
WEIGHT_PATTERNS: dict[WeightSubset, str] = {
    "cross-attn-kv": r"attn2\.to_[kv]$",
    "cross-attn": r"attn2\.(to_[qkv]|to_out\.0)$",
    "attn": r"attn[12]\.(to_[qkv]|to_out\.0)$",
    "all": r"",
}
MAX_SEED = 2**63 - 1
MAX_PROMPT = 4000  # characters; CLIP reads 77 tokens of them


@dataclass(frozen=True)
class GenerateSettings:
    """How pictures are sampled: denoising steps (1 to 100) and classifier-free guidance (1 to 20; 1 is none)."""

    steps: int = 25
    guidance: float = 3.0


@dataclass(frozen=True)
class TokenCount:
    """A prompt in tokens, the two markers included: how many, how many fit, and the words that are kept."""

    count: int
    limit: int
    kept: str


def default_device() -> torch.device:
    """CUDA, else MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


class Watch:
    """A diffusers attention processor that also keeps the probabilities, averaged over heads: (B, N, L)."""

    def __init__(self, how: Any, kept: list[Tensor]) -> None:
        self.how, self.kept = how, kept

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Attend as before."""
        query, key = (
            attn.head_to_batch_dim(each) for each in (attn.to_q(hidden_states), attn.to_k(encoder_hidden_states))
        )
        probabilities = attn.get_attention_scores(query, key)
        self.kept.append(probabilities.view(len(hidden_states), attn.heads, *probabilities.shape[1:]).mean(1))
        attended: Tensor = self.how(attn, hidden_states, encoder_hidden_states, *args, **kwargs)
        return attended


class Model:
    """A text-to-image latent diffusion model, frozen save for what `unlearn.unlearned` changes and restores."""

    def __init__(self, pipe: StableDiffusionPipeline, source: str) -> None:
        torch.backends.cudnn.allow_tf32 = False  # ten bits are too few: losses before and after differ by little
        self.source = source
        self.pipe = pipe
        pipe.set_progress_bar_config(disable=True)
        self.unet: Any = pipe.unet.eval().requires_grad_(False)
        self.vae: Any = pipe.vae.eval().requires_grad_(False)
        self.text_encoder: Any = pipe.text_encoder.eval().requires_grad_(False)
        self.tokenizer: Any = pipe.tokenizer
        self._tokenizing = Lock()  # truncation is a state of the tokenizer, and the page counts while others encode
        schedule = DDPMScheduler.from_config(pipe.scheduler.config)
        self.alphas_cumprod: Tensor = schedule.alphas_cumprod.double()
        self.prediction_type: str = schedule.config.prediction_type
        self.train_timesteps: int = schedule.config.num_train_timesteps
        if self.prediction_type not in ("epsilon", "v_prediction"):
            raise InputError(
                f"{source} predicts {self.prediction_type!r}; accepted are 'epsilon' and 'v_prediction' schedulers"
            )

    @classmethod
    def load(
        cls, source: str | Path, device: torch.device | None = None, dtype: torch.dtype = torch.float32
    ) -> "Model":
        """Load a pipeline from a folder or the hub.

        Raises:
            WeightsUnavailable: it is not a folder in Stable Diffusion's layout, nor could the hub provide it.
        """
        diffusers_logging.disable_progress_bar()
        transformers_logging.disable_progress_bar()
        try:
            pipe = StableDiffusionPipeline.from_pretrained(
                str(source), dtype=dtype, safety_checker=None, requires_safety_checker=False
            )
        except Exception as error:  # diffusers and the hub raise a dozen kinds
            raise WeightsUnavailable(
                f"no Stable Diffusion pipeline could be loaded from {str(source)!r} ({reason(error)}); name a pipeline"
                f" folder, or a hub id on {HUB}"
            ) from error
        return cls(pipe.to(device or default_device()), str(source))

    @property
    def device(self) -> torch.device:
        """Where the U-Net is."""
        device: torch.device = next(self.unet.parameters()).device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """The U-Net's floating-point type."""
        dtype: torch.dtype = next(self.unet.parameters()).dtype
        return dtype

    @property
    def scale(self) -> int:
        """Pixels per latent cell and side."""
        factor: int = self.pipe.vae_scale_factor
        return factor

    @property
    def resolution(self) -> int:
        """Side in pixels of the square pictures that the U-Net was made for."""
        return int(self.unet.config.sample_size) * self.scale

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of one picture's latents."""
        side = int(self.unet.config.sample_size)
        return (int(self.unet.config.in_channels), side, side)

    @cached_property
    def sha256(self) -> str:
        """A hash of all weights, as float32 values on the CPU, in the order of their names."""
        digest = hashlib.sha256()
        for module in (self.vae, self.text_encoder, self.unet):
            for name, value in sorted(module.state_dict().items()):
                digest.update(name.encode())
                digest.update(value.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
        return digest.hexdigest()

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] to scaled latents (B, C, h, w), the posterior's mode: no noise is added."""
        encoded = self.vae.encode(pixels.to(self.device, self.dtype))
        latents: Tensor = encoded.latent_dist.mode() * self.vae.config.scaling_factor
        return latents

    @torch.no_grad()
    def encode_text(self, prompts: list[str]) -> Tensor:
        """Prompts to the text encoder's hidden states (B, L, D), truncated and padded to its length."""
        limit = self.tokenizer.model_max_length
        how = {"padding": "max_length", "max_length": limit, "truncation": True, "return_tensors": "pt"}
        with self._tokenizing:
            batch = self.tokenizer(prompts, **how)
        hidden: Tensor = self.text_encoder(batch.input_ids.to(self.device)).last_hidden_state
        return hidden

    def count_tokens(self, prompt: str) -> TokenCount:
        """How much of a prompt the model reads."""
        limit = self.tokenizer.model_max_length
        with self._tokenizing:
            whole = self.tokenizer(prompt).input_ids
            kept = self.tokenizer(prompt, max_length=limit, truncation=True).input_ids
        text = prompt if len(whole) <= limit else self.tokenizer.decode(kept, skip_special_tokens=True)
        return TokenCount(len(whole), limit, text)

    def token_places(self, prompt: str, start: int, end: int) -> list[int]:
        """Places of the tokens of a prompt's characters from `start` to `end` among those that are read."""
        limit = self.tokenizer.model_max_length
        with self._tokenizing:
            spans = self.tokenizer(prompt, max_length=limit, truncation=True, return_offsets_mapping=True)
        return [
            place
            for place, (first, last) in enumerate(spans["offset_mapping"])
            if first < min(last, end) and last > start
        ]

    def generate(
        self,
        prompt: str,
        seed: int,
        settings: GenerateSettings | None = None,
        on_step: Callable[[int, int], None] | None = None,
    ) -> Image.Image:
        """Sample a picture with the pipeline's own scheduler; the first noise is drawn on the CPU.

        Args:
            prompt: not empty; what is over the token limit is not read.
            seed: 0 to 2**63 - 1.
            settings: steps and guidance.
            on_step: called with (steps done, steps in all); may raise to stop.

        Raises:
            InputError: a value outside what is accepted.
        """
        settings = settings or GenerateSettings()
        check_prompt(prompt)
        check_seed(seed)
        if not 1 <= settings.steps <= 100:
            raise InputError(f"{settings.steps} steps are not possible; accepted are 1 to 100")
        if not 1 <= settings.guidance <= 20:
            raise InputError(f"guidance {settings.guidance} is not possible; accepted is 1 to 20")

        def callback(_pipe: object, step: int, _t: object, kwargs: dict[str, Any]) -> dict[str, Any]:
            if on_step:
                on_step(step + 1, settings.steps)
            return kwargs

        made = self.pipe(
            prompt,
            num_inference_steps=settings.steps,
            guidance_scale=settings.guidance,
            generator=torch.Generator().manual_seed(seed),
            callback_on_step_end=callback,
        )
        picture: Image.Image = made.images[0]
        return picture

    def predict(self, x_t: Tensor, t: Tensor, text: Tensor) -> Tensor:
        """The U-Net's prediction (B, C, h, w) for noisy latents, timesteps (B,) and text (B, L, D)."""
        predicted: Tensor = self.unet(x_t, t, encoder_hidden_states=text).sample
        return predicted

    @contextmanager
    def watch_attention(self) -> Iterator[list[Tensor]]:
        """A context in which every cross-attention's probabilities, the heads' mean (B, N, L), are kept in a list."""
        kept: list[Tensor] = []
        before = self.unet.attn_processors
        layers = {name: Watch(how, kept) if ".attn2." in name else how for name, how in before.items()}
        self.unet.set_attn_processor(layers)
        try:
            yield kept
        finally:
            self.unet.set_attn_processor(before)

    @contextmanager
    def checkpoint(self, source: str | None) -> Iterator[None]:
        """A context in which the U-Net has the weights of another pipeline of the same shape; None changes nothing.

        Raises:
            WeightsUnavailable: they cannot be had, or do not fit.
        """
        if source is None:
            yield
            return
        before = {name: value.clone() for name, value in self.unet.state_dict().items()}
        try:
            other = type(self.unet).from_pretrained(source, subfolder="unet", torch_dtype=self.dtype)
            self.unet.load_state_dict(other.state_dict())
        except Exception as error:  # diffusers, torch and the hub raise a dozen kinds
            raise WeightsUnavailable(f"no U-Net that fits {self.source!r} could be loaded from {source!r}") from error
        try:
            yield
        finally:
            self.unet.load_state_dict(before)

    def parameters(self, subset: WeightSubset) -> dict[str, nn.Parameter]:
        """The parameters of a subset of weights, by name."""
        layers = self.tunable(subset).items()
        return {f"{name}.{key}": p for name, layer in layers for key, p in layer.named_parameters(recurse=False)}

    def tunable(self, subset: WeightSubset) -> dict[str, nn.Module]:
        """The layers of a subset of weights, by name: those with parameters of their own."""
        pattern = re.compile(WEIGHT_PATTERNS[subset])
        layers = {name: layer for name, layer in self.unet.named_modules() if pattern.search(name)}
        return {name: layer for name, layer in layers.items() if list(layer.parameters(recurse=False))}


def check_prompt(prompt: str) -> str:
    """Return the prompt, stripped.

    Raises:
        InputError: it is empty, too long, or has characters that cannot be printed.
    """
    stripped = prompt.strip()
    if not stripped:
        raise InputError("the prompt is empty; describe the picture in a few words")
    if len(stripped) > MAX_PROMPT:
        raise InputError(f"the prompt has {len(stripped):,} characters; accepted are up to {MAX_PROMPT:,}")
    if unprintable := [letter for letter in stripped if not letter.isprintable() and not letter.isspace()]:
        raise InputError(f"the prompt has the character {unprintable[0]!r}; accepted is text that can be printed")
    return stripped


def check_seed(seed: int) -> int:
    """Return the seed.

    Raises:
        InputError: it is not an integer from 0 to 2**63 - 1.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= MAX_SEED:
        raise InputError(f"seed {seed!r} is not possible; accepted are whole numbers from 0 to {MAX_SEED}")
    return seed
