"""The residual join, held to what each way says it does."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

import sash
from sash.errors import InputError
from sash.ops import Join, join


def made(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(st.integers(1, 60), st.integers(1, 7), st.integers(1, 3))
def test_the_stride_of_a_projection_is_the_least_that_gives_the_branchs_length(length, stride, axes):
    sides = [length, *range(5, 4 + axes)]
    weight, bias = made(4, 2, *(1,) * axes), made(4)
    convolve = (F.conv1d, F.conv2d, F.conv3d)[axes - 1]
    expected = convolve(made(2, 2, *sides), weight, bias, (stride, *(1,) * (axes - 1)))
    least = next(step for step in range(1, stride + 1) if -(-length // step) == expected.shape[2])
    expected = convolve(made(2, 2, *sides), weight, bias, (least, *(1,) * (axes - 1)))
    y = made(*expected.shape, seed=1)
    torch.testing.assert_close(join(made(2, 2, *sides), y, weight=weight, bias=bias), expected + y)


@given(st.integers(1, 40), st.integers(1, 40))
def test_a_projection_that_no_stride_makes_fit_names_a_near_stride(length, outputs):
    assume(all(-(-length // step) != outputs for step in range(1, length + 1)))
    with pytest.raises(InputError, match=f"no stride makes {outputs} samples of {length}; stride="):
        join(torch.zeros(1, 1, length), torch.zeros(1, 1, outputs), weight=torch.zeros(1, 1, 1))


@pytest.mark.parametrize(("align", "first"), [("start", 0), ("centre", 1), ("end", 3)])
def test_crop_keeps_as_much_of_the_longer_map_as_the_shorter_one_has(align, first):
    long, short = made(2, 3, 10), made(2, 3, 7, seed=1)
    expected = long[..., first : first + 7] + short
    assert torch.equal(join(long, short, "crop", align=align), expected)
    assert torch.equal(join(short, long, "crop", align=align), expected)
    crossed = join(made(1, 1, 10, 7), made(1, 1, 7, 10, seed=1), "crop", align=align)
    assert torch.equal(crossed, made(1, 1, 10, 7)[:, :, first : first + 7] + made(1, 1, 7, 10, seed=1)[..., first : first + 7])


@pytest.mark.parametrize(("align", "first"), [("start", 0), ("centre", 1), ("end", 3)])
def test_pad_puts_zeros_around_the_shorter_map_and_behind_the_fewer_channels(align, first):
    long, short = made(2, 3, 10), made(2, 5, 7, seed=1)
    expected = torch.zeros(2, 5, 10, dtype=torch.float64)
    expected[:, :3] += long
    expected[:, :, first : first + 7] += short
    assert torch.equal(join(long, short, "pad", align=align), expected)
    assert torch.equal(join(short, long, "pad", align=align), expected)


def test_pool_averages_the_skip_over_its_bins():
    x, y = made(2, 3, 12, 7), made(2, 3, 4, 2, seed=1)
    expected = F.adaptive_avg_pool2d(x, (4, 2)) + y
    torch.testing.assert_close(join(x, y, "pool"), expected)
    torch.testing.assert_close(join(x[..., :6], y, "pool"), F.avg_pool2d(x[..., :6], 3) + y)


def test_ways_are_gone_in_order():
    x, y, weight = made(1, 2, 20), made(1, 4, 9, seed=1), made(4, 2, 1, seed=2)
    strided = F.conv1d(x, weight, stride=2)
    torch.testing.assert_close(join(x, y, ("project", "crop"), weight=weight, stride=2, align="end"), strided[..., 1:] + y)
    pooled = F.conv1d(F.adaptive_avg_pool1d(x, 9), weight)
    torch.testing.assert_close(join(x, y, ("pool", "project"), weight=weight), pooled + y)
    torch.testing.assert_close(join(x, y, ["pool", "pad"]), F.pad(F.adaptive_avg_pool1d(x, 9), (0, 0, 0, 2)) + y)


def test_maps_that_are_alike_are_added_as_they_are():
    x, y = made(2, 3, 5), made(2, 3, 5, seed=1)
    for way in (None, (), "crop", "pool", "pad"):
        assert torch.equal(join(x, y, way), x + y)


def test_the_gradients_are_right():
    x, y, weight = made(1, 2, 9).requires_grad_(), made(1, 3, 4, seed=1).requires_grad_(), made(3, 2, 1, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(lambda *given: join(given[0], given[1], ("project", "crop"), weight=given[2], stride=2), (x, y, weight))
    assert torch.autograd.gradcheck(lambda *given: join(*given, ("pool", "pad")), (x, y))


def test_empty_batches_and_tensors_without_values_pass_through():
    layer = Join("project", 2, 3, stride=2)
    assert layer(torch.zeros(0, 2, 9), torch.zeros(0, 3, 5)).shape == (0, 3, 5)
    assert join(torch.zeros(0, 2, 9), torch.zeros(0, 3, 5), ("pool", "pad")).shape == (0, 3, 5)
    for context in (FakeTensorMode(), torch.device("meta")):
        with context:
            found = Join(("project", "crop"), 2, 3, stride=2)(torch.empty(1, 2, 9), torch.empty(1, 3, 4))
            assert found.shape == (1, 3, 4)


@pytest.mark.parametrize("way", ["project", "crop", "pool", "pad"])
def test_autocast_and_export_know_it(way):
    layer = Join(way, 4, 4, stride=2) if way == "project" else Join(way)
    x, y = torch.randn(2, 4, 9), torch.randn(2, 4, 5)
    with torch.autocast("cpu", torch.bfloat16):
        # fp32 but for what the convolution makes: a branch of bf16 has a sum of bf16.
        low = layer(x, y.bfloat16())
    assert low.dtype is (torch.bfloat16 if way == "project" else torch.float32)
    torch.testing.assert_close(low.float(), layer(x, y), rtol=0.03, atol=0.03)
    batch = {0: torch.export.Dim("batch")}
    graph = torch.export.export(layer, (torch.randn(3, 4, 9), torch.randn(3, 4, 5)), dynamic_shapes=(batch, batch)).module()
    torch.testing.assert_close(graph(x, y), layer(x, y))


class Residual(nn.Module):
    """A strided convolution beside its projected input."""

    def __init__(self):
        super().__init__()
        self.branch, self.join = nn.Conv1d(8, 16, 4, stride=2), Join(("project", "crop"), 8, 16, stride=2)

    def forward(self, x):
        return self.join(x, self.branch(x))


def test_the_forecast_of_a_training_step_is_what_is_measured():
    work = sash.Workload(Residual(), "4x8x20001", train=True)
    forecast, measured = sash.forecast(work).peak_bytes, sash.measure(work).peak_bytes
    assert abs(forecast - measured) <= 0.005 * measured


def test_without_a_way_the_error_names_both_shapes_and_all_ways():
    with pytest.raises(InputError) as told:
        join(torch.zeros(2, 16, 100), torch.zeros(2, 32, 48))
    assert str(told.value) == (
        "x is 2x16x100 and y is 2x32x48: they cannot be added as they are. Choose a way: weight= of 32x16x1 projects x (with a stride), "
        "'crop' keeps 48 samples of both, 'pool' averages x to 48, 'pad' adds zeros up to 100 samples and 32 channels."
    )


X, Y = torch.zeros(2, 3, 10), torch.zeros(2, 4, 5)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (
            lambda: join(X, Y, "crop"),
            "after 'crop' they are 2x3x5 and 2x4x5: their channels differ still; go 'project' .* or 'pad' as well",
        ),
        (lambda: join(X, X[..., :4], "project", weight=torch.zeros(3, 3, 1), stride=2), "2x3x5 and 2x3x4: their lengths differ still"),
        (lambda: join(X[..., :3], Y, "pool"), "averages of x make it shorter, not longer"),
        (lambda: join(X, Y[..., :0], "pool"), "averages of x"),
        (lambda: join(X, Y, "trim"), "way is 'trim'; it may be 'project', 'crop', 'pool', 'pad'"),
        (lambda: join(X, Y, "project"), "way is 'project', and there is no weight to project with"),
        (lambda: join(X, Y, "crop", weight=torch.zeros(4, 3, 1)), "a weight 4x3x1, but no 'project' among the ways"),
        (lambda: join(X, Y, weight=torch.zeros(4, 2, 1)), "the weight is 4x2x1, and x is 2x3x10; .* has to be outx3x1"),
        (lambda: join(X, Y, weight=torch.zeros(4, 3, 1), stride=(2, 2)), "2 entries, and x 2x3x10 has 1 spatial axes"),
        (lambda: join(X, Y[:1], "pad"), "x is 2x3x10 and y is 1x4x5; both have to be batch x channel"),
        (lambda: join(X, Y[..., None], "pad"), "y is 2x4x5x1"),
        (lambda: join(X[0], Y[0], "pad"), "x is 3x10"),
        (lambda: join(X, Y.to("meta"), "pad"), "x is on cpu and y on meta"),
        (lambda: join(X, Y, "pad", align="left"), "align is 'left'; it may be 'start', 'centre', 'end'"),
        (lambda: Join("project"), "from None to None channels on 1 axes"),
        (lambda: Join("trim"), "way is 'trim'"),
    ],
)
def test_what_does_not_go_together_is_named(call, told):
    with pytest.raises(InputError, match=told):
        call()
