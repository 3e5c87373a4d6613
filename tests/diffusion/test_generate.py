"""Pictures drawn one by one and several in one call, and what is refused of both."""

import numpy as np
import pytest

from attribution.diffusion.pipeline import GenerateSettings
from attribution.errors import InputError

FEW = GenerateSettings(steps=2)


def test_pictures_drawn_together_are_those_drawn_one_by_one(model32):
    prompts, seeds = ("a red key", "a green apple and a bus"), (3, 4)
    together = model32.generate_together(prompts, seeds, FEW)
    alone = [model32.generate(prompt, seed, FEW) for prompt, seed in zip(prompts, seeds, strict=True)]
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(np.asarray(one, int), np.asarray(other, int), atol=1)
    assert np.asarray(together[0]).tobytes() != np.asarray(together[1]).tobytes()


@pytest.mark.parametrize(
    ("prompt", "seed", "settings", "words"),
    [
        ("", 0, FEW, "prompt"),
        ("a key", -1, FEW, "seed"),
        ("a key", 0, GenerateSettings(steps=101), "101 steps are not possible; accepted are 1 to 100"),
        ("a key", 0, GenerateSettings(guidance=0.5), "guidance 0.5 is not possible; accepted is 1 to 20"),
    ],
)
def test_what_cannot_be_drawn_is_refused_alone_and_together(model32, prompt, seed, settings, words):
    with pytest.raises(InputError, match=words):
        model32.generate(prompt, seed, settings)
    with pytest.raises(InputError, match=words):
        model32.generate_together(["a bus", prompt], [0, seed], settings)
