"""The paper's MSCOCO model: its U-Net as it was published, on what Stable Diffusion 2 gives."""

import json

import pytest
import torch
from conftest import save_tiny_pipeline
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file

from attribution.diffusion import networks
from attribution.diffusion.overlaid import open_model
from attribution.diffusion.source import ModelFiles
from attribution.errors import InputError


def test_the_unet_has_the_published_shape():
    unet = UNet2DConditionModel(**networks.MSCOCO_UNET)
    assert sum("attn2.to_k" in name for name in unet.state_dict()) == 3 * 2 + 1 + 3 * 3
    assert unet.config.sample_size == 16
    assert {value.shape[1] for name, value in unet.state_dict().items() if "attn2.to_k" in name} == {1024}
    assert [block.resnets[-1].conv2.out_channels for block in unet.down_blocks] == [128, 256, 256, 256]


@pytest.fixture
def small(monkeypatch, tmp_path):
    """The preset at the size of the tiny world, its file, and the pipeline that it is laid over."""
    small = {"sample_size": 8, "block_out_channels": (8, 16, 16, 16), "cross_attention_dim": 16, "norm_num_groups": 4}
    monkeypatch.setattr(networks, "MSCOCO_UNET", networks.MSCOCO_UNET | small | {"attention_head_dim": 4})
    torch.manual_seed(7)
    state = UNet2DConditionModel(**networks.MSCOCO_UNET).state_dict()
    torch.save(state, tmp_path / "model.bin")
    return state, tmp_path / "model.bin", save_tiny_pipeline(tmp_path / "base", "v_prediction")


def test_the_mscoco_model_is_read(small):
    state, file, base = small
    (base / "unet/diffusion_pytorch_model.safetensors").unlink()  # is not needed
    model = open_model(ModelFiles(str(base), mscoco_unet=str(file)), torch.device("cpu"))
    for name, value in model.unet.state_dict().items():
        assert torch.equal(value, state[name])
    assert (model.prediction_type, model.train_timesteps, model.resolution) == ("epsilon", 1000, 32)
    betas = torch.linspace(1e-4, 0.02, 1000).double()
    torch.testing.assert_close(model.alphas_cumprod, (1 - betas).cumprod(0), rtol=1e-4, atol=1e-7)
    assert model.generate("a bus", 1).size == (32, 32)


def test_another_file_is_refused(small, tmp_path):
    _, _, base = small
    own = load_file(base / "unet/diffusion_pytorch_model.safetensors")
    torch.save(own, tmp_path / "other.bin")
    for file, told in (
        ("other.bin", "other.bin does not fit its configuration: it lacks"),
        ("none.bin", "there is no file"),
    ):
        with pytest.raises(InputError, match=told):
            open_model(ModelFiles(str(base), mscoco_unet=str(tmp_path / file)))
    torch.save(json.dumps({}), tmp_path / "text.bin")
    with pytest.raises(InputError, match="holds a str; accepted are tensors by name"):
        open_model(ModelFiles(str(base), mscoco_unet=str(tmp_path / "text.bin")))
