"""The diffusion model: with networks.py and plain.py, the only files of the application that touch diffusers.

Any `StableDiffusionPipeline` or `StableDiffusionXLPipeline` folder or hub id will do (SD 1.x, 2.x, XL, the embedded
model); the VAE, the text encoders and the U-Net are used as they are, in float32 unless told otherwise.
"""

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.utils import logging as diffusers_logging
from PIL import Image
from torch import Tensor
from transformers.utils import logging as transformers_logging

from attribution.diffusion.captions import Captions
from attribution.diffusion.fits import FITS, check_finite, check_scheduler, check_unet, latent_side
from attribution.diffusion.networks import load_pipeline
from attribution.diffusion.plain import make_plain, reading, refuse_other_readers
from attribution.diffusion.source import ModelFiles
from attribution.diffusion.texts import Texts
from attribution.diffusion.tokens import Tokens, check_prompt
from attribution.errors import HUB, InputError, WeightsUnavailable, reason

MAX_SEED = 2**63 - 1
Changed = tuple[dict[str, Tensor], dict[str, Tensor]]  # weights by name as they are, and as they were before


@dataclass(frozen=True)
class GenerateSettings:
    """How pictures are sampled: denoising steps (1 to 100) and classifier-free guidance (1 to 20; 1 is none)."""

    steps: int = 25
    guidance: float = 3.0


def default_device() -> torch.device:
    """CUDA, else MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


class Model:
    """A text-to-image latent diffusion model, frozen save for what `unlearn.unlearned` changes and restores."""

    def __init__(self, pipe: StableDiffusionPipeline | StableDiffusionXLPipeline, source: str) -> None:
        torch.backends.cudnn.allow_tf32 = False  # ten bits are too few: losses before and after differ by little
        self.source, self.files = source, ModelFiles(source)
        self.changed: list[Changed] = []  # by `weights.unlearned`, the outermost first
        self.pipe = pipe
        pipe.set_progress_bar_config(disable=True)
        make_plain(source, pipe)
        self.unet: Any = pipe.unet.eval().requires_grad_(False)
        self.vae: Any = pipe.vae.eval().requires_grad_(False)
        check_scheduler(source, pipe.scheduler)
        self.cells = latent_side(source, self.unet, self.vae, self.scale)
        self.texts = Texts(pipe, self.resolution)
        for encoder in self.texts.encoders.values():
            encoder.eval().requires_grad_(False)
        check_unet(source, self.unet, self.vae, self.texts.width, len(self.texts.encoders))
        self.encode_captions = Captions(lambda captions: self.encode_text(captions))  # kept, for training sets
        schedule = DDPMScheduler.from_config(pipe.scheduler.config)
        self.alphas_cumprod: Tensor = schedule.alphas_cumprod.double()
        self.prediction_type: str = schedule.config.prediction_type
        self.train_timesteps: int = schedule.config.num_train_timesteps

    @classmethod
    def load(
        cls, source: str | Path | ModelFiles, device: torch.device | None = None, dtype: torch.dtype = torch.float32
    ) -> "Model":
        """Load a pipeline from a folder or the hub; where it has half-precision files alone, those are read.

        What is laid over it, save for another U-Net, is not: see `overlaid.open_model`.

        Raises:
            WeightsUnavailable: it is not a folder in Stable Diffusion's layout, nor could the hub provide it.
            InputError: it is of another family, or its weights are incomplete or not finite.
        """
        for library in (diffusers_logging, transformers_logging):
            library.disable_progress_bar()
            library.set_verbosity(logging.CRITICAL)  # what they warn of is looked at here
        files = source if isinstance(source, ModelFiles) else ModelFiles(str(source))
        name = files.pretrained_model_name_or_path
        try:
            pipe = load_pipeline(files, dtype)
        except InputError:
            raise
        except Exception as error:  # diffusers and the hub raise a dozen kinds
            raise WeightsUnavailable(
                f"no Stable Diffusion pipeline could be loaded from {name!r} ({reason(error)}); name a pipeline"
                f" folder, or a hub id on {HUB}"
            ) from error
        model = cls(pipe.to(device or default_device()), name)
        model.files = files
        model.try_out()
        return model

    @property
    def text_encoder(self) -> Any:
        """The text encoder, or the first of SDXL's two."""
        return self.pipe.text_encoder

    @property
    def tokens(self) -> Tokens:
        """The tokenizer of the text encoder."""
        return self.texts.tokens

    @property
    def networks(self) -> dict[str, Any]:
        """All that it is made of, by the pipeline's names."""
        return {"vae": self.vae, **self.texts.encoders, "unet": self.unet}

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
        return self.cells * self.scale

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of one picture's latents."""
        return (int(self.unet.config.in_channels), self.cells, self.cells)

    @cached_property
    def sha256(self) -> str:
        """A hash of all weights, as float32 values on the CPU, in the order of their names."""
        digest = hashlib.sha256()
        for module in self.networks.values():
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

    def encode_text(self, prompts: list[str]) -> Tensor:
        """Prompts as the U-Net reads them (B, L, D), truncated and padded: hidden states; see `texts` for SDXL's."""
        return self.texts.encode(prompts)

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

        def callback(_pipe: object, step: int, _t: object, kwargs: dict[str, Any]) -> dict[str, Any]:
            if on_step:
                on_step(step + 1, settings.steps)
            return kwargs

        return self._drawn([prompt], [seed], settings, callback)[0]

    def generate_together(
        self, prompts: Sequence[str], seeds: Sequence[int], settings: GenerateSettings | None = None
    ) -> list[Image.Image]:
        """Several pictures in one call: those that `generate` gives one by one, as far as rounding goes.

        Args:
            prompts: none of them empty.
            seeds: as many.
            settings: steps and guidance.

        Raises:
            InputError: a value outside what `generate` accepts.
        """
        return self._drawn(prompts, seeds, settings or GenerateSettings())

    def _drawn(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        settings: GenerateSettings,
        callback: Callable[..., dict[str, Any]] | None = None,
    ) -> list[Image.Image]:
        for prompt, seed in zip(prompts, seeds, strict=True):
            check_prompt(prompt)
            check_seed(seed)
        if not 1 <= settings.steps <= 100:
            raise InputError(f"{settings.steps} steps are not possible; accepted are 1 to 100")
        if not 1 <= settings.guidance <= 20:
            raise InputError(f"guidance {settings.guidance} is not possible; accepted is 1 to 20")
        # The text is encoded here, as it is for the index: the pipeline's own tokenizer is not safe to share.
        zeros = bool(self.pipe.config.get("force_zeros_for_empty_prompt"))
        texts = [self.texts.embeddings(prompt, zeros) for prompt in prompts]
        made = self.pipe(
            **{name: torch.cat([text[name] for text in texts]) for name in texts[0]},
            height=self.resolution,
            width=self.resolution,
            num_inference_steps=settings.steps,
            guidance_scale=settings.guidance,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            callback_on_step_end=callback,
        )
        pictures: list[Image.Image] = made.images
        return pictures

    def predict(self, x_t: Tensor, t: Tensor, text: Tensor) -> Tensor:
        """The U-Net's prediction (B, C, h, w) for noisy latents, timesteps (B,) and text (B, L, D) of `encode_text`."""
        predicted: Tensor = self.unet(x_t, t, **self.texts.conditions(text)).sample
        return predicted

    @torch.no_grad()
    def try_out(self) -> None:
        """Encode and predict once, on a picture of one colour.

        Raises:
            InputError: the parts do not fit together, have or give what is not finite, or the text is read by others
                than the keys and values of cross-attention.
        """
        check_finite(self.source, self.networks)
        try:
            latents = self.encode_images(torch.zeros(1, 3, self.resolution, self.resolution))
            t = torch.tensor([self.train_timesteps // 2], device=self.device)
            text = self.encode_text(["a"])
            with reading(self.unet, text) as readers:
                predicted = self.predict(latents, t, text)
        except Exception as error:  # torch and diffusers raise a dozen kinds
            raise InputError(f"the parts of {self.source} do not fit together ({reason(error)}); {FITS}") from error
        if {latents.shape, predicted.shape} != {(1, *self.latent_shape)}:
            found = " and ".join(str(tuple(each.shape[1:])) for each in (latents, predicted))
            raise InputError(f"{self.source} makes latents of {found} instead of {self.latent_shape}; {FITS}")
        if not (latents.isfinite().all() and predicted.isfinite().all()):
            raise InputError(f"{self.source} predicts what is not finite; name an earlier checkpoint")
        refuse_other_readers(self.source, self.unet, readers)


def check_seed(seed: int) -> int:
    """Return the seed.

    Raises:
        InputError: it is not an integer from 0 to 2**63 - 1.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= MAX_SEED:
        raise InputError(f"seed {seed!r} is not possible; accepted are whole numbers from 0 to {MAX_SEED}")
    return seed
