"""The training of the embedded GroundingDINO: what is asked, matching, losses, the folder, the report's figures."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from attribution.query.grounding import Detection, build, open_detector, token_spans
from attribution.query.labels import caption_of
from attribution.scenes.compose import SEEN, WORLDS, make_scenes
from attribution.scenes.detected import Asked, recall_of
from attribution.scenes.detector import (
    ABSENT,
    CONFIG,
    Batches,
    DetectorArgs,
    foreign_names,
    labels_for,
    make_tokenizer,
    shares,
    write,
)
from attribution.scenes.matching import detection_loss, match, stages
from attribution.scenes.names import OBJECTS

pytestmark = pytest.mark.filterwarnings("ignore:Importing from timm", "ignore:torch.meshgrid", "ignore:.*cuda.amp")
SPANS = [slice(1, 3), slice(4, 5)]
TRUTH = torch.tensor([[0.25, 0.25, 0.4, 0.4], [0.7, 0.7, 0.5, 0.5]])


def output(order, sure=6.0):
    """Logits (3, 7) and boxes (3, 4) of three queries, the first two of which are the objects in `order`."""
    logits, boxes = torch.full((3, 7), -sure), torch.full((3, 4), 0.1)
    for query, number in enumerate(order):
        logits[query, SPANS[number]] = sure
        boxes[query] = TRUTH[number]
    padded = torch.full((3, 256), -torch.inf)
    padded[:, :7] = logits
    return padded, boxes


def test_every_name_is_read_without_unknown_pieces():
    tokenizer, names = make_tokenizer(), [*OBJECTS, *foreign_names()[:50]]
    for name in names:
        text, spans = caption_of([name])
        (span,) = token_spans(tokenizer, text, spans)
        assert "[UNK]" not in tokenizer(text).tokens()[span]


def test_a_picture_is_asked_for_its_names_and_some_others():
    foreign, rng = foreign_names(), np.random.default_rng(0)
    assert not set(foreign) & set(OBJECTS)
    asked = [labels_for(["cat", "red apple"], foreign, rng) for _ in range(200)]
    for labels in asked:
        assert {"cat", "red apple"} <= set(labels)
        assert len(labels) == len(set(labels)) <= 2 + ABSENT
    assert {len(labels) for labels in asked} == set(range(2, 3 + ABSENT))
    assert any(set(labels) & set(foreign) for labels in asked)


@pytest.mark.parametrize("side", WORLDS)
def test_boxes_are_shares_and_turn_with_the_picture(side):
    scene = make_scenes("train", 1, world=WORLDS[side])[0]
    plain, mirrored = shares(scene, False), shares(scene, True)
    x0, y0, x1, y1 = scene.objects[0].box
    expected = torch.tensor([x0 + x1, y0 + y1, 2 * (x1 - x0), 2 * (y1 - y0)]) / (2 * side)
    torch.testing.assert_close(plain[0], expected)
    torch.testing.assert_close(mirrored[:, 0], 1 - plain[:, 0])
    assert torch.equal(mirrored[:, 1:], plain[:, 1:])


def test_training_pictures_are_as_large_as_the_detector_sees_them():
    batches = Batches(DetectorArgs(scenes=4), make_tokenizer())
    pictures, captions, tokens, wanted = batches.draw(4, torch.Generator().manual_seed(0))
    assert pictures.shape == (4, 3, SEEN.side, SEEN.side)
    assert len(captions) == len(tokens) == len(wanted) == 4
    assert all(((boxes > 0) & (boxes < 1)).all() for boxes in wanted)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_each_object_is_matched_with_the_query_that_has_it(order):
    logits, boxes = output(order)
    queries, objects = match(logits[:, :7], boxes, SPANS, TRUTH)
    assert dict(zip(queries, objects, strict=True)) == dict(enumerate(order))


def test_the_loss_rises_with_each_mistake():
    def loss(logits, boxes):
        return float(detection_loss(logits[None], boxes[None], [SPANS], [TRUTH]))

    logits, boxes = output((0, 1))
    right = loss(logits, boxes)
    assert right == pytest.approx(0, abs=0.01)
    assert loss(*output((1, 0))) == pytest.approx(right)
    assert loss(logits, boxes + 0.05) > right
    assert loss(output((0, 1), sure=1.0)[0], boxes) > right
    extra = logits.clone()
    extra[2, 4] = 6.0
    assert loss(extra, boxes) > right


def test_a_picture_without_objects_has_a_loss():
    logits, boxes = output((0, 1))
    assert float(detection_loss(logits[None], boxes[None], [[]], [torch.zeros(0, 4)])) > 1


def test_the_folder_is_the_network_in_half_precision(tmp_path):
    """Losses reach the encoder's proposals and every layer; what is written answers as the first decoder layer does."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    config = {**CONFIG, "bert": {**CONFIG["bert"], "vocab_size": len(tokenizer)}}
    network = build(config, tmp_path).train()
    text, spans = caption_of(["cat", "red apple"])
    tokens = token_spans(tokenizer, text, spans)
    made = stages(network, torch.randn(2, 3, SEEN.side, SEEN.side), [text, text])
    assert len(made) == 1 + CONFIG["dec_layers"]
    torch.stack([detection_loss(*each, [tokens] * 2, [TRUTH] * 2) for each in made]).sum().backward()
    still = {name for name, value in network.named_parameters() if value.requires_grad and value.grad is None}
    assert still == set()
    write(network, network.state_dict(), config, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()) == {**config, "dec_layers": 1}
    again = open_detector(str(tmp_path), torch.device("cpu")).network
    rounded = {name: value.half().float() for name, value in network.state_dict().items()}
    for name, value in again.state_dict().items():
        assert torch.equal(rounded[name], value), name
    network.load_state_dict(rounded)
    picture = torch.randn(1, 3, SEEN.side, SEEN.side)
    with torch.no_grad():
        logits, boxes = stages(network.eval(), picture, [text])[1]
        answer = again(picture, captions=[text])
    seen = torch.isfinite(logits)
    torch.testing.assert_close(answer["pred_logits"][seen], logits[seen])
    torch.testing.assert_close(answer["pred_boxes"], boxes)


def test_recall_counts_names_and_false_boxes():
    class Fixed:
        def detect(self, picture, labels, threshold):
            assert labels == ["cat", "dog", "bus", "key", "owl"]
            found = [("cat", (0, 0, 10, 10)), ("dog", (0, 0, 10, 10)), ("bus", (0, 0, 9, 9)), ("bus", (5, 5, 9, 9))]
            return [Detection(label, 0.9, tuple(map(float, box))) for label, box in found]

    there = {"cat": (0.0, 0.0, 10.0, 12.0), "dog": (30.0, 30.0, 40.0, 40.0)}
    asked = [Asked(Image.new("RGB", (64, 64)), there, ["bus", "key", "owl"])] * 2
    assert recall_of(Fixed(), asked, 0.3) == {"threshold": 0.3, "recall": 0.5, "false": 2.0}
