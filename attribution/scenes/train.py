"""Train a world's model: an autoencoder, a tokenizer, then text encoder and U-Net together.

The world of 128 px, which ships, grows from the finished model of 64 px: its scenes are the same at twice the size,
so its autoencoder takes over all levels but the first and keeps near the same latents, and its U-Net and text
encoder go on from there. That small model comes first; it may lie anywhere.

    FIRST="python -m attribution.scenes.train --side 64 --work WORK/64 --out WORK/64/model"
    $FIRST --stage autoencoder --minutes 40
    $FIRST --stage diffusion --minutes 40 --batch 32
    $FIRST --stage cooldown --minutes 10 --batch 32
    $FIRST --stage save

    TRAIN="python -m attribution.scenes.train --work WORK --small WORK/64/model --kept KEPT"
    $TRAIN --stage status          # what there is, and what comes next
    $TRAIN --stage autoencoder --minutes 30 --learning-rate 3e-3
    $TRAIN --stage diffusion --minutes 90 --batch 64
    $TRAIN --stage cooldown --minutes 45 --batch 64 --shift 2
    $TRAIN --stage judge           # how good the pictures are so far
    $TRAIN --stage keep            # what a later sitting needs, into the folder after --kept
    $TRAIN --stage save --out DIR/model
    $TRAIN --stage report --out DIR/model

Every stage resumes from WORK, or from what an earlier sitting kept; minutes are counted over all sittings.
`diffusion` trains at a constant rate and may be stopped and lengthened at will; `cooldown` branches off from
wherever it is. A stage leaves a contact sheet beside each checkpoint.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import tyro
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from attribution.diffusion.pipeline import GenerateSettings
from attribution.scenes.autoencoder import autoencoder_file, finished_autoencoder, train_autoencoder
from attribution.scenes.compose import make_scenes
from attribution.scenes.denoiser import cool_down, finished_pipeline, train_diffusion
from attribution.scenes.judge import Judge, judge_generated, labels, rates, report, seen, train_judge
from attribution.scenes.pictures import load_pixels, reconstruct, save_sheet, to_unit
from attribution.scenes.stages import CHECKPOINTS, KEPT, Stage, TrainArgs
from attribution.scenes.trainer import halved, keep

JUDGED = "judged.json"
BARS = (0.95, 0.90)  # shares of named objects recognised, and of pictures with both
OUTCOMES = {  # what each later step leaves beside the model, and the command that makes it
    "save": ("model/model_index.json", ".scenes.train --stage save"),
    "report": ("report.json", ".scenes.train --stage report"),
    "clip": ("clip/model.safetensors", ".scenes.encoders --stage clip"),
    "dino": ("dino/model.safetensors", ".scenes.encoders --stage dino"),
    "detector": ("detector/model.safetensors", ".scenes.detector"),
    "mappers": ("mappers.json", ".scenes.customise --work DIR, then .scenes.mappers --work DIR"),
    "index": ("index/manifest.json", " index"),
    "floor": ("index/floor.json", " floor"),
    "examples": ("examples", ".scenes.examples"),
}


def judge_so_far(args: TrainArgs) -> None:
    """Print what the judge sees in pictures of new prompts; the judge is trained once, and again for other latents."""
    pipe, path = finished_pipeline(args), args.work / "judge.safetensors"
    judge = Judge(args.world)
    if not path.exists() or path.stat().st_mtime < autoencoder_file(args).stat().st_mtime:
        train = to_unit(load_pixels("train", args.world))
        judge = train_judge(train, reconstruct(pipe.vae, train), labels(make_scenes("train")), args.world)
        save_file(judge.state_dict(), path)
        heldout, truth = to_unit(load_pixels("heldout", args.world)), labels(make_scenes("heldout"))
        print(json.dumps({"judge_on_heldout": rates(seen(judge, heldout), truth)}), flush=True)
    judge.load_state_dict(load_file(path))
    measured = judge_generated(pipe, judge.eval(), replace(GenerateSettings(), guidance=args.guidance))
    save_sheet(measured.pop("pictures")[:96], args.work / "judged.png", columns=16, zoom=1)
    (args.work / JUDGED).write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(measured))


def keep_training(args: TrainArgs) -> None:
    """Write what a later sitting needs to go on: the finished autoencoder, and the diffusion weights so far."""
    args.kept.mkdir(parents=True, exist_ok=True)
    save_file(halved(finished_autoencoder(args).state_dict()), args.kept / "autoencoder.safetensors")
    raw = torch.load(args.work / CHECKPOINTS["diffusion"], weights_only=True)
    keep(raw, args.kept / KEPT, kinds=("raw",))  # its average starts anew: this is to go on from
    cooled = args.work / CHECKPOINTS["cooldown"]
    if cooled.exists():
        keep(torch.load(cooled, weights_only=True), args.kept / "cooldown.safetensors", kinds=("ema",))
    if (args.work / JUDGED).exists():
        shutil.copyfile(args.work / JUDGED, args.kept / JUDGED)


def save_pipeline(args: TrainArgs) -> None:
    """Write the StableDiffusionPipeline folder in float16."""
    pipe = finished_pipeline(args)
    pipe.to(torch.float16).save_pretrained(args.out, safe_serialization=True)
    # vocab.json and merges.txt, for older readers
    pipe.tokenizer.backend_tokenizer.model.save(str(args.out / "tokenizer"))
    size = sum(path.stat().st_size for path in args.out.rglob("*") if path.is_file())
    print(f"{args.out}: {size / 1e6:.1f} MB")


def print_report(args: TrainArgs) -> None:
    """Measure the finished pipeline, and write the report beside it."""
    print(json.dumps(report(args.out, args.out.parent, args.world), indent=1))


def print_status(args: TrainArgs) -> None:
    """Print each step, whether its outcome is there and how far it has come, and which comes next."""
    found = [(step, *state) for step, state in status(args).items()]
    for step, done, text in found:
        print(f"{'x' if done else ' '} {step:12} {text}")
    print("next: " + next((step for step, done, _ in found if not done), "nothing"))


def status(args: TrainArgs) -> dict[str, tuple[bool, str]]:
    """For each step of a world in order: whether its outcome is there, and how far it is or which command makes it."""
    steps: dict[str, tuple[bool, str]] = {}
    for stage in CHECKPOINTS:
        own, kept = args.work / CHECKPOINTS[stage], args.kept / f"{stage}.safetensors"
        steps[stage] = (own.exists() or kept.exists(), _progress(own, kept))
    steps["judge"] = _judged(next((p for p in (args.work / JUDGED, args.kept / JUDGED) if p.exists()), None))
    for step, (outcome, command) in OUTCOMES.items():
        path = args.out.parent / outcome
        steps[step] = (path.exists(), str(path) if path.exists() else f"python -m attribution{command}")
    return steps


def _judged(path: Path | None) -> tuple[bool, str]:
    if path is None:
        return False, "python -m attribution.scenes.train --stage judge"
    measured = json.loads(path.read_text(encoding="utf-8"))
    found = (measured["judge_on_generated"]["recognised"], measured["both_objects"])
    text = f"{found[0]:.1%} of objects recognised, both in {found[1]:.1%} of pictures"
    if found[0] >= BARS[0] and found[1] >= BARS[1]:
        return True, text
    return False, f"{text}; wanted {BARS[0]:.0%} and {BARS[1]:.0%}: lengthen diffusion, and cool down anew"


def _progress(own: Path, kept: Path) -> str:
    if own.exists():
        state = torch.load(own, weights_only=True)
        return f"{own}: {state['step']} steps, {state['seconds'] / 60:.1f} min"
    if kept.exists():
        with safe_open(kept, "pt") as file:
            progress = file.metadata() or {}
        return f"{kept}: " + ", ".join(f"{value} {name}" for name, value in progress.items())
    return "not begun"


STAGES: dict[Stage, Callable[[TrainArgs], None]] = {
    "status": print_status,
    "autoencoder": train_autoencoder,
    "diffusion": train_diffusion,
    "cooldown": cool_down,
    "judge": judge_so_far,
    "keep": keep_training,
    "save": save_pipeline,
    "report": print_report,
}


def main(args: TrainArgs) -> None:
    """Run one stage."""
    args.work.mkdir(parents=True, exist_ok=True)
    STAGES["report" if args.report else args.stage](args)


if __name__ == "__main__":
    main(tyro.cli(TrainArgs))
