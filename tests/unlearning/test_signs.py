"""Signs of whitened gradients, against plain float64 loops over names, numbers and bits."""

import math

import numpy as np
import pytest
import torch
from near import assert_close

from attribution.diffusion.loss import denoising_loss
from attribution.diffusion.weights import tuned
from attribution.unlearning.ekfac import Eigenbasis
from attribution.unlearning.fisher import precondition
from attribution.unlearning.signs import BITS, SignProjection, agreement, to_bits

SHAPES = {"b.weight": (6, 5), "a.weight": (4, 7), "c.weight": (3, 3)}  # not in the order of their names
NUMBERS = 30 + 28 + 9
DAMPING = 0.3
EXACT = {"rtol": 1e-10, "atol": 1e-12}


def rotation(size, generator):
    return torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))[0]


def random_bases(seed=0, shapes=SHAPES):
    """Eigenbases whose Lambda spreads over some powers of ten, otherwise much from name to name."""
    generator = torch.Generator().manual_seed(seed)
    bases = {}
    for number, (name, (out, into)) in enumerate(shapes.items()):
        spread = torch.exp(2 * torch.randn(out, into, generator=generator, dtype=torch.float64) - 3 * number)
        bases[name] = Eigenbasis(rotation(into, generator), rotation(out, generator), spread)
    return bases


def random_gradients(count, seed=1, shapes=SHAPES):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(count, *shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()
    }


def plain_energies(bases, damping):
    """(energy, name, place) of every number, names in sorted order."""
    found = []
    for name in sorted(bases):
        held = bases[name].information.double().numpy().ravel()
        mean = sum(held.tolist()) / len(held)
        for place, value in enumerate(held.tolist()):
            found.append((value / (value + damping * mean) if value + damping * mean > 0 else 0.0, name, place))
    return found


def plain_chosen(bases, damping, dimension):
    """Places by name: one number after another, the largest of those that are left, the earlier one of equals."""
    left, taken = plain_energies(bases, damping), {name: [] for name in sorted(bases)}
    for _ in range(min(dimension, len(left))):
        best = max(range(len(left)), key=lambda at: (left[at][0], -at))
        _, name, place = left.pop(best)
        taken[name].append(place)
    return {name: sorted(places) for name, places in taken.items()}


def plain_numbers(bases, damping, dimension, gradients):
    """(B, dimension) by numpy, number by number."""
    chosen, rows = plain_chosen(bases, damping, dimension), []
    for image in range(len(next(iter(gradients.values())))):
        row = []
        for name, places in chosen.items():
            held, into, out = (getattr(bases[name], part).numpy() for part in ("information", "inputs", "outputs"))
            for place in places:
                o, i = divmod(place, held.shape[1])
                value = out[:, o] @ gradients[name][image].numpy() @ into[:, i]
                damped = held[o, i] + damping * held.sum() / held.size
                row.append(value / math.sqrt(damped) if damped > 0 else 0.0)
        rows.append(row + [0.0] * (dimension - len(row)))
    return torch.tensor(np.array(rows))


# Which numbers, and what they are


@pytest.mark.parametrize("dimension", [8, 24, 64, 72, 136])
@pytest.mark.parametrize("damping", [0.0, 0.01, DAMPING, 10.0])
def test_the_numbers_are_those_of_plain_whitening(dimension, damping):
    bases, gradients = random_bases(), random_gradients(5)
    project = SignProjection(bases, dimension, damping)
    assert {name: places.tolist() for name, places in project.chosen.items()} == plain_chosen(bases, damping, dimension)
    assert list(project.chosen) == sorted(SHAPES)
    assert_close(project(gradients), plain_numbers(bases, damping, dimension, gradients), **EXACT)


def test_the_damping_decides_who_is_chosen():
    """Lambda is measured by the mean of its own tensor, so that it is not the largest ones of all."""
    bases = random_bases()
    largest = sorted(((float(v), n) for n in bases for v in bases[n].information.flatten()), reverse=True)[:24]
    chosen = SignProjection(bases, 24, DAMPING).chosen
    assert {name: len(places) for name, places in chosen.items()} != {
        name: sum(n == name for _, n in largest) for name in sorted(bases)
    }


@pytest.mark.parametrize("damping", [0.01, DAMPING])
def test_inner_products_of_all_numbers_are_those_of_the_damped_inverse(damping):
    bases, ours, theirs = random_bases(), random_gradients(4, 2), random_gradients(4, 3)
    project = SignProjection.like(bases, 512, damping)
    expected = sum((ours[name] * precondition(theirs[name], bases[name], damping)).flatten(1).sum(1) for name in bases)
    assert_close((project(ours) * project(theirs)).sum(1), expected, **EXACT)


def test_the_room_is_that_of_float16_or_what_all_numbers_need():
    bases = random_bases()
    assert [SignProjection.like(bases, dimension, DAMPING).dimension for dimension in (1, 4, 5, 512)] == [
        16,
        64,
        72,
        72,
    ]
    assert np.finfo(np.float16).bits == BITS
    eight = random_bases(shapes={"a": (2, 4)})
    assert SignProjection.like(eight, 512, DAMPING).dimension == 8


def test_of_equal_energies_the_earlier_are_taken():
    generator = torch.Generator().manual_seed(0)
    information = torch.ones(3, 4, dtype=torch.float64)
    bases = {name: Eigenbasis(rotation(4, generator), rotation(3, generator), information) for name in ("b", "a")}
    chosen = SignProjection(bases, 16, DAMPING).chosen
    assert {name: places.tolist() for name, places in chosen.items()} == {"a": list(range(12)), "b": list(range(4))}
    bases["b"] = Eigenbasis(bases["b"].inputs, bases["b"].outputs, 8 * information)  # as much more as its own mean
    again = SignProjection(bases, 16, DAMPING).chosen
    assert {name: places.tolist() for name, places in again.items()} == {"a": list(range(12)), "b": list(range(4))}


@pytest.mark.parametrize("damping", [0.0, DAMPING])
def test_where_lambda_is_zero_nothing_is_infinite(damping):
    bases, gradients = random_bases(), random_gradients(3)
    for name, dead in (("a.weight", slice(0, 4)), ("b.weight", slice(1, 3))):  # one layer whole, one in part
        bases[name].information[dead] = 0.0
    project = SignProjection(bases, 72, damping)
    found = project(gradients)
    assert found.isfinite().all()
    assert_close(found, plain_numbers(bases, damping, 72, gradients), **EXACT)
    few = SignProjection(bases, 24, damping).chosen
    assert few["a.weight"].tolist() == []
    assert SignProjection(bases, 24, damping)(gradients).shape == (3, 24)


def test_numbers_that_fill_up_have_no_effect_on_scores():
    bases, gradients, own = random_bases(), random_gradients(6), random_gradients(1, 9)
    scores = []
    for dimension in (72, 80, 800):
        project = SignProjection(bases, dimension, DAMPING)
        numbers = project(gradients)
        assert numbers.shape == (6, dimension)
        assert not numbers[:, NUMBERS:].any()
        scores.append(agreement(to_bits(numbers)[:, None], project(own)[0]))
    expected = plain_agreement(SignProjection(bases, 72, DAMPING)(gradients)[:, None, :NUMBERS], project(own)[0])
    for each in scores:
        np.testing.assert_allclose(each, expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("given", "held", "rtol"),
    [(torch.float32, torch.float32, 1e-4), (torch.float16, torch.float32, 1e-2), (torch.float64, torch.float32, 1e-5)],
)
def test_other_dtypes_give_the_same_numbers_as_exactly_as_they_can(given, held, rtol):
    bases, gradients = random_bases(), {name: each.to(given) for name, each in random_gradients(5).items()}
    narrow = {
        name: Eigenbasis(b.inputs.to(held), b.outputs.to(held), b.information.to(held)) for name, b in bases.items()
    }
    found, exact = SignProjection(narrow, 48, DAMPING)(gradients), SignProjection(bases, 48, DAMPING)
    assert found.dtype == (torch.float64 if given == torch.float64 else torch.float32)
    wide = {name: each.double() for name, each in gradients.items()}
    assert_close(found.double(), exact(wide), rtol=rtol, atol=rtol * float(exact(wide).std()))
    assert_close(found, torch.cat([SignProjection(narrow, 48, DAMPING)(each) for each in one_by_one(gradients)]))


def one_by_one(gradients):
    """Batches of a single image."""
    return [{name: each[row : row + 1] for name, each in gradients.items()} for row in range(5)]


# Bits


def plain_agreement(numbers, query):
    """One image, one view, one number after another: its sign times the query's number, over the sizes of these."""
    size = sum(map(abs, query.tolist()))
    found = np.zeros(numbers.shape[:2])
    for image, views in enumerate(numbers.tolist()):
        for view, values in enumerate(views):
            signed = (u if value > 0 else -u for value, u in zip(values, query.tolist(), strict=False))
            found[image, view] = sum(signed) / size
    return found


@pytest.mark.parametrize(("images", "views", "dimension"), [(1, 1, 8), (7, 2, 8), (5, 1, 40), (9, 2, 264), (0, 2, 16)])
@pytest.mark.parametrize("rows", [1, 4, 1024])
def test_agreement_is_a_plain_sum_whatever_is_read_at_once(tmp_path, images, views, dimension, rows):
    generator = torch.Generator().manual_seed(images)
    numbers = torch.randn(images, views, dimension, generator=generator)
    query = torch.randn(dimension, generator=generator)
    bits, expected = to_bits(numbers), plain_agreement(numbers, query)
    assert (bits.dtype, bits.shape) == (np.uint8, (images, views, dimension // 8))
    found = agreement(bits, query, rows)
    assert (found.dtype, found.shape) == (np.float64, (images, views))
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
    np.save(tmp_path / "bits.npy", bits)
    if images:  # nothing is mapped of an empty file
        mapped = np.load(tmp_path / "bits.npy", mmap_mode="r")
        np.testing.assert_array_equal(agreement(mapped, query, rows), found)
        np.testing.assert_array_equal(agreement(mapped[None][0], query.double(), rows), found)


def test_bits_are_in_the_order_of_the_numbers_and_zero_is_not_above_zero():
    numbers = torch.tensor([[1.0, -1, 0, -0.0, 1e-30, -1e-30, 2, -2], [-1.0, 1, 1, 1, 1, 1, 1, 1]])
    assert to_bits(numbers).tolist() == [[0b10001010], [0b01111111]]


def test_lengths_of_training_gradients_do_not_count():
    bases, gradients = random_bases(), random_gradients(4)
    longer = {
        name: each * torch.tensor([1.0, 5.0, 1e-6, 1e6]).double()[:, None, None] for name, each in gradients.items()
    }
    project = SignProjection(bases, 64, DAMPING)
    np.testing.assert_array_equal(to_bits(project(longer)), to_bits(project(gradients)))


# What an index holds


def test_the_bits_of_an_index_are_signs_of_all_numbers_of_gradients_taken_one_by_one(model, exact_index):
    assert_bits_of_gradients(model, exact_index, True)


def test_the_bits_of_an_index_of_few_numbers_are_those_of_the_largest_energy(model32, full_index):
    assert_bits_of_gradients(model32, full_index, False)


def assert_bits_of_gradients(model, index, all_numbers):
    """But for numbers that are nearly zero."""
    kept, bank = index.gradients("influence+"), index.bank(model)
    bits = np.unpackbits(index.array("gradients/influence+"), axis=-1)
    bases = {name: index.information([name], "ek-fac")[name] for name in index.fisher}
    count = sum(basis.information.numel() for basis in bases.values())
    dimension = min(BITS * kept.dimension, -(-count // 8) * 8)
    assert bits.shape == (1, 8, 2, dimension)
    assert (dimension >= count) == all_numbers
    double = {
        name: Eigenbasis(*(part.cpu().double() for part in vars(basis).values())) for name, basis in bases.items()
    }
    for row, view in ((0, 0), (3, 1), (7, 0)):
        latents, text = index.encoded.view([row], [view])[0], model.encode_text([index.captions[row]])
        with tuned(model, index.weights) as parameters:
            value = denoising_loss(model, latents, text, bank).mean()
            each = torch.autograd.grad(value, list(parameters.values()))
        gradients = {name: own[None].cpu().double() for name, own in zip(parameters, each, strict=True)}
        plain = plain_numbers(double, kept.whitening, dimension, gradients)[0]
        clear = plain.abs() > 1e-3 * plain.std()
        assert clear.float().mean() > 0.9  # layers are given vectors whose mean is zero: a sixteenth says nothing
        assert np.array_equal(bits[0, row, view][clear.numpy()], (plain > 0)[clear].numpy())
