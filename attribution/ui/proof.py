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
    return render("proof.html", "proof", proof, cases, proof.cases[0].retrained[0].named)


def _told(each: Retrained) -> tuple[str, str, str]:
    """Whose images are gone, how much that changed, and how many images were left out in all."""
    whose = f"{each.named} at random" if each.method == CHANCE else f"the {each.named} that {each.method} names"
    more = each.named - each.shown
    left_out = f"and {more:,} more" if more else ""
    if each.left_out > each.named:
        left_out += f"; this training left out {each.left_out:,} in all, for several pictures"
    return f"Without {whose}", f"changed by {each.change:.0%}", left_out.removeprefix("; ")


def _noise(case: Case) -> str:
    """What training again does by itself, in a sentence; "" where that is not known."""
    if case.noise is None:
        return ""
    return f"Trained again on all images, with other random numbers, it changes by {case.noise:.0%}."
