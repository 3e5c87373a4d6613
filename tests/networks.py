"""Small random feature networks, saved as the published ones are."""

from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from transformers import (
    BitImageProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)

from attribution.index.towers import SIDES, Towers

SIDE = 32  # px
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def tiny_clip(folder: Path, tokenizer, dimension: int = 12) -> Path:
    """A CLIPModel with its image processor and a tokenizer."""
    torch.manual_seed(4)
    text = {
        **SMALL,
        "intermediate_size": 32,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": tokenizer.model_max_length,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {**SMALL, "intermediate_size": 32, "image_size": SIDE, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=dimension)).save_pretrained(folder)
    processor = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    processor.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tiny_vit(folder: Path, network: ViTModel | None = None) -> Path:
    """A ViTModel, as DINO is published."""
    save_vit(network or new_vit(), folder)
    return folder


def new_vit() -> ViTModel:
    torch.manual_seed(5)
    return ViTModel(ViTConfig(**SMALL, intermediate_size=32, image_size=SIDE, patch_size=8), add_pooling_layer=False)


def save_vit(network: ViTModel, folder: Path) -> None:
    network.save_pretrained(folder)
    ViTImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)


def tiny_dinov2(folder: Path) -> Path:
    """A Dinov2WithRegistersModel."""
    torch.manual_seed(6)
    config = Dinov2WithRegistersConfig(**SMALL, image_size=SIDE, patch_size=8, num_register_tokens=2)
    Dinov2WithRegistersModel(config).save_pretrained(folder)
    processor = BitImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    processor.save_pretrained(folder)
    return folder


def tiny_mappers(folder: Path) -> dict[str, Path]:
    """Linear mappers: CLIP's a safetensors file, DINO's a checkpoint of torch, as published."""
    generator = torch.Generator().manual_seed(7)

    def mapper(width: int, prefix: str) -> dict[str, torch.Tensor]:
        weight = torch.eye(width) + 0.3 * torch.randn(width, width, generator=generator)
        bias = 0.1 * torch.randn(width, generator=generator)
        return {f"{prefix}mapper.weight": weight, f"{prefix}mapper.bias": bias}

    paths = {"clip-abc": folder / "clip-abc.safetensors", "dino-abc": folder / "dino-abc.pth"}
    save_file(mapper(12, ""), paths["clip-abc"])
    torch.save({"state_dict": mapper(16, "module.")}, paths["dino-abc"])
    return paths


def tiny_towers(folder: Path) -> Path:
    """The networks of `fast` over the small DINO's 16 and CLIP's 12 numbers."""
    generator, wide = torch.Generator().manual_seed(8), 28
    shapes = {"mean": (wide,), "scale": (wide,), "direct": (wide, wide), "inner": (5, wide), "bias": (5,)}
    shapes |= {"outer": (wide, 5)}
    weights = {
        f"{side}.{part}": torch.randn(shape, generator=generator).abs() + 0.1 * (part == "scale")
        for side in SIDES
        for part, shape in shapes.items()
    }
    Towers(weights, {}).write(folder / "fast.safetensors")
    return folder / "fast.safetensors"


def tiny_unet(folder: Path) -> Path:
    """A U-Net smaller still, whose unprojected gradients have 2048 numbers: cross-attention at 8x8 and 4x4 cells."""
    torch.manual_seed(9)
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(16, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        mid_block_type=None,
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=8,
    )
    unet.save_pretrained(folder)
    return folder
