"""Train the embedded GroundingDINO, or report how well it finds the objects of held-out scenes and generated pictures.

    python -m attribution.scenes.detector --work WORK --minutes 60
    python -m attribution.scenes.detector --stage report

groundingdino-py has no training code; `matching.py` has the losses: Hungarian matching, focal loss on the tokens of a
label, L1 and generalised IoU of its box, on every decoder layer and on the encoder's proposals. Each picture is asked
for the names in it and some that are not, among them names that this world does not have; half of the pictures are
decoded from noisy latents, as generated ones. It looks at pictures of 64 px (SEEN), which it reduces the world's to.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import emoji
import numpy as np
import torch
import tyro
from safetensors.torch import save_file
from torch import Tensor
from torchvision.ops import box_convert
from torchvision.transforms.functional import normalize, resize
from transformers import BertTokenizer

from attribution.diffusion.pipeline import Model
from attribution.query.grounding import DEVIATION, MEAN, build, open_detector, token_spans
from attribution.query.labels import caption_of
from attribution.scenes.compose import SEEN, Scene, make_scenes
from attribution.scenes.detected import generated, heldout, recall_of
from attribution.scenes.matching import detection_loss, stages
from attribution.scenes.names import OBJECTS, object_name
from attribution.scenes.pictures import encode, load_pixels, to_unit
from attribution.scenes.trainer import Recipe, Trainer

CONFIG: dict[str, Any] = {
    "swin": {
        "pretrain_img_size": SEEN.side,
        "patch_size": 4,
        "embed_dim": 32,
        "depths": [2, 2, 2],
        "num_heads": [2, 2, 4],
        "window_size": 4,
        "drop_path_rate": 0.0,
    },
    "bert": {
        "hidden_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 192,
        "max_position_embeddings": 64,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    },
    "position_embedding": "sine",
    "pe_temperatureH": 20,
    "pe_temperatureW": 20,
    "return_interm_indices": [1, 2],
    "enc_layers": 1,
    "dec_layers": 2,
    "pre_norm": False,
    "dim_feedforward": 384,
    "hidden_dim": 256,
    "dropout": 0.0,
    "nheads": 8,
    "num_queries": 12,
    "query_dim": 4,
    "num_patterns": 0,
    "num_feature_levels": 2,
    "enc_n_points": 4,
    "dec_n_points": 4,
    "two_stage_type": "standard",
    "two_stage_bbox_embed_share": False,
    "two_stage_class_embed_share": False,
    "transformer_activation": "relu",
    "dec_pred_bbox_embed_share": True,
    "embed_init_tgt": True,
    "max_text_len": 256,
    "text_encoder_type": "bert",
    "use_text_enhancer": True,
    "use_fusion_layer": True,
    "use_text_cross_attention": True,
    "text_dropout": 0.0,
    "fusion_dropout": 0.0,
    "fusion_droppath": 0.0,
    "sub_sentence_present": True,
    "side": SEEN.side,
    "longest": 2 * SEEN.side,
}
SHIPPED_LAYERS = 1  # of the decoder's: each is trained to answer by itself, and the first does
ABSENT = 4  # at most so many names in a caption that are not in the picture
FOREIGN = 0.25  # share of those that this world does not have
LATENT_NOISE = 0.35  # at most, of the latents that half of the pictures are decoded from


@dataclass
class DetectorArgs:
    """Train the detector, or report on it.

    Attributes:
        stage: what to do.
        work: folder of the checkpoint.
        minutes: length of the schedule, over all sittings.
        out: the detector's folder.
        model: the embedded model, whose decoder and pictures are used.
        batch: pictures a step.
        learning_rate: peak learning rate.
        scenes: of the training split that are composed.
        heldout: scenes that the report asks about.
        pictures: generated pictures that the report asks about.
        threshold: the report's, which is written into the folder; 0 is the folder's own.
        seed: of weights, batches and captions.
    """

    stage: Literal["train", "report"] = "train"
    work: Path = Path("work")
    minutes: float = 60.0
    out: Path = Path("assets/emoji-scenes/detector")
    model: Path = Path("assets/emoji-scenes/model")
    batch: int = 16
    learning_rate: float = 5e-4
    scenes: int = 4096
    heldout: int = 500
    pictures: int = 100
    threshold: float = 0.0
    seed: int = 0


def make_tokenizer() -> BertTokenizer:
    """Word pieces: the words of this world's names, and all letters and digits for other words."""
    characters = "abcdefghijklmnopqrstuvwxyz0123456789"
    words = sorted({word for name in OBJECTS for word in name.split()} - set(characters))
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "?"]
    pieces = [*special, *characters, *("##" + letter for letter in characters), *words]
    return BertTokenizer(vocab={piece: number for number, piece in enumerate(pieces)})


def foreign_names() -> list[str]:
    """Names of emoji that this world does not have, of one to three words."""
    named = (object_name(data["en"].strip(":")).lower() for data in emoji.EMOJI_DATA.values())
    plain = {name for name in named if name.replace(" ", "").isascii() and name.replace(" ", "").isalpha()}
    return sorted(name for name in plain - set(OBJECTS) if len(name.split()) <= 3 and len(name) <= 24)


def labels_for(names: list[str], foreign: list[str], rng: np.random.Generator) -> list[str]:
    """What a picture is asked for, shuffled: the names in it and up to ABSENT others."""
    others: list[str] = []
    for _ in range(int(rng.integers(ABSENT + 1))):
        pool = foreign if rng.random() < FOREIGN else list(OBJECTS)
        others.append(pool[int(rng.integers(len(pool)))])
    asked = list(dict.fromkeys([*names, *others]))
    return [asked[place] for place in rng.permutation(len(asked))]


class Batches:
    """Pictures, captions and truth of training batches."""

    def __init__(self, args: DetectorArgs, tokenizer: BertTokenizer) -> None:
        self.tokenizer = tokenizer
        self.scenes = make_scenes("train", args.scenes)
        self.pixels = load_pixels("train", count=args.scenes)
        self.model = Model.load(args.model, torch.device("cpu"))
        self.latents = encode(self.model.vae, to_unit(self.pixels))
        self.foreign = foreign_names()

    def draw(self, size: int, generator: torch.Generator) -> tuple[Tensor, list[str], list[list[slice]], list[Tensor]]:
        """(B, 3, side, side) normalised pictures of SEEN, captions, and the tokens and boxes of their objects."""
        rows = torch.randint(len(self.scenes), (size,), generator=generator)
        rng = np.random.default_rng(int(torch.randint(2**31, (), generator=generator)))
        unit = to_unit(self.pixels[rows])
        decoded = self._decoded(rows[: size // 2], generator)
        pictures = torch.cat([decoded, unit[size // 2 :]])
        mirrored = torch.rand(size, generator=generator) < 0.5
        pictures = torch.where(mirrored[:, None, None, None], pictures.flip(-1), pictures)
        captions, tokens, wanted = [], [], []
        for row, flip in zip(rows.tolist(), mirrored.tolist(), strict=True):
            scene = self.scenes[row]
            names = [placed.name for placed in scene.objects]
            asked = labels_for(names, self.foreign, rng)
            text, spans = caption_of(asked)
            where = dict(zip(asked, token_spans(self.tokenizer, text, spans), strict=True))
            captions.append(text)
            tokens.append([where[name] for name in names])
            wanted.append(shares(scene, flip))
        inputs: Tensor = normalize(resize((pictures + 1) / 2, [SEEN.side]), MEAN, DEVIATION)
        return inputs, captions, tokens, wanted

    @torch.inference_mode()
    def _decoded(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        latents = self.latents[rows]
        strength = LATENT_NOISE * torch.rand(len(rows), 1, 1, 1, generator=generator)
        noisy = latents + strength * torch.randn(latents.shape, generator=generator)
        pictures: Tensor = self.model.vae.decode(noisy).sample
        return pictures.clamp(-1, 1)


def shares(scene: Scene, mirrored: bool) -> Tensor:
    """(n, 4) boxes of a scene's objects: centre and sides, as shares of the picture."""
    placed = torch.tensor([placed.box for placed in scene.objects])
    boxes: Tensor = box_convert(placed.float() / scene.world.side, "xyxy", "cxcywh")
    if mirrored:
        boxes[:, 0] = 1 - boxes[:, 0]
    return boxes


def train(args: DetectorArgs) -> None:
    """Train for the schedule's minutes; each checkpoint writes the folder anew."""
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(args.out)
    config = {**CONFIG, "bert": {**CONFIG["bert"], "vocab_size": len(tokenizer)}}
    network = build(config, args.out).train()
    print(f"{sum(value.numel() for value in network.parameters()) / 1e6:.2f} M parameters", flush=True)
    recipe = Recipe(args.minutes, args.batch, args.learning_rate, warmup_steps=200, checkpoint_minutes=5)
    trainer = Trainer({"detector": network}, args.work / "detector.pt", recipe, args.seed)
    batches = Batches(args, tokenizer)

    def batch_loss(generator: torch.Generator) -> Tensor:
        pictures, captions, tokens, wanted = batches.draw(args.batch, generator)
        made = stages(network, pictures, captions)
        return torch.stack([detection_loss(*each, tokens, wanted) for each in made]).sum()

    def checkpoint(_: Path) -> None:
        averaged = {name.removeprefix("detector."): value for name, value in trainer.ema.items()}
        write(network, averaged, config, args.out)
        open_detector.cache_clear()
        detector = open_detector(str(args.out), torch.device("cpu"))
        print(json.dumps(recall_of(detector, heldout(100), 0.3)), flush=True)

    trainer.run(batch_loss, checkpoint)


def write(network: Any, state: dict[str, Tensor], config: dict[str, Any], out: Path) -> None:
    """Configuration and float16 weights; decoder layers beyond the shipped ones are left out.

    Layers that share their weights are written once.
    """
    left_out = tuple(f"transformer.decoder.layers.{number}." for number in range(SHIPPED_LAYERS, config["dec_layers"]))
    places = {name: value.data_ptr() for name, value in network.state_dict().items()}
    first = {place: name for name, place in reversed(places.items())}
    kept = {name: state[name].half().contiguous() for name in first.values() if not name.startswith(left_out)}
    save_file(kept, out / "model.safetensors")
    write_config({**config, "dec_layers": SHIPPED_LAYERS}, out)


def write_config(config: dict[str, Any], out: Path) -> None:
    """The folder's `config.json`."""
    (out / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def report(args: DetectorArgs) -> dict[str, Any]:
    """Recall and false boxes on held-out scenes and on generated pictures, at the shipped threshold."""
    detector = open_detector(str(args.out), torch.device("cpu"))
    threshold = args.threshold or detector.threshold
    sets = {"heldout": heldout(args.heldout), "generated": generated(Model.load(args.model), args.pictures)}
    measured = {name: recall_of(detector, asked, threshold) for name, asked in sets.items()}
    if args.threshold:
        config = json.loads((args.out / "config.json").read_text(encoding="utf-8"))
        write_config({**config, "threshold": threshold}, args.out)
    return measured


def main(args: DetectorArgs) -> None:
    """Run one stage."""
    if args.stage == "report":
        print(json.dumps(report(args), indent=1))
        return
    args.work.mkdir(parents=True, exist_ok=True)
    train(args)


if __name__ == "__main__":
    main(tyro.cli(DetectorArgs))
