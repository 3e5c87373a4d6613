"""A tiny random pipeline, a folder of eight captioned pictures, and an index of the two."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browser import launch, served, visit, visit_in
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from networks import tiny_clip, tiny_dinov2, tiny_mappers, tiny_towers, tiny_vit
from PIL import Image
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from attribution.answers.kept import RunFolder
from attribution.cli import main
from attribution.diffusion.noise import NoiseSettings
from attribution.diffusion.pipeline import Model
from attribution.index.build import BuildProgress, build
from attribution.index.data import DataSettings
from attribution.index.index import Index
from attribution.index.work import BuildSettings, ExtendSettings
from attribution.methods import attribute, fitting
from attribution.methods.answer import AttributeSettings, Attribution
from attribution.query.query import Query
from attribution.ui.studio import Studio
from attribution.unlearning.fisher import FisherSettings
from attribution.unlearning.projection import GradientSettings
from attribution.unlearning.step import UnlearnSettings

SIDE = 32  # px, of the tiny world's pictures: 8x8 latent cells of 4 px
CAPTIONS = [
    "a red apple on a blue ground",
    "a green bus",
    "two birds above a red bus",
    "an apple and a bird",
    "a blue bird",
    "a key on a green ground",
    "a red key beside a green apple",
    "nothing but blue",
]
CHECKPOINTS = {"first": 11, "second": 12}  # seeds
ALL_GRADIENTS = ("loss", "d-trak", "influence", "influence+")


def pytest_addoption(parser: pytest.Parser) -> None:
    """`pytest --device cuda` runs the tests' models there."""
    parser.addoption("--device", default="cpu", help="where the tests' models are: cpu, cuda or mps")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Files with a browser begin, as they take longest; bits are promised on the CPU alone."""
    long = {item.path for item in items if "chromium" in getattr(item, "fixturenames", ())}
    items.sort(key=lambda item: item.path not in long)
    if (where := config.getoption("--device")) != "cpu":
        skip = pytest.mark.skip(reason=f"{where} does not add in the same order each time")
        for item in items:
            if item.get_closest_marker("exact_bits"):
                item.add_marker(skip)


def pytest_configure(config: pytest.Config) -> None:
    """Workers share the cores, and so do the processes that they start."""
    if workers := getattr(config, "workerinput", {}).get("workercount"):
        torch.set_num_threads(max(1, torch.get_num_threads() // workers))
        os.environ["OMP_NUM_THREADS"] = str(torch.get_num_threads())


@pytest.fixture(scope="session", autouse=True)
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """Where models are, those too that the package places itself."""
    where = torch.device(request.config.getoption("--device"))
    with pytest.MonkeyPatch.context() as patch:
        for room in ("diffusion.pipeline", "index.features", "query.grounding"):
            patch.setattr(f"attribution.{room}.default_device", lambda: where)
        yield where


@pytest.fixture(scope="session", autouse=True)
def _caches_of_their_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or writes a cache of the machine, or asks a hub."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")  # for other processes; this one has read it already
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        patch.setenv("HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("datasets")))
        patch.setenv("ATTRIBUTION_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def make_tiny_tokenizer() -> CLIPTokenizer:
    """Merges learned from the captions; ids by sorted letters and merges, as the trainer's own differ by process."""
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    untrained = CLIPTokenizer(vocab={token: number for number, token in enumerate(tokens)}, merges=[])
    trained = untrained.train_new_from_iterator(CAPTIONS, vocab_size=600)
    merges = [tuple(pair) for pair in json.loads(trained.backend_tokenizer.to_str())["model"]["merges"]]
    tokens += dict.fromkeys("".join(pair) for pair in merges)
    vocab = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=12)


def save_tiny_pipeline(folder: Path, prediction_type: str, seed: int = 0) -> Path:
    """A random StableDiffusionPipeline: 32 px, 4x8x8 latents, cross-attention at 8x8 and 4x4."""
    torch.manual_seed(seed)
    tokenizer = make_tiny_tokenizer()
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            projection_dim=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=SIDE,
        mid_block_add_attention=False,
        scaling_factor=1.7,
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        mid_block_type=None,
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=8,
    )
    schedule = "scaled_linear" if prediction_type == "epsilon" else "squaredcos_cap_v2"
    pipe = StableDiffusionPipeline(
        vae=vae.eval(),
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer,
        unet=unet.eval(),
        scheduler=DDIMScheduler(
            num_train_timesteps=1000,
            beta_schedule=schedule,
            prediction_type=prediction_type,
            timestep_spacing="trailing",
            clip_sample=False,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(folder)
    return folder


def random_picture(seed: int, size: tuple[int, int] = (SIDE, SIDE)) -> Image.Image:
    """Smooth coloured noise, RGB."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def build_all(out: Path, model: Model, settings: BuildSettings) -> Path:
    """Build an index to its end."""
    for _ in build(out, model, settings):
        pass
    return out


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An imagefolder of eight captioned pictures."""
    folder = tmp_path_factory.mktemp("pictures")
    rows = [{"file_name": f"p{number}.png", "text": text} for number, text in enumerate(CAPTIONS)]
    for number, row in enumerate(rows):
        random_picture(number).save(folder / row["file_name"])
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def tiny_settings(pictures: Path) -> BuildSettings:
    """How the tiny indexes are built: 4 timesteps x 2 noises, 37 Fisher samples (more than two passes)."""
    data = DataSettings(train_data_dir=pictures)
    return BuildSettings(data, NoiseSettings(4, 2, 5), FisherSettings(samples=37, timesteps=7, seed=6), batch=6)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny v-prediction pipeline."""
    return save_tiny_pipeline(tmp_path_factory.mktemp("tiny") / "model", "v_prediction")


@pytest.fixture(scope="session")
def once() -> Callable[[object, Callable[[], Any]], Any]:
    """Makes what has a key once; pytest ends a session's fixture whenever its parameter changes, twice in each file."""
    made: dict[object, Any] = {}

    def get(key: object, make: Callable[[], Any]) -> Any:
        if key not in made:
            made[key] = make()
        return made[key]

    return get


@pytest.fixture(scope="session", params=["epsilon", "v_prediction"])
def model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, device: torch.device, once: Callable
) -> Model:
    """A tiny model in float64, of each prediction type in turn."""

    def make() -> Model:
        folder = save_tiny_pipeline(tmp_path_factory.mktemp(request.param) / "model", request.param)
        return Model.load(folder, device, torch.float64)

    made: Model = once(request.param, make)
    return made


@pytest.fixture(scope="session")
def index(
    model: Model, tiny_settings: BuildSettings, tmp_path_factory: pytest.TempPathFactory, once: Callable
) -> Index:
    """The index of the eight pictures and the float64 model."""

    def make() -> Index:
        return Index.open(build_all(tmp_path_factory.mktemp("index") / "index", model, tiny_settings))

    made: Index = once(("index", model.source), make)
    return made


@pytest.fixture(scope="session")
def model32(tiny_folder: Path, device: torch.device) -> Model:
    """The tiny v-prediction model in float32, as the application loads it."""
    return Model.load(tiny_folder, device)


@pytest.fixture(scope="session")
def index_folder(model32: Model, tiny_settings: BuildSettings, tiny_folder: Path) -> Path:
    """The folder of the float32 model's index, beside it. Do not change it."""
    return build_all(tiny_folder.parent / "index", model32, tiny_settings)


@pytest.fixture(scope="session")
def index32(index_folder: Path) -> Index:
    """The float32 model's index, opened."""
    return Index.open(index_folder)


@pytest.fixture
def query() -> Query:
    """A picture that is none of the eight."""
    return Query("a red bird and a blue key", random_picture(99))


# Indexes that hold all they may hold


@pytest.fixture(scope="session")
def extend_all(tiny_settings: BuildSettings) -> Callable[..., Iterator[BuildProgress] | None]:
    """Adds to an index folder, to the end or lazily."""

    def add(
        folder: Path, model: Model, dimension: int = 64, lazily: bool = False, **asked: Any
    ) -> Iterator[BuildProgress] | None:
        asked = asked or {"gradients": ("loss", "d-trak")}
        settings = ExtendSettings(projection=GradientSettings(dimension=dimension), **asked)
        steps = build(folder, model, tiny_settings, settings)
        if lazily:
            return steps
        for _ in steps:
            pass
        return None

    return add


@pytest.fixture(scope="session")
def full_folder(index_folder: Path, model32: Model, extend_all: Callable[..., None]) -> Path:
    """A copy of the float32 model's index with everything added; its networks lie beside it. Do not change it."""
    base = index_folder.parent
    folder = Path(shutil.copytree(index_folder, base / "full"))
    clip, dino = tiny_clip(base / "clip", make_tiny_tokenizer()), tiny_vit(base / "dino")
    weights = {"clip": clip, "clip-text": clip, "dino": dino, "dinov2": tiny_dinov2(base / "dinov2")}
    weights |= {**tiny_mappers(base), "fast": tiny_towers(base)}
    extend_all(
        folder,
        model32,
        fisher_all=True,
        ekfac=True,
        features=tuple(weights),
        feature_weights={name: str(path) for name, path in weights.items()},
        gradients=ALL_GRADIENTS,
    )
    return folder


@pytest.fixture(scope="session")
def full_index(full_folder: Path) -> Index:
    """The index that holds everything, opened."""
    return Index.open(full_folder)


@pytest.fixture
def plain_copy(index_folder: Path, tmp_path: Path) -> Path:
    """A copy of the float32 model's index that a test may change."""
    return Path(shutil.copytree(index_folder, index_folder.parent / f"copy-of-{tmp_path.name}"))


@pytest.fixture(scope="session")
def exact_index(
    index: Index,
    model: Model,
    extend_all: Callable[..., None],
    tmp_path_factory: pytest.TempPathFactory,
    once: Callable,
) -> Index:
    """The float64 model's index with EK-FAC and unprojected gradients."""

    def make() -> Index:
        folder = Path(shutil.copytree(index.path, tmp_path_factory.mktemp("exact") / "index"))
        extend_all(folder, model, dimension=8192, ekfac=True, gradients=ALL_GRADIENTS)
        return Index.open(folder)

    made: Index = once(("exact", model.source), make)
    return made


@pytest.fixture(scope="session")
def two_checkpoints(index_folder: Path, model32: Model, extend_all: Callable[..., None]) -> dict[str, Index]:
    """Indexes with gradients of a first checkpoint, of a second one, and of both."""
    base = index_folder.parent
    named = {name: str(save_tiny_pipeline(base / name, "v_prediction", seed)) for name, seed in CHECKPOINTS.items()}
    asked = {"first": (named["first"],), "second": (named["second"],), "both": tuple(named.values())}
    opened = {}
    for name, checkpoints in asked.items():
        folder = Path(shutil.copytree(index_folder, base / f"index-{name}"))
        extend_all(folder, model32, gradients=("loss", "d-trak"), checkpoints=checkpoints)
        opened[name] = Index.open(folder)
    return opened


@pytest.fixture(scope="module")
def few_gradients() -> Iterator[None]:
    """Candidates are asked with few gradients: how many there are is not what is tested."""
    with pytest.MonkeyPatch.context() as patch:
        quick = AttributeSettings(unlearn=UnlearnSettings(timesteps=3, noises=1))
        patch.setattr("attribution.evaluate.candidates.AttributeSettings", lambda: quick)
        yield


# The command line


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], index_folder: Path) -> Callable[..., str]:
    """Run a command on the tiny index, which must refuse it in one line."""

    def run(*arguments: str, index: Path | None = index_folder) -> str:
        status = main([*arguments, *(("--index", str(index)) if index else ())])
        captured = capsys.readouterr()
        assert (status, captured.out) == (2, "")
        assert captured.err.startswith("error: ")
        assert captured.err.count("\n") == 1
        return captured.err

    return run


# The page


UNLEARN = UnlearnSettings(step_size=0.3, timesteps=3, noises=1, batch=4)


@pytest.fixture
def studio(model32: Model, full_index: Index, tmp_path: Path) -> Studio:
    """A studio of the tiny model, with a folder of runs of its own."""
    return Studio(model32, full_index, RunFolder(tmp_path / "runs"))


@pytest.fixture(scope="session")
def answers(model32: Model, full_index: Index) -> dict[str, Attribution]:
    """Answers of three methods, the main one first."""
    query, made = Query("a <b>red</b> bird", random_picture(99)), {}
    for method in ("unlearning", "clip", "pixel"):
        settings = fitting(AttributeSettings(top_k=4, unlearn=UNLEARN), method)
        *_, made[method] = attribute(model32, full_index, query, settings)
    return made


@pytest.fixture(scope="session")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("served")
    with served(folder / "log.txt", folder / "gradio") as url:
        yield url


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = launch(playwright)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def window(chromium: Browser) -> Iterator[BrowserContext]:
    """Where one visitor follows the other."""
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    yield context
    context.close()


@pytest.fixture
def page(window: BrowserContext, address: str) -> Iterator[Page]:
    yield from visit_in(window, address)


@pytest.fixture
def other(chromium: Browser, address: str) -> Iterator[Page]:
    yield from visit(chromium, address)
