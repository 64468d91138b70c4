"""Pooling over sets of different sizes, held to a loop over the sets."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sash
from sash.errors import InputError
from sash.ops import SetAttention, SetPool, set_attention, set_max, set_mean, set_sum

POOLS = {
    set_max: lambda one: one.amax(0),
    set_mean: lambda one: one.mean(0),
    set_sum: lambda one: one.sum(0),
}
LENGTHS = [3, 0, 1, 5, 5, 0]


def attended(values, lengths=None, *, offsets=None):
    """Attention with two heads and scores that the values give."""
    return set_attention(values, values[..., :2] * 3, lengths, offsets=offsets)


def softmax_mean(one):
    weights = (one[:, :2] * 3).softmax(0)
    return (one * weights.repeat_interleave(one.shape[1] // 2, 1)).sum(0)


EVERY = POOLS | {attended: softmax_mean}


def padded(lengths=LENGTHS, channels=4, size=None, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    size = max(lengths, default=0) if size is None else size
    values = torch.randn(len(lengths), size, channels, generator=generator, dtype=torch.float64).to(dtype)
    return values, torch.tensor(lengths, dtype=torch.int64)


def flat(values, lengths):
    return values[torch.arange(values.shape[1]) < lengths[:, None]]


def looped(pool, values, lengths):
    """One set after the other; nothing of an empty one."""
    sets = [one[:length] for one, length in zip(values, lengths.tolist(), strict=True)]
    return torch.stack([EVERY[pool](one) if len(one) else one.sum(0) for one in sets])


@pytest.mark.parametrize("pool", EVERY)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=5), st.sampled_from([2, 4, 6]), st.integers(0, 2), st.integers(0, 99))
def test_each_set_has_what_a_loop_over_the_sets_gives_padded_and_flat(pool, lengths, channels, spare, seed):
    values, lengths = padded(lengths, channels, max(lengths) + spare, seed=seed)
    values.requires_grad_()
    expected = looped(pool, values, lengths)
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    towards = torch.randn_like(expected)
    (gradient,) = torch.autograd.grad(expected, values, towards, allow_unused=True, materialize_grads=True)
    rows = flat(values, lengths)
    for found in (pool(values, lengths), pool(rows, lengths), pool(rows, offsets=offsets)):
        torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)
        (same,) = torch.autograd.grad(found, values, towards, retain_graph=True)
        torch.testing.assert_close(same, gradient, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("pool", EVERY)
def test_without_lengths_padded_sets_are_full(pool):
    values, _ = padded([5, 5, 5])
    assert torch.equal(pool(values), pool(values, torch.tensor([5, 5, 5])))


@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf, 1e300])
@pytest.mark.parametrize("pool", EVERY)
def test_what_lies_in_the_padding_changes_no_result_and_no_gradient(pool, garbage):
    values, lengths = padded(size=7)
    outside = (torch.arange(7) >= lengths[:, None])[..., None]
    found = []
    for filled in (values.masked_fill(outside, 0), values.masked_fill(outside, garbage)):
        filled.requires_grad_()
        pooled = pool(filled, lengths)
        (gradient,) = torch.autograd.grad(pooled.square().sum(), filled)
        assert torch.equal(gradient.masked_fill(~outside, 0), torch.zeros_like(values))
        found.append((pooled, gradient))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


def test_the_attention_layer_learns_nothing_from_the_padding():
    values, lengths = padded(size=7, dtype=torch.float32)
    outside = (torch.arange(7) >= lengths[:, None])[..., None]
    for layer in (SetAttention(4), SetAttention(4, heads=2, hidden=5)):
        found = []
        for filled in (values.masked_fill(outside, 0), values.masked_fill(outside, math.nan)):
            layer.zero_grad()
            layer(filled, lengths).square().sum().backward()
            found.append([parameter.grad for parameter in layer.parameters()])
        for clean, dirty in zip(*found, strict=True):
            assert clean.isfinite().all()
            assert torch.equal(clean, dirty)


def test_the_attention_layer_is_the_same_padded_and_flat_and_counts_its_parameters():
    values, lengths = padded(dtype=torch.float32)
    layer = SetAttention(4, heads=2, hidden=5)
    assert sum(parameter.numel() for parameter in layer.parameters()) == 4 * 5 + 5 + 5 * 2 + 2
    torch.testing.assert_close(layer(values, lengths), layer(flat(values, lengths), lengths))


@pytest.mark.parametrize("pool", EVERY)
def test_the_order_of_the_elements_makes_no_difference(pool):
    values, lengths = padded([6, 6])
    values[0, 3] = values[0, 1] = values[0].amax(0)
    values.requires_grad_()
    order = torch.randperm(6, generator=torch.Generator().manual_seed(1))
    weights = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    (plain,) = torch.autograd.grad((pool(values, lengths) * weights).sum(), values)
    rows = values.detach()[:, order].flatten(0, 1).requires_grad_()
    (moved,) = torch.autograd.grad((pool(rows, lengths) * weights).sum(), rows)
    torch.testing.assert_close(moved.unflatten(0, (2, 6)), plain[:, order], rtol=1e-13, atol=1e-13)


def test_equal_largest_values_share_the_gradient_evenly():
    values = torch.tensor([[2.0], [1.0], [2.0]], requires_grad=True)
    set_max(values, torch.tensor([3])).backward()
    assert values.grad.tolist() == [[0.5], [0.0], [0.5]]


@pytest.mark.parametrize("layout", ["padded", "flat"])
def test_a_set_of_nothing_but_minus_infinity_has_it_as_its_maximum_and_a_nan_is_passed_on(layout):
    values = torch.tensor([[[-math.inf], [-math.inf]], [[1.0], [math.nan]]])
    lengths = torch.tensor([2, 2])
    found = set_max(values if layout == "padded" else flat(values, lengths), lengths)
    assert found[0].item() == -math.inf
    assert found[1].isnan()


@pytest.mark.parametrize("pool", EVERY)
@pytest.mark.parametrize("layout", ["padded", "flat"])
def test_gradients_are_those_of_finite_differences_twice_over(pool, layout):
    values, lengths = padded([3, 0, 1])
    values = (values if layout == "padded" else flat(values, lengths)).requires_grad_()
    assert torch.autograd.gradcheck(lambda values: pool(values, lengths), values)
    assert torch.autograd.gradgradcheck(lambda values: pool(values, lengths), values)


@pytest.mark.parametrize("pool", EVERY)
@pytest.mark.parametrize(("shape", "sets"), [((0, 5, 4), 0), ((3, 0, 4), 3), ((0, 4), 3), ((0, 4), 0)])
def test_no_sets_give_no_rows_and_empty_sets_zeros(pool, shape, sets):
    values = torch.randn(shape, requires_grad=True)
    found = pool(values, torch.zeros(sets, dtype=torch.int64))
    found.sum().backward()
    assert torch.equal(found, torch.zeros(sets, 4))
    assert values.grad.shape == shape


@pytest.mark.parametrize("pool", [set_sum, set_mean, attended])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_added_up_in_float_and_rounded_once(pool, dtype):
    values, lengths = padded([3000, 17], dtype=dtype)
    values = values.abs()
    exact = looped(pool, values.double(), lengths)
    for found in (pool(values, lengths), pool(flat(values, lengths), lengths)):
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), exact, rtol=torch.finfo(dtype).eps * 0.6, atol=0)


@pytest.mark.parametrize("pool", EVERY)
@pytest.mark.parametrize("layout", ["padded", "flat"])
def test_under_autocast_results_and_gradients_keep_the_values_type(pool, layout):
    values, lengths = padded(dtype=torch.float32)
    values = (values if layout == "padded" else flat(values, lengths)).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found = pool(values, lengths)
    assert torch.equal(found, pool(values, lengths))
    found.sum().backward()
    assert values.grad.dtype == torch.float32


class Around(torch.nn.Module):
    def __init__(self, pool):
        super().__init__()
        self.pool = SetPool(pool)

    def forward(self, values, lengths):
        return self.pool(values * 2, lengths)


@pytest.mark.parametrize("pool", EVERY)
@pytest.mark.parametrize("layout", ["padded", "flat"])
def test_an_exported_program_takes_other_numbers_of_sets_and_elements(pool, layout):
    values, lengths = padded(dtype=torch.float32)
    more, longer = padded([4, 2, 9], dtype=torch.float32, seed=1)
    sets, elements = torch.export.Dim("sets"), torch.export.Dim("elements")
    sizes = {0: sets, 1: elements}
    if layout == "flat":
        values, more, sizes = flat(values, lengths), flat(more, longer), {0: elements}
    module = Around(pool)
    program = torch.export.export(module, (values, lengths), dynamic_shapes=(sizes, {0: sets})).module()
    torch.testing.assert_close(program(values, lengths), module(values, lengths))
    torch.testing.assert_close(program(more, longer), module(more, longer))


@pytest.mark.parametrize("pool", EVERY)
def test_tensors_without_values_get_shapes(pool):
    values, lengths = padded()
    for one in (values, flat(values, lengths)):
        assert pool(one.to("meta"), lengths.to("meta")).shape == (6, 4)


@pytest.mark.parametrize("layout", ["padded", "flat"])
def test_the_forecast_of_a_step_agrees_with_its_measurement(layout):
    values, lengths = padded([20, 3, 40, 9] * 50, channels=16, dtype=torch.float32)
    values = (values if layout == "padded" else flat(values, lengths)).requires_grad_()
    work = sash.Workload(SetPool(set_max), (values, lengths), train=True)
    found, measured = sash.forecast(work).peak_bytes, sash.measure(work).peak_bytes
    assert 0 <= found - measured <= 0.01 * measured


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda x, n: set_max(x.long(), n), r"the values are of type torch.int64; they have to be floating: values.float\(\)"),
        (lambda x, n: set_max(x[0, 0], n), "the values are 4; they have to be batch x set x channel, or total x channel"),
        (lambda x, n: set_mean(x, n + 1), r"lengths\[3\] is 6, and the sets are padded to 5 elements"),
        (lambda x, n: set_sum(x, n - 1), r"lengths\[1\] is -1; a set has 0 elements or more"),
        (lambda x, n: set_sum(x, n[:2]), "there are 2 lengths, and the values are 6x5x4: 6 sets"),
        (lambda x, n: set_max(x, n.float()), "lengths are 6 of type torch.float32; they have to be whole numbers on one axis"),
        (lambda x, n: set_max(x, n > 1), "lengths are 6 of type torch.bool"),
        (lambda x, n: set_max(x, n[:, None]), "lengths are 6x1 of type torch.int64"),
        (lambda x, n: set_max(x, n.to("meta")), "the values are on cpu and the lengths on meta"),
        (lambda x, n: set_max(x, offsets=n), r"offsets were given, and the values are padded \(6x5x4\); give lengths"),
        (lambda x, n: set_max(x[0], n, offsets=n), "lengths and offsets were given; give one of them"),
        (lambda x, n: set_max(x[0]), r"the values are flat \(5x4\), without lengths or offsets; give the number of rows of each set"),
        (lambda x, n: set_max(x[0], n), "the lengths add up to 14, and there are 5 rows"),
        (lambda x, n: set_max(x[0], offsets=torch.tensor([0, 4])), "the offsets go from 0 to 4, .* have to go from 0 to 5"),
        (lambda x, n: set_max(x[0], offsets=torch.tensor([0, 3, 2, 5])), r"offsets\[2\] is below offsets\[1\]"),
        (lambda x, n: set_max(x[0], offsets=n[:0]), "offsets are empty"),
        (
            lambda x, n: set_attention(x, x[:, :3, 0], n),
            "the scores are 6x3 .*, and the values 6x5x4; give floating scores 6x5, or 6x5 and heads",
        ),
        (lambda x, n: set_attention(x, x[..., :3], n), "the scores have 3 heads, and 4 channels do not divide among them"),
        (lambda x, n: set_attention(x, x[..., 0].long(), n), "the scores are 6x5 of type torch.int64"),
        (lambda x, n: set_attention(x, x[..., 0].to("meta"), n), "the values are on cpu and the scores on meta"),
        (lambda x, n: SetAttention(4, heads=3), "3 heads were asked for, and 4 channels do not divide among them"),
    ],
)
def test_what_does_not_go_together_is_refused_with_what_was_found(call, told):
    values, lengths = padded(dtype=torch.float32)
    with pytest.raises(InputError, match=told):
        call(values, lengths)
