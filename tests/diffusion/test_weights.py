"""Weights that are changed for a while: put back bit for bit, also in the midst of it."""

import pytest
import torch

from attribution.diffusion.weights import pretrained, unlearned


def weights_of(model):
    return {name: value.clone() for name, value in model.unet.state_dict().items()}


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def test_the_pretrained_weights_are_there_in_the_midst_of_a_change_and_the_change_after_it(model32):
    before = weights_of(model32)
    with unlearned(model32, "attn") as outer:
        for weight in outer.values():
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)) / 3)
        with unlearned(model32, "cross-attn-kv") as inner:
            for weight in inner.values():
                weight.mul_(1.1)
            changed = weights_of(model32)
            assert not same(changed, before)
            with pretrained(model32):
                assert same(weights_of(model32), before)
            assert same(weights_of(model32), changed)
            with pytest.raises(RuntimeError), pretrained(model32):
                raise RuntimeError
            assert same(weights_of(model32), changed)
        with pretrained(model32):
            assert same(weights_of(model32), before)
    assert same(weights_of(model32), before)
    with pretrained(model32):
        assert same(weights_of(model32), before)
