"""The embedded model's networks: small members of the classes that Stable Diffusion is made of."""

import json

from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from attribution.scenes.compose import WORLD, WorldSettings

LATENT_CHANNELS = 16
MAX_TOKENS = 32
TEXT_WIDTH = 128
TRAIN_TIMESTEPS = 1000
WIDEST = 128  # channels of the autoencoder at the latent grid; each doubling of the side halves them


def make_autoencoder(world: WorldSettings = WORLD) -> AutoencoderKL:
    """A world's pictures to 8x8x16 latents: four levels from 64 px, five from 128 px, 2.6 M parameters."""
    levels = world.lattice.bit_length()
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=tuple(WIDEST >> level for level in reversed(range(levels))),
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=LATENT_CHANNELS,
        sample_size=world.side,
        mid_block_add_attention=False,
        scaling_factor=1.0,
    )


def grown(small: AutoencoderKL, world: WorldSettings) -> AutoencoderKL:
    """The autoencoder of a world, started from that of the world of half its side.

    Everything between the second level and the latents is taken over; the level of full size is new.
    """
    large = make_autoencoder(world)
    weights = large.state_dict()
    for name, value in small.state_dict().items():
        place = _one_level_deeper(name)
        ends = place.startswith(("encoder.conv_in", "decoder.conv_out", "decoder.conv_norm_out"))
        if not ends and place in weights and weights[place].shape == value.shape:
            weights[place] = value
    large.load_state_dict(weights)
    return large


def _one_level_deeper(name: str) -> str:
    """Where an encoder's block stands when one more level comes before it; a decoder's blocks keep their places."""
    prefix = "encoder.down_blocks."
    if not name.startswith(prefix):
        return name
    level, rest = name.removeprefix(prefix).split(".", 1)
    return f"{prefix}{int(level) + 1}.{rest}"


def make_tokenizer(captions: list[str]) -> CLIPTokenizer:
    """CLIP's byte-level BPE with merges learned from the captions; MAX_TOKENS long.

    The trainer numbers the letters differently in every process, so the ids are given anew: the letters in their
    own order, then the merged tokens in the order in which they were learned.
    """
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    untrained = CLIPTokenizer(vocab={token: index for index, token in enumerate(tokens)}, merges=[])
    learned = untrained.train_new_from_iterator(captions, vocab_size=1024)
    merges = [tuple(pair) for pair in json.loads(learned.backend_tokenizer.to_str())["model"]["merges"]]
    tokens += ["".join(pair) for pair in merges]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAX_TOKENS)


def make_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A two-layer CLIP text encoder, 128 wide."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def make_unet(world: WorldSettings = WORLD, channels: tuple[int, int] = (64, 128)) -> UNet2DConditionModel:
    """Cross-attention at 8x8 and 4x4; 3.3 M parameters with as many channels."""
    return UNet2DConditionModel(
        sample_size=world.latent_side,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=channels,
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        mid_block_type=None,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def make_scheduler() -> DDIMScheduler:
    """V prediction on the cosine schedule, whose last step is all noise: backgrounds are flat colours."""
    return DDIMScheduler(
        num_train_timesteps=TRAIN_TIMESTEPS,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
        steps_offset=1,
    )


def make_sampler() -> DPMSolverMultistepScheduler:
    """How the pictures are drawn: DPM-Solver++ as a stochastic equation (Lu et al. 2022), of the same schedule.

    Its fresh noise mends what an early step got wrong: DDIM leaves out or repeats an object more often.
    """
    sampler: DPMSolverMultistepScheduler = DPMSolverMultistepScheduler.from_config(
        make_scheduler().config, algorithm_type="sde-dpmsolver++", solver_order=2
    )
    return sampler


def make_pipeline(
    vae: AutoencoderKL, text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer, unet: UNet2DConditionModel
) -> StableDiffusionPipeline:
    """The pipeline of these networks, which draws without a word."""
    pipe = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer,
        unet=unet.eval(),
        scheduler=make_sampler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """(N, MAX_TOKENS) token ids, padded."""
    batch = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")
    ids: Tensor = batch.input_ids
    return ids
