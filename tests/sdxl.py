"""A tiny random SDXL in its own format: two text encoders of different widths, two tokenizers that pad otherwise."""

import torch
from conftest import make_tiny_tokenizer
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection


def encoder_config(tokenizer, width):
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=32,
        projection_dim=40,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def save_tiny_xl(folder, seed=0, **config):
    """A random StableDiffusionXLPipeline: 32 px, states of 16 + 20, a vector of 40 (two rows behind the states)."""
    torch.manual_seed(seed)
    first, second = make_tiny_tokenizer(), make_tiny_tokenizer()
    second.pad_token = "!"
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=32,
        mid_block_add_attention=False,
        scaling_factor=1.7,
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
        cross_attention_dim=36,
        attention_head_dim=2,
        norm_num_groups=8,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=40 + 6 * 8,
    )
    parts = {
        "vae": vae.eval(),
        "text_encoder": CLIPTextModel(encoder_config(first, 16)).eval(),
        "text_encoder_2": CLIPTextModelWithProjection(encoder_config(second, 20)).eval(),
        "tokenizer": first,
        "tokenizer_2": second,
        "unet": unet.eval(),
        "scheduler": EulerDiscreteScheduler(beta_schedule="scaled_linear", steps_offset=1, **config),
    }
    StableDiffusionXLPipeline(**parts, add_watermarker=False).save_pretrained(folder)
    return folder
