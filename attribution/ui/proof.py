"""Proof: a section below the answer, from committed results; nothing where there are none."""

import gradio as gr

from attribution.answers.proof import CHANCE, Case, Proof, Retrained
from attribution.ui.studio import Studio
from attribution.ui.templates import render


def lay_proof(studio: Studio) -> None:
    """The section."""
    if studio.proof is not None:
        gr.HTML(proof_html(studio.proof), elem_id="proof")


def proof_html(proof: Proof) -> str:
    """A row a picture: as it is, and as models draw it that were trained without the images that were named."""
    cases = [(case, [(each, *_told(each)) for each in case.retrained], _noise(case)) for case in proof.cases]
    return render("proof.html", "proof", proof, cases, _judged(proof))


def _judged(proof: Proof) -> str:
    """What all pictures together say, in two sentences."""
    count = proof.cases[0].retrained[0].named
    rises = [f"by {rise:.0%} without {_whose(method, count)}" for method, rise in proof.rises.items()]
    shown = "Shown are those whose loss rises the most." if len(proof.cases) < proof.pictures else ""
    return f"Over all {proof.pictures} pictures the loss rises {', '.join(rises)}. {shown}".rstrip()


def _whose(method: str, count: int) -> str:
    return f"{count} at random" if method == CHANCE else f"the {count} that {method} names"


def _told(each: Retrained) -> tuple[str, str, str]:
    """Whose images are gone, how much that changed, and how many images were left out in all."""
    more = each.named - each.shown
    left_out = f"and {more:,} more" if more else ""
    if each.left_out > each.named:
        left_out += f"; this training left out {each.left_out:,} in all, for several pictures"
    effect = f"loss {each.rise:+.0%}, picture changed by {each.change:.0%}"
    return f"Without {_whose(each.method, each.named)}", effect, left_out.removeprefix("; ")


def _noise(case: Case) -> str:
    """What training again does by itself, in a sentence; "" where that is not known."""
    if case.noise is None:
        return ""
    return f"Trained again on all images, with other random numbers, it changes by {case.noise:.0%}."
