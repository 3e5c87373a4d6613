"""A model is known to fit when it is loaded: pipelines that people have after fine-tuning."""

import json
import shutil

import diffusers
import pytest
import torch
from conftest import SIDE
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from sdxl import save_tiny_xl
from torch.testing import assert_close

from attribution.diffusion.overlaid import open_model
from attribution.diffusion.pipeline import Model
from attribution.diffusion.source import ModelFiles
from attribution.diffusion.weights import checkpoint
from attribution.errors import InputError, WeightsUnavailable

UNET, VAE = (f"{part}/diffusion_pytorch_model.safetensors" for part in ("unet", "vae"))
TEXT = "text_encoder/model.safetensors"


@pytest.fixture
def folder(tiny_folder, tmp_path):
    """A copy of the tiny pipeline that a test may change."""
    return shutil.copytree(tiny_folder, tmp_path / "model")


def configure(folder, file, **change):
    """Change a configuration; ... takes a key away."""
    told = json.loads((folder / file).read_text()) | change
    (folder / file).write_text(json.dumps({key: value for key, value in told.items() if value is not ...}))


def rewrite(folder, file, change):
    save_file(change(load_file(folder / file)), folder / file, metadata={"format": "pt"})


def load(folder):
    return Model.load(folder, torch.device("cpu"))


def refuse(folder, *told):
    with pytest.raises(InputError) as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    for each in (folder.name, *told):
        assert each in str(caught.value)


# Other families


def test_an_inpainting_model_is_refused(folder):
    configure(folder, "unet/config.json", in_channels=9)
    wider = {"conv_in.weight": torch.zeros(16, 9, 3, 3)}
    rewrite(folder, UNET, lambda state: state | wider)
    refuse(folder, "reads 9 channels (inpainting), its VAE makes 4", "Stable Diffusion 1.x, 2.x and XL")


def conditioned(folder, weights, **config):
    configure(folder, "unet/config.json", **config)
    rewrite(folder, UNET, lambda state: state | weights)


def embedding(name, width, wide=64):
    two = {f"{name}.linear_1.weight": torch.zeros(wide, width), f"{name}.linear_2.weight": torch.zeros(wide, wide)}
    return two | {f"{name}.linear_{layer}.bias": torch.zeros(wide) for layer in (1, 2)}


def test_a_model_with_further_inputs_is_refused_by_their_names(folder, tmp_path):
    for name, weights, config in (
        (
            "more than a text",
            embedding("add_embedding", 64),
            {
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 8,
                "projection_class_embeddings_input_dim": 64,
            },
        ),
        ("class labels", embedding("class_embedding", 16), {"class_embed_type": "timestep"}),
        ("class labels", {"class_embedding.weight": torch.zeros(7, 64)}, {"num_class_embeds": 7}),
        ("guidance", {"time_embedding.cond_proj.weight": torch.zeros(16, 8)}, {"time_cond_proj_dim": 8}),
    ):
        copy = shutil.copytree(folder, tmp_path / name, dirs_exist_ok=True)
        conditioned(copy, weights, **config)
        refuse(copy, name, next(iter(config)))


def test_a_pipeline_without_a_u_net_is_refused_by_its_name(folder):
    configure(folder, "model_index.json", _class_name="FluxPipeline", unet=...)
    refuse(folder, "is a FluxPipeline and has no unet")


@pytest.mark.parametrize(
    ("name", "parts", "told"),
    [
        ("StableDiffusionUpscalePipeline", {"low_res_scheduler": ["diffusers", "DDPMScheduler"]}, "low_res_scheduler"),
        ("StableDiffusionControlNetPipeline", {"controlnet": ["diffusers", "ControlNetModel"]}, "controlnet"),
        ("MyPipeline", {"unet": ["my_unet", "MyUNet"]}, "the code of its unet, which is never run"),
    ],
)
def test_another_family_is_refused_by_its_name_before_its_networks_are_loaded(folder, monkeypatch, name, parts, told):
    configure(folder, "model_index.json", _class_name=name, **parts)
    monkeypatch.setattr("attribution.diffusion.networks.load_network", lambda *_: pytest.fail("loaded"))
    refuse(folder, f"is a {name} and ", told, "Stable Diffusion 1.x, 2.x and XL")


@pytest.mark.parametrize(
    "name",
    [
        "CMStochasticIterativeScheduler",
        "FlowMatchEulerDiscreteScheduler",
        "EDMEulerScheduler",
        "EDMDPMSolverMultistepScheduler",
        "IPNDMScheduler",
    ],
)
def test_a_scheduler_of_another_noise_is_refused_by_its_name(folder, name):
    getattr(diffusers, name)().save_pretrained(folder / "scheduler")
    configure(folder, "model_index.json", scheduler=["diffusers", name])
    refuse(folder, name, "flow matching, EDM", "DDIM, PNDM, Euler")


def test_a_flow_behind_a_diffusion_scheduler_is_refused(folder):
    configure(folder, "model_index.json", scheduler=["diffusers", "DPMSolverMultistepScheduler"])
    configure(folder, "scheduler/scheduler_config.json", use_flow_sigmas=True, prediction_type="flow_prediction")
    refuse(folder, "DPMSolverMultistepScheduler", "flow matching")


def test_a_model_that_predicts_the_sample_is_refused(folder):
    configure(folder, "scheduler/scheduler_config.json", prediction_type="sample")
    refuse(folder, "predicts 'sample'; accepted are 'epsilon' and 'v_prediction'")


@pytest.mark.parametrize("name", ["PNDMScheduler", "EulerDiscreteScheduler", "UniPCMultistepScheduler"])
def test_other_schedulers_of_diffusion_have_the_same_noise(folder, model32, name):
    configure(folder, "model_index.json", scheduler=["diffusers", name])
    model = load(folder)
    assert (model.alphas_cumprod == model32.alphas_cumprod).all()
    assert model.prediction_type == "v_prediction"


# SDXL


@pytest.fixture
def xl_folder(tmp_path):
    return save_tiny_xl(tmp_path / "xl")


def test_an_xl_of_other_parts_is_refused(xl_folder, tmp_path):
    config = UNet2DConditionModel.load_config(xl_folder, subfolder="unet") | {"addition_embed_type": None}
    plain = shutil.copytree(xl_folder, tmp_path / "plain")
    UNet2DConditionModel.from_config(config).save_pretrained(plain / "unet")
    refuse(plain, "two text encoders, and its U-Net does not read both as SDXL does")
    refiner = shutil.copytree(xl_folder, tmp_path / "refiner")
    configure(refiner, "model_index.json", text_encoder=[None, None], tokenizer=[None, None])
    refuse(refiner, "is a StableDiffusionXLPipeline and has no text_encoder")
    shifted = shutil.copytree(xl_folder, tmp_path / "shifted")
    configure(shifted, "vae/config.json", latents_mean=[0.0] * 4, latents_std=[1.0] * 4)
    refuse(shifted, "shifts its latents by a mean (latents_mean)")


def test_every_weight_of_an_xl_counts(xl_folder):
    before, name = load(xl_folder).sha256, "text_projection.weight"
    rewrite(xl_folder, "text_encoder_2/model.safetensors", lambda state: state | {name: state[name] + 1})
    assert load(xl_folder).sha256 != before
    bad = {name: torch.full((40, 20), float("nan"))}
    rewrite(xl_folder, "text_encoder_2/model.safetensors", lambda state: state | bad)
    refuse(xl_folder, "1 weights of", f"the first is text_encoder_2 {name}")


# Sizes


@pytest.mark.parametrize(("size", "side"), [([8, 8], 32), (8, 32), (None, SIDE), (10, 40), (6, 24)])
def test_a_model_says_its_size_in_several_ways(folder, size, side):
    configure(folder, "unet/config.json", sample_size=size)
    model = load(folder)
    assert model.latent_shape == (4, side // 4, side // 4)
    assert model.generate("a bus", 1).size == (side, side)


@pytest.mark.parametrize("size", [[8, 4], 0, -8, "8", 8.5, [], True])
def test_a_size_that_is_no_square_is_refused(folder, size):
    configure(folder, "unet/config.json", sample_size=size)
    refuse(folder, f"latents of {size!r} cells", "write it as sample_size into unet/config.json")


def test_a_model_that_says_no_size_is_refused_where_its_vae_says_none_either(folder):
    configure(folder, "unet/config.json", sample_size=None)
    configure(folder, "vae/config.json", sample_size=24)
    refuse(folder, "latents of None cells")


def test_a_size_that_cannot_be_generated_is_refused(folder):
    configure(folder, "unet/config.json", sample_size=7)
    refuse(folder, "pictures of 28 px; accepted are multiples of 8")


def test_a_tokenizer_without_a_limit_has_that_of_the_text_encoder(folder, model32):
    configure(folder, "tokenizer/tokenizer_config.json", model_max_length=...)
    model = load(folder)
    assert model.pipe.tokenizer.model_max_length > 10**6
    assert model.tokens.limit == model32.tokens.limit == 12
    assert model.encode_text(["a red apple " * 50]).shape[1] == 12


# Weights


def test_a_pipeline_saved_with_a_lora_is_refused(folder):
    """Diffusers loads random weights in place of those under other names, with a warning alone."""
    rewrite(
        folder,
        UNET,
        lambda state: {key.replace(".to_k.weight", ".to_k.base_layer.weight"): value for key, value in state.items()},
    )
    refuse(folder, "lacks", "to_k.weight", "fuse_lora, unload_lora_weights")


@pytest.mark.parametrize(("part", "file"), [("unet", UNET), ("vae", VAE), ("text_encoder", TEXT)])
def test_weights_that_are_missing_are_named(folder, part, file):
    gone = sorted(load_file(folder / file))[3]
    rewrite(folder, file, lambda state: {key: value for key, value in state.items() if key != gone})
    refuse(folder, f"the {part} of", f"lacks 1 weights ({gone.removeprefix('text_model.')}")


def test_weights_of_the_u_net_that_nothing_reads_are_named(folder):
    rewrite(folder, UNET, lambda state: state | {"ip_adapter.weight": torch.zeros(2)})
    refuse(folder, "the unet of", "has others (ip_adapter.weight, ...)")


def test_weights_of_the_text_encoder_that_nothing_reads_do_no_harm(folder, model32):
    rewrite(folder, TEXT, lambda state: state | {"vision_model.weight": torch.zeros(2)})
    assert load(folder).sha256 == model32.sha256


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(("part", "file"), [("unet", UNET), ("vae", VAE), ("text_encoder", TEXT)])
def test_weights_that_are_not_finite_are_named(folder, part, file, value):
    name = sorted(load_file(folder / file))[2]
    rewrite(folder, file, lambda state: state | {name: torch.full_like(state[name], value)})
    refuse(folder, "1 weights of", f"the first is {part} {name.removeprefix('text_model.')}")


def test_parts_that_overflow_are_refused(folder):
    rewrite(folder, UNET, lambda state: {key: value * 1e30 for key, value in state.items()})
    refuse(folder, "predicts what is not finite")


def test_a_checkpoint_that_is_incomplete_or_not_finite_is_refused(folder, model32):
    before = model32.sha256
    rewrite(folder, UNET, lambda state: state | {"conv_in.bias": torch.full((16,), float("nan"))})
    with pytest.raises(InputError, match=r"the first is unet conv_in.bias"), checkpoint(model32, str(folder)):
        pass
    rewrite(folder, UNET, lambda state: {key: value for key, value in state.items() if key != "conv_in.bias"})
    with pytest.raises(InputError, match=r"lacks 1 weights \(conv_in.bias"), checkpoint(model32, str(folder)):
        pass
    model32.__dict__.pop("sha256")
    assert model32.sha256 == before


def test_a_u_net_whose_self_attention_reads_the_text_is_refused(folder):
    config = UNet2DConditionModel.load_config(folder, subfolder="unet") | {"only_cross_attention": True}
    UNet2DConditionModel.from_config(config).save_pretrained(folder / "unet")
    refuse(folder, "the text is read by the layer", "attn1.to_", "accepted are attn2.to_k and attn2.to_v")


# Files


def in_half(folder, variant, **how):
    pipe = StableDiffusionPipeline.from_pretrained(folder).to(torch.float16)
    shutil.rmtree(folder)
    pipe.save_pretrained(folder, variant=variant, **how)


@pytest.mark.parametrize("how", [{}, {"max_shard_size": "60KB"}])
@pytest.mark.parametrize("variant", ["fp16", "bf16"])
def test_files_of_half_precision_are_read_where_there_are_no_others(folder, model32, capfd, variant, how):
    in_half(folder, variant, **how)
    capfd.readouterr()
    model = load(folder)
    assert model.dtype == torch.float32
    assert "rror" not in capfd.readouterr().err
    for name, value in model.unet.state_dict().items():
        assert torch.equal(value, model32.unet.state_dict()[name].half().float()), name


def test_files_of_full_precision_are_read_where_there_are_both(folder, model32):
    (folder / "unet/diffusion_pytorch_model.fp16.safetensors").write_bytes(b"not read")
    assert load(folder).sha256 == model32.sha256


def test_the_variant_that_is_named_is_read(folder, model32):
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    pipe.unet.conv_in.bias.data.add_(1)
    pipe.save_pretrained(folder, variant="mine")
    name = "conv_in.bias"
    for variant, bias in ((None, model32.unet.conv_in.bias), ("mine", model32.unet.conv_in.bias + 1)):
        model = open_model(ModelFiles(str(folder), variant=variant), torch.device("cpu"))
        assert_close(model.unet.state_dict()[name], bias.cpu())
    with pytest.raises(WeightsUnavailable, match="other"):
        open_model(ModelFiles(str(folder), variant="other"))


def test_a_revision_is_handed_on_for_a_hub_id_and_refused_for_a_folder(folder, monkeypatch):
    with pytest.raises(InputError, match="--revision v2 is of no use for the folder"):
        open_model(ModelFiles(str(folder), revision="v2"))
    asked = []

    def nowhere(source, **how):
        asked.append((source, how))
        raise OSError("no hub")

    monkeypatch.setattr("attribution.diffusion.networks.DiffusionPipeline.load_config", nowhere)
    with pytest.raises(WeightsUnavailable, match="no hub"):
        open_model(ModelFiles("someone/model", revision="v2"))
    assert asked == [("someone/model", {"revision": "v2"})]


def test_a_pipeline_of_bin_files_alone_is_read_and_nothing_in_them_is_unpickled(folder, model32, tmp_path):
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    shutil.rmtree(folder)
    pipe.save_pretrained(folder, safe_serialization=False)
    bins = {
        UNET: pipe.unet,
        VAE: pipe.vae,
        TEXT.replace("model.s", "pytorch_model.s"): pipe.text_encoder,
    }
    for file, part in bins.items():  # transformers writes safetensors alone
        path = folder / file.replace(".safetensors", ".bin")
        torch.save(part.state_dict(), path)
        for other in path.parent.glob("*.safetensors"):
            other.unlink()
    assert load(folder).sha256 == model32.sha256

    class Trap:
        def __reduce__(self):
            return ((tmp_path / "sprung").touch, ())

    for file in bins:
        path = folder / file.replace(".safetensors", ".bin")
        kept = path.read_bytes()
        torch.save({"x": Trap()}, path)
        with pytest.raises(WeightsUnavailable, match="could be loaded"):
            load(folder)
        path.write_bytes(kept)
    assert not (tmp_path / "sprung").exists()


def test_a_pipeline_that_lacks_a_part_is_refused_in_a_sentence(folder):
    shutil.rmtree(folder / "vae")
    with pytest.raises(WeightsUnavailable, match="no Stable Diffusion pipeline could be loaded from") as caught:
        load(folder)
    assert "\n" not in str(caught.value)
