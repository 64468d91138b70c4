"""Max-pool dropout over sets: what is expected at test time, held to every mask there is and to what training draws."""

import math
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sash
from sash.errors import InputError
from sash.ops import DroppedMax, dropped_max, expected_max, set_max

DROPS = ["unit", "element", "channel"]
signed = st.floats(-5, 5) | st.just(0.0)
keeps = st.floats(0, 1, exclude_min=True) | st.sampled_from([1e-300, 1e-9, 0.5, 1 - 1e-12, 1.0])


def sets(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def enumerated(values, keep, drop, inverted):
    """The mean over all masks of one set's values of one channel."""
    masks = list(product([False, True], repeat=1 if drop == "channel" else len(values)))
    if drop == "element":
        masks = [mask for mask in masks if any(mask)]
    chances, largest = [], []
    for mask in masks:
        chances.append(math.prod(keep if kept else 1 - keep for kept in mask))
        if drop == "unit":
            largest.append(max(value if kept else 0.0 for value, kept in zip(values, mask, strict=True)))
        elif drop == "element":
            largest.append(max(value for value, kept in zip(values, mask, strict=True) if kept))
        else:
            largest.append(max(values) if mask[0] else 0.0)
    scale = 1 / keep if inverted and drop != "element" else 1.0
    whole = math.fsum(chances) if drop == "element" else 1.0
    return math.fsum(chance / whole * scale * most for chance, most in zip(chances, largest, strict=True))


@pytest.mark.parametrize("inverted", [True, False])
@pytest.mark.parametrize("drop", DROPS)
@given(st.lists(signed, min_size=1, max_size=10), st.floats(0.01, 1) | st.sampled_from([0.5, 1 - 1e-12, 1.0]))
def test_the_expected_maximum_is_the_mean_over_all_masks(drop, inverted, values, keep):
    found = expected_max(torch.tensor(values, dtype=torch.float64)[None, :, None], keep, drop, inverted=inverted).item()
    assert found == pytest.approx(enumerated(values, keep, drop, inverted), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("drop", DROPS)
@given(st.lists(st.integers(0, 8), min_size=1, max_size=4), keeps, st.integers(0, 99))
def test_padded_sets_are_each_as_if_alone(drop, lengths, keep, seed):
    values = sets(len(lengths), max(lengths) + 1, 3, seed=seed)
    for row, length in enumerate(lengths):
        values[row, length:] = math.nan
    found = expected_max(values, keep, drop, torch.tensor(lengths))
    for row, length in enumerate(lengths):
        alone = expected_max(values[row : row + 1, :length], keep, drop)[0]
        torch.testing.assert_close(found[row], alone, rtol=1e-14, atol=1e-14)
    assert found.isfinite().all()


@pytest.mark.parametrize("drop", DROPS)
@pytest.mark.parametrize("inverted", [True, False])
def test_what_training_draws_has_the_expected_mean(drop, inverted):
    draws, lengths = 40_000, [4, 1, 3]
    values = sets(3, 4, 3, seed=3) + 0.3
    values[0, :, 0] = -values[0, :, 0].abs()
    found = []
    for row, length in enumerate(lengths):
        many = values[row : row + 1].expand(draws, -1, -1)
        drawn = dropped_max(many, 0.6, drop, torch.full((draws,), length), inverted, torch.Generator().manual_seed(row))
        expected = expected_max(values[row : row + 1], 0.6, drop, torch.tensor([length]), inverted)
        error = drawn.std(0) / math.sqrt(draws)
        # One in a million that a right mean is further off.
        found.append(((drawn.mean(0) - expected).abs() <= 5 * error + 1e-12).all())
    assert all(found)


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9])
def test_elements_stay_as_often_as_masks_with_one_left_say(keep):
    draws, size = 40_000, 3
    values = torch.eye(size, dtype=torch.float64).expand(draws, -1, -1)
    stayed = dropped_max(values, keep, "element", generator=torch.Generator().manual_seed(0)) > 0
    codes = (stayed * torch.tensor([4, 2, 1])).sum(1)
    shares = torch.bincount(codes, minlength=8) / draws
    chances = torch.tensor([math.prod(keep if bit else 1 - keep for bit in mask) for mask in product([0, 1], repeat=size)])
    chances[0] = 0
    chances = chances / chances.sum()
    assert shares[0] == 0
    assert ((shares - chances).abs() <= 5 * (chances / draws).sqrt()).all()


@pytest.mark.parametrize("drop", DROPS)
def test_gradients_are_the_chances_to_be_the_largest(drop):
    values = sets(2, 5, 3).requires_grad_()
    lengths = torch.tensor([5, 2])
    assert torch.autograd.gradcheck(lambda values: expected_max(values, 0.7, drop, lengths), values)
    assert torch.autograd.gradgradcheck(lambda values: expected_max(values, 0.7, drop, lengths), values)
    (gradient,) = torch.autograd.grad(expected_max(values, 0.7, "element", lengths).sum(), values)
    torch.testing.assert_close(gradient.sum(1), torch.ones(2, 3, dtype=torch.float64))
    assert not gradient[1, 2:].any()


@pytest.mark.parametrize("drop", DROPS)
def test_training_draws_the_same_from_the_same_seed_and_its_gradient_stays_out_of_the_padding(drop):
    values, lengths = sets(3, 6, 4), torch.tensor([6, 0, 3])
    values[1:, 3:] = math.nan
    values.requires_grad_()

    def draw():
        return dropped_max(values, 0.5, drop, lengths, generator=torch.Generator().manual_seed(7))

    found = draw()
    assert torch.equal(found, draw())
    assert torch.equal(found[1], torch.zeros(4, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(found.sum(), values)
    assert gradient.isfinite().all()
    assert not gradient[1].any()
    assert not gradient[2, 3:].any()


def test_a_dropped_unit_wins_over_negative_values():
    values = -torch.ones(1, 3, 1, dtype=torch.float64)
    assert expected_max(values, 0.5, "unit", inverted=False).item() == -(0.5**3)
    assert expected_max(values, 0.5, "unit").item() == -(0.5**2)
    assert expected_max(values, 0.5, "element").item() == pytest.approx(-1, rel=1e-15)


def test_plain_maxima_are_exact_for_inverted_channels_and_for_nothing_else():
    values = sets(50, 7, 8)
    assert torch.equal(expected_max(values, 0.8, "channel"), set_max(values))
    for drop in ("unit", "element"):
        assert (expected_max(values, 0.8, drop) - set_max(values)).abs().mean() > 0.05


@pytest.mark.parametrize("drop", ["unit", "element"])
@pytest.mark.parametrize("keep", [1e-300, 1e-12, 1e-4, 0.5, 1 - 1e-12, 1 - 1e-16])
def test_thousands_of_elements_stay_accurate_however_small_or_large_keep_is(drop, keep):
    from fractions import Fraction

    values = sets(1, 4000, 1, seed=5)
    ordered = sorted(values.flatten().tolist(), reverse=True)
    # Exact numbers have no limit to their digits: ten times a double's are enough.
    failing, weight, exact, left = 1 - Fraction(keep), Fraction(1), Fraction(0), 1 << 600
    for value in ordered:
        exact += weight * Fraction(value if drop == "element" else max(value, 0.0))
        weight = Fraction(int(weight * failing * left), left)
    if drop == "element":
        whole = -math.expm1(4000 * math.log1p(-keep)) if keep < 0.5 else 1.0
        exact *= Fraction(keep) / Fraction(whole)
    found = expected_max(values, keep, drop).item()
    assert found == pytest.approx(float(exact), rel=4e-13)
    single = expected_max(values.float(), keep, drop).item()
    assert single == pytest.approx(float(exact), abs=1e-5 * (float(exact) if drop == "unit" else 1))


@pytest.mark.parametrize("drop", DROPS)
@pytest.mark.parametrize("call", [dropped_max, expected_max])
def test_no_sets_and_empty_sets_pass_through(drop, call):
    for shape in ((0, 5, 4), (3, 0, 4)):
        values = torch.randn(shape, requires_grad=True)
        found = call(values, 0.5, drop)
        found.sum().backward()
        assert torch.equal(found, torch.zeros(shape[0], 4))
        assert values.grad.shape == shape


@pytest.mark.parametrize("drop", DROPS)
def test_half_precision_is_computed_in_float_also_under_autocast(drop):
    values = sets(4, 300, 5, dtype=torch.bfloat16)
    expected = expected_max(values.float(), 0.7, drop).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(expected_max(values, 0.7, drop), expected)
        assert dropped_max(values, 0.7, drop).dtype == torch.bfloat16
        assert expected_max(values.float(), 0.7, drop).dtype == torch.float32


@pytest.mark.parametrize("drop", DROPS)
def test_the_layer_draws_while_training_and_expects_afterwards(drop):
    values, lengths = sets(3, 6, 4), torch.tensor([6, 0, 3])
    layer = DroppedMax(0.5, drop)
    torch.manual_seed(1)
    trained = layer(values, lengths)
    torch.manual_seed(1)
    assert torch.equal(trained, dropped_max(values, 0.5, drop, lengths))
    assert torch.equal(layer.eval()(values, lengths), expected_max(values, 0.5, drop, lengths))


@pytest.mark.parametrize("drop", DROPS)
def test_an_exported_program_takes_other_numbers_of_sets_and_elements(drop):
    layer = DroppedMax(0.5, drop).eval()
    values, lengths = sets(3, 6, 4), torch.tensor([6, 0, 3])
    batch, size = torch.export.Dim("batch"), torch.export.Dim("size")
    program = torch.export.export(layer, (values, lengths), dynamic_shapes=({0: batch, 1: size}, {0: batch})).module()
    more, longer = sets(5, 9, 4, seed=2), torch.tensor([9, 1, 2, 0, 4])
    torch.testing.assert_close(program(more, longer), layer(more, longer))
    trained = torch.export.export(layer.train(), (values, lengths)).module()
    assert trained(values, lengths).shape == (3, 4)


@pytest.mark.parametrize("training", [True, False])
def test_the_forecast_agrees_with_the_measurement(training):
    values, lengths = sets(300, 40, 16, dtype=torch.float32).requires_grad_(), torch.arange(300) % 41
    work = sash.Workload(DroppedMax(0.7).train(training), (values, lengths), train=training)
    found, measured = sash.forecast(work).peak_bytes, sash.measure(work).peak_bytes
    assert 0 <= found - measured <= 0.005 * measured, (found, measured)


@pytest.mark.parametrize("call", [dropped_max, expected_max])
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((0.5, "row"), "drop is 'row'; it may be 'unit', 'element', 'channel'"),
        ((0,), "keep is 0; it is the probability to stay, above 0 and at most 1"),
        ((1.5,), "keep is 1.5"),
        ((math.nan,), "keep is nan"),
        ((True,), "keep is True"),
        ((0.5, "unit", torch.tensor([4, 3])), r"lengths\[0\] is 4, and the sets are padded to 3 elements"),
    ],
)
def test_what_does_not_go_together_is_refused_with_what_was_found(call, arguments, told):
    with pytest.raises(InputError, match=told):
        call(torch.randn(2, 3, 4), *arguments)


def test_flat_sets_are_refused_with_a_way_to_pad_them():
    values, lengths = sets(5, 4), torch.tensor([2, 3])
    with pytest.raises(InputError, match=r"the values are flat \(5x4\).*pad_sequence"):
        expected_max(values, 0.5, lengths=lengths)
    padded = torch.nn.utils.rnn.pad_sequence(values.split(lengths.tolist()), batch_first=True)
    assert expected_max(padded, 0.5, lengths=lengths).shape == (2, 4)
