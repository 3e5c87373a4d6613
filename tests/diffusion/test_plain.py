"""What computes keys and values is what is attributed: whatever stands in their place is merged, or refused."""

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0, CustomDiffusionAttnProcessor
from torch import nn
from torch.testing import assert_close

from attribution.diffusion.noise import NoiseBank, NoiseSettings
from attribution.diffusion.pipeline import Model
from attribution.diffusion.weights import parameters
from attribution.errors import InputError
from attribution.unlearning.gradients import per_image_gradients

LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn2"


class Wrapped(nn.Module):
    """A layer with an adapter, as PEFT wraps it."""

    def __init__(self, base_layer, generator):
        super().__init__()
        self.base_layer, self.merged = base_layer, False
        self.delta = nn.Parameter(torch.randn(base_layer.weight.shape, generator=generator))

    def merge(self):
        self.base_layer.weight.add_(self.delta)
        self.merged = True

    def forward(self, x):
        return self.base_layer(x) if self.merged else self.base_layer(x) + x @ self.delta.T


@pytest.fixture
def pipe(tiny_folder):
    return StableDiffusionPipeline.from_pretrained(tiny_folder)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(5)


def inputs():
    generator = torch.Generator().manual_seed(6)
    x, text = (torch.randn(shape, generator=generator) for shape in ((2, 4, 8, 8), (2, 12, 16)))
    return x, torch.tensor([3, 700]), text


@torch.no_grad()
def predicted(unet):
    x, t, text = inputs()
    return unet(x, t, encoder_hidden_states=text).sample


def opened(pipe):
    """A model that was made of a pipeline in a program, tried out; its predictions are those of the pipeline."""
    before = predicted(pipe.unet)
    model = Model(pipe, "mine")
    model.try_out()
    assert_close(predicted(model.unet), before, rtol=1e-5, atol=2e-5)
    return model


def gradients(model):
    x, _, text = inputs()
    bank = NoiseBank.draw(NoiseSettings(2, 1, 3), model.latent_shape, model.train_timesteps)
    return per_image_gradients(model, "cross-attn-kv", x, text, bank)


def test_fused_projections_are_taken_apart(pipe, model32, generator):
    pipe.unet.fuse_qkv_projections()
    assert opened(pipe).sha256 == model32.sha256
    pipe.unet.fuse_qkv_projections()
    fused = pipe.unet.get_submodule(LAYER).to_kv.weight  # a training after it changed what computes alone
    with torch.no_grad():
        fused.copy_(torch.randn(fused.shape, generator=generator))
    keys, values = fused.chunk(2)
    model = opened(pipe)
    assert_close(parameters(model, "cross-attn-kv")[f"{LAYER}.to_k.weight"], keys)
    assert_close(parameters(model, "cross-attn-kv")[f"{LAYER}.to_v.weight"], values)


def test_layers_of_custom_diffusions_processors_take_the_place_of_those_that_they_stand_in_for(pipe, model32):
    torch.manual_seed(4)
    processors = {}
    for name in pipe.unet.attn_processors:
        layer, crossed = pipe.unet.get_submodule(name.removesuffix(".processor")), "attn2" in name
        processors[name] = CustomDiffusionAttnProcessor(
            crossed, crossed, layer.to_q.in_features, 16 if crossed else None
        )
    pipe.unet.set_attn_processor(dict(processors))  # which it empties
    model = opened(pipe)
    assert model.unet.state_dict().keys() == model32.unet.state_dict().keys()
    for name, value in gradients(model).items():
        processor = processors[f"{name.removesuffix('.weight').rpartition('.')[0]}.processor"]
        side = name.removesuffix(".weight")[-1]
        held = getattr(processor, f"to_{side}_custom_diffusion").weight
        assert torch.equal(parameters(model, "cross-attn-kv")[name], held)
        assert value.flatten(1).norm(dim=1).min() > 0
    assert not any("custom" in name for name in model.unet.state_dict())


def test_adapters_are_merged(pipe, model32, generator):
    layer = pipe.unet.get_submodule(LAYER)
    layer.to_k = adapter = Wrapped(layer.to_k, generator)
    model = opened(pipe)
    assert model.unet.state_dict().keys() == model32.unet.state_dict().keys()
    before = parameters(model32, "cross-attn-kv")[f"{LAYER}.to_k.weight"]
    assert_close(parameters(model, "cross-attn-kv")[f"{LAYER}.to_k.weight"], before + adapter.delta)
    assert f"{LAYER}.to_k.weight" in gradients(model)


def test_adapters_that_are_off_or_merged_already_are_taken_away(pipe, model32, generator):
    first, second = pipe.unet.get_submodule(LAYER), pipe.text_encoder.encoder.layers[0].self_attn
    first.to_k, second.q_proj = off, merged = Wrapped(first.to_k, generator), Wrapped(second.q_proj, generator)
    off.disable_adapters = True
    with torch.no_grad():
        merged.merge()
    model = Model(pipe, "mine")
    assert model.unet.state_dict().keys() == model32.unet.state_dict().keys()
    assert torch.equal(predicted(model.unet), predicted(model32.unet.cpu()))
    weight = model32.text_encoder.encoder.layers[0].self_attn.q_proj.weight
    assert_close(model.text_encoder.encoder.layers[0].self_attn.q_proj.weight, weight + merged.delta)


def test_an_adapter_that_cannot_be_merged_is_refused(pipe):
    layer = pipe.unet.get_submodule(LAYER)
    layer.to_k = nn.Sequential(layer.to_k)
    layer.to_k.base_layer = layer.to_k[0]
    with pytest.raises(InputError, match=rf"the layer {LAYER}.to_k of mine is adapted by a Sequential"):
        Model(pipe, "mine")


def test_layers_that_read_the_text_under_other_names_are_refused(pipe):
    layer = pipe.unet.get_submodule(LAYER)
    layer.to_k = nn.Sequential(layer.to_k)
    with pytest.raises(InputError, match=rf"the text is read by the layer {LAYER}\.to_k\.0 of the U-Net of mine"):
        Model(pipe, "mine").try_out()


class Deaf(AttnProcessor2_0):
    """A processor that attends to the latents alone."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, *args, **kwargs):
        doubled = encoder_hidden_states.mul(2)
        return super().__call__(attn, hidden_states, doubled, *args, **kwargs)


def test_keys_and_values_that_read_no_text_are_refused(pipe):
    pipe.unet.get_submodule(LAYER).set_processor(Deaf())
    with pytest.raises(InputError, match=rf"the layer {LAYER}\.to_k of the U-Net of mine reads no text"):
        Model(pipe, "mine").try_out()


def test_a_u_net_without_cross_attention_is_refused(pipe):
    pipe.unet = UNet2DConditionModel.from_config(
        pipe.unet.config, down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2
    )
    with pytest.raises(InputError, match="the U-Net of mine has no cross-attention"):
        Model(pipe, "mine").try_out()


def test_a_layer_that_does_nothing_is_named_where_gradients_are_taken(pipe):
    model = Model(pipe, "mine")
    layer = model.unet.get_submodule(LAYER)
    attend = layer.forward
    layer.forward = lambda hidden, *_, **__: hidden if attend else None
    with pytest.raises(InputError, match=rf"the layer {LAYER}\.to_k does nothing in a prediction"):
        gradients(model)
