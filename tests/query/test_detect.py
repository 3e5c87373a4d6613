"""GroundingDINO: loading of its checkpoints, what is made of its output, labels and prompts."""

import json

import numpy as np
import pytest
import torch
from groundingdino.config import GroundingDINO_SwinT_OGC as published
from PIL import Image
from safetensors.torch import save_file
from transformers import BertTokenizer

from attribution.errors import InputError, WeightsUnavailable
from attribution.query import grounding
from attribution.query.grounding import Detection, build, open_detector, read, token_spans
from attribution.query.labels import caption_of, check_labels, parse_labels, phrases

pytestmark = pytest.mark.filterwarnings("ignore:Importing from timm", "ignore:torch.meshgrid", "ignore:.*cuda.amp")

WORDS = ["red", "apple", "motorcycle", "cat"]
SMALL = {
    "enc_layers": 1,
    "dec_layers": 2,
    "dim_feedforward": 64,
    "num_queries": 6,
    "side": 64,
    "longest": 128,
    "swin": {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 4},
    "bert": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32},
}


@pytest.fixture(scope="module")
def tokenizer():
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "?", *"abcdefghijklmnopqrstuvwxyz"]
    pieces = [*special, *("##" + letter for letter in special[7:]), *WORDS]
    return BertTokenizer(vocab={piece: number for number, piece in enumerate(pieces)})


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    """The package's own configuration with smaller numbers, and a checkpoint as the published one is."""
    folder = tmp_path_factory.mktemp("detector")
    tokenizer.save_pretrained(folder)
    config = {name: value for name, value in vars(published).items() if not name.startswith("_")} | SMALL
    config["bert"]["vocab_size"] = len(tokenizer)
    (folder / "config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    state = build(config, folder).state_dict()
    held = {f"module.{name}": value for name, value in state.items()}
    held["module.bert.embeddings.position_ids"] = torch.arange(512)[None]
    held["module.label_enc.weight"] = torch.zeros(2001, 256)
    torch.save({"model": held}, folder / "model.pth")
    return folder


def picture(width=64, height=48):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


def test_a_checkpoint_of_the_published_form_loads_and_detects(folder):
    detector = open_detector(str(folder), torch.device("cpu"))
    found = detector.detect(picture(), ["Cat", "red  apple"], threshold=0.0)
    assert found
    assert {each.label for each in found} <= {"cat", "red apple"}
    assert [each.score for each in found] == sorted((each.score for each in found), reverse=True)
    for each in found:
        x0, y0, x1, y1 = each.box
        assert 0 <= x0 <= x1 <= 64
        assert 0 <= y0 <= y1 <= 48
    assert not detector.detect(picture(), ["cat"], threshold=1.0)


def test_weights_of_a_checkpoint_are_the_ones_used(folder):
    state = torch.load(folder / "model.pth", weights_only=True)["model"]
    network = open_detector(str(folder), torch.device("cpu")).network
    for name, value in network.state_dict().items():
        assert torch.equal(value, state[f"module.{name}"]), name


def test_shared_weights_need_only_one_of_their_names(folder, tmp_path):
    state = {
        k.removeprefix("module."): v for k, v in torch.load(folder / "model.pth", weights_only=True)["model"].items()
    }
    network = open_detector(str(folder), torch.device("cpu")).network
    places = {name: value.data_ptr() for name, value in network.state_dict().items()}
    first = {place: name for name, place in places.items()}
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    save_file({name: state[name].clone() for name in first.values()}, tmp_path / "model.safetensors")
    again = open_detector(str(tmp_path), torch.device("cpu"))
    assert again.detect(picture(), ["cat"], 0.0) == open_detector(str(folder), torch.device("cpu")).detect(
        picture(), ["cat"], 0.0
    )


@pytest.mark.parametrize("break_it", ["missing", "unknown", "no file"])
def test_what_does_not_fit_is_refused_by_name(folder, tmp_path, break_it):
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    state = torch.load(folder / "model.pth", weights_only=True)["model"]
    if break_it == "missing":
        del state["module.feat_map.weight"]
    if break_it == "unknown":
        state["module.extra.weight"] = torch.zeros(1)
    if break_it != "no file":
        torch.save(state, tmp_path / "model.pth")
    what = {"missing": "feat_map.weight is missing", "unknown": "extra.weight is unknown", "no file": "has no"}[
        break_it
    ]
    with pytest.raises(WeightsUnavailable, match=what):
        open_detector(str(tmp_path), torch.device("cpu"))


def test_without_the_hub_one_line_says_what_to_do(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsUnavailable, match="with --detector") as caught:
        open_detector()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("width", "name"), [(96, "SwinT"), (128, "SwinB")])
def test_a_published_checkpoints_size_is_read_off_its_weights(tmp_path, width, name):
    weights = {"module.backbone.0.patch_embed.proj.weight": torch.zeros(width, 3, 4, 4)}
    torch.save({"model": weights}, tmp_path / "groundingdino.pth")
    config, folder, _ = grounding._source(str(tmp_path / "groundingdino.pth"))
    assert config["swin"]["embed_dim"] == width
    assert folder is None
    assert name in config["backbone"].replace("swin_T", "SwinT").replace("swin_B", "SwinB")


def test_detections_of_constructed_logits():
    """Six queries, two labels; tokens: [CLS] red apple . cat . [SEP], padding at minus infinity."""
    spans = [slice(1, 3), slice(4, 5)]
    logits = torch.full((6, 10), -9.0)
    logits[:, 7:] = -torch.inf
    logits[0, 1], logits[0, 2] = -3.0, 2.0  # an apple, by its second token
    logits[1, 4] = 1.0  # a cat
    logits[2, 2] = 1.5  # the apple again, a little beside it
    logits[3, 2] = 1.0  # another apple, elsewhere
    logits[4, 4] = -1.0  # a cat under the threshold
    logits[5, 6] = 5.0  # [SEP] is nobody's
    boxes = torch.tensor(
        [
            [0.25, 0.25, 0.5, 0.5],
            [0.5, 0.5, 2.0, 2.0],  # reaches beyond the picture
            [0.27, 0.25, 0.5, 0.5],
            [0.75, 0.75, 0.5, 0.5],
            [0.25, 0.25, 0.5, 0.5],
            [0.25, 0.25, 0.5, 0.5],
        ]
    )
    found = read(logits, boxes, ["red apple", "cat"], spans, 0.5, (200, 100))
    sigmoid = [float(torch.sigmoid(torch.tensor(value))) for value in (2.0, 1.0)]
    assert [each.label for each in found] == ["red apple", "cat", "red apple"] or [each.label for each in found] == [
        "red apple",
        "red apple",
        "cat",
    ]
    assert Detection("red apple", sigmoid[0], (0.0, 0.0, 100.0, 50.0)) == found[0]
    assert {each.box for each in found} == {
        (0.0, 0.0, 100.0, 50.0),
        (0.0, 0.0, 200.0, 100.0),
        (100.0, 50.0, 200.0, 100.0),
    }
    assert read(logits, boxes, ["red apple", "cat"], spans, 1.0, (200, 100)) == []


def test_pictures_are_resized_by_their_shorter_side(folder):
    detector = open_detector(str(folder), torch.device("cpu"))
    assert detector.prepare(picture(32, 32)).shape == (3, 64, 64)
    assert detector.prepare(picture(30, 45)).shape == (3, 96, 64)
    assert detector.prepare(picture(400, 40)).shape[2] <= 128


def test_captions_and_the_tokens_of_labels(tokenizer):
    text, spans = caption_of(["red apple", "cat"])
    assert text == "red apple . cat ."
    tokens = tokenizer(text).tokens()
    assert [tokens[span] for span in token_spans(tokenizer, text, spans)] == [["red", "apple"], ["cat"]]
    with pytest.raises(InputError, match="tokens long; accepted are up to 256"):
        token_spans(tokenizer, *caption_of(["zz " * 150]))


@pytest.mark.parametrize(
    ("prompt", "named"),
    [
        ("a flat drawing of a red apple and a motorcycle on a blue background", ["red apple", "motorcycle"]),
        ("An outlined drawing of grapes, a stop sign and a cat on a gray background", ["grapes", "stop sign", "cat"]),
        ("a photo of two dogs with a frisbee in the park; the dogs", ["dogs", "frisbee", "park"]),
        ("a drawing", []),
        ("", []),
    ],
)
def test_the_things_that_a_prompt_names(prompt, named):
    found = phrases(prompt)
    assert found == named


def test_labels_typed_in_one_line():
    assert parse_labels("Apple . stop sign, cat;; ") == ["Apple", "stop sign", "cat"]
    assert check_labels(["Apple", "apple ", "stop  sign"]) == ["apple", "stop sign"]


@pytest.mark.parametrize("labels", [[], [""], ["a.b"], ["what?"], ["a\x00b"], ["x"] * 51 + [str(n) for n in range(51)]])
def test_labels_that_cannot_be_looked_for(labels):
    with pytest.raises(InputError, match="accepted are 1 to 50 names"):
        check_labels(labels)


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan"), float("inf")])
def test_thresholds_are_shares(folder, threshold):
    with pytest.raises(InputError, match="accepted are 0 to 1"):
        open_detector(str(folder), torch.device("cpu")).detect(picture(), ["cat"], threshold)
