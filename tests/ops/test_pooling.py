"""Pooling of maps, held to loops over windows, to torch, to scikit-image and to OpenCV reading Caffe's files."""

import math
from itertools import product

import cv2
import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from skimage.measure import block_reduce
from torch.nn import functional as F

import sash
from sash.errors import InputError
from sash.ops import Pool, adaptive_pool, avg_pool, global_pool, max_pool, pyramid_pool
from sash.window import Adaptive

TORCHS = {
    "max": {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d},
    "average": {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d},
    "adaptive max": {1: F.adaptive_max_pool1d, 2: F.adaptive_max_pool2d, 3: F.adaptive_max_pool3d},
    "adaptive average": {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d},
}


def random_map(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def caffes_count(length, size, stride, pads, any_pad):
    """As its source has it, with (before, after) for twice the padding."""
    count = math.ceil((length + sum(pads) - size) / stride) + 1
    return count - (any_pad and (count - 1) * stride >= length + pads[0])


def torchs_count(length, span, stride, pads, ceil):
    count = (length + sum(pads) - span + (stride - 1 if ceil else 0)) // stride + 1
    return count - (ceil and (count - 1) * stride >= length + pads[0])


def looped(features, counts, size, stride, pads, dilation, kind, count_padding=True):
    """One window after the other on the last axes of a map without a batch; nothing where a window has no sample."""
    lengths = features.shape[1:]
    made = features.new_zeros(features.shape[0], *counts)
    for place in product(*map(range, counts)):
        samples, counted = [], 1
        for axis, output in enumerate(place):
            first = output * stride[axis] - pads[axis][0]
            taps = range(first, first + dilation[axis] * (size[axis] - 1) + 1, dilation[axis])
            samples.append([tap for tap in taps if 0 <= tap < lengths[axis]])
            ends = lengths[axis] + pads[axis][1] if count_padding else lengths[axis]
            counted *= sum((-pads[axis][0] if count_padding else 0) <= tap < ends for tap in taps)
        if all(samples):
            window = features[(slice(None), *torch.meshgrid(*map(torch.tensor, samples), indexing="ij"))].flatten(1)
            made[(slice(None), *place)] = window.amax(1) if kind == "max" else window.sum(1) / counted
    # Part of a graph also where no window has a sample.
    return made + 0 * features.sum()


@st.composite
def problems(draw, dilated):
    axes = draw(st.integers(1, 3))
    each = lambda numbers: [draw(numbers) for _ in range(axes)]  # noqa: E731
    size, stride = each(st.integers(1, 4)), each(st.integers(1, 5))
    dilation = each(st.integers(1, 3) if dilated else st.just(1))
    spans = [gap * (one - 1) + 1 for gap, one in zip(dilation, size, strict=True)]
    padded = draw(st.booleans())
    pads = [(draw(st.integers(0, span - 1)), draw(st.integers(0, span - 1))) if padded else (0, 0) for span in spans]
    lengths = each(st.integers(1, (9, 5, 3)[axes - 1]))
    return lengths, size, stride, pads, dilation, spans


@pytest.mark.parametrize("kind", ["max", "average", "average of samples"])
@given(st.sampled_from(["torch", "caffe"]), st.booleans(), st.data())
def test_every_window_is_what_a_loop_reads_under_it(kind, rule, ceil, data):
    lengths, size, stride, pads, dilation, spans = data.draw(problems(dilated=kind == "max"))
    any_pad = any(map(any, pads))
    sides = list(zip(lengths, spans, stride, pads, strict=True))
    kept = rule == "caffe" and ceil
    counts = [caffes_count(*side, any_pad) if kept else torchs_count(*side, ceil) for side in sides]
    assume(min(counts) > 0)
    features = random_map(2, *lengths).requires_grad_()
    settings = {"stride": tuple(stride), "padding": tuple(pads), "rule": rule, "ceil": ceil}
    if kind == "max":
        found = max_pool(features, tuple(size), dilation=tuple(dilation), **settings)
    else:
        found = avg_pool(features, tuple(size), count_padding=kind == "average", **settings)
    expected = looped(features, counts, size, stride, pads, dilation, kind, kind != "average of samples")
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)
    towards = torch.randn_like(expected)
    (gradient,) = torch.autograd.grad(found, features, towards)
    (same,) = torch.autograd.grad(expected, features, towards)
    torch.testing.assert_close(gradient, same, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("ceil", [True, False])
def test_torchs_windows_are_torchs_own_result_and_gradient(axes, batched, ceil):
    features = random_map(*(2, 3, 9, 8, 7)[: 2 + axes])
    features = (features if batched else features[0]).requires_grad_()
    ours = {
        "max": lambda: max_pool(features, 3, 2, 1, ceil=ceil, axes=axes),
        "average": lambda: avg_pool(features, 3, 2, 1, ceil=ceil, axes=axes),
        "adaptive max": lambda: adaptive_pool(features, 4, axes=axes),
        "adaptive average": lambda: adaptive_pool(features, 4, "average", axes=axes),
    }
    for name, call in ours.items():
        pool = TORCHS[name][axes]
        theirs = pool(features, 4) if name.startswith("adaptive") else pool(features, 3, 2, 1, ceil_mode=ceil)
        found = call()
        assert torch.equal(found, theirs)
        towards = torch.randn_like(found)
        assert torch.equal(*(torch.autograd.grad(one, features, towards)[0] for one in (found, theirs)))


def test_every_configuration_of_caffe_has_its_size():
    for length, size, stride in product(range(1, 9), range(1, 5), range(1, 6)):
        for pad in range(size):
            count = caffes_count(length, size, stride, (pad, pad), pad > 0)
            features = torch.zeros(1, 1, length)
            if count > 0:
                assert max_pool(features, size, stride, pad, rule="caffe").shape[-1] == count
                assert avg_pool(features, size, stride, pad, rule="caffe").shape[-1] == count
            else:
                with pytest.raises(InputError, match="too small"):
                    max_pool(features, size, stride, pad, rule="caffe")


def test_padding_of_one_axis_clips_the_last_window_of_the_other_as_in_caffe():
    features = random_map(1, 2, 4, 4)
    assert max_pool(features, 1, 4, rule="caffe").shape == (1, 2, 2, 2)
    assert max_pool(features, (1, 2), 4, (0, 1), rule="caffe").shape == (1, 2, 1, 2)


def test_a_window_of_caffes_that_reads_nothing_is_zero_and_has_no_gradient():
    features = (random_map(1, 1, 7, 9) - 10).requires_grad_()
    for pool in (max_pool, avg_pool):
        pooled = pool(features, 2, 5, rule="caffe")
        assert pooled.shape == (1, 1, 2, 3)
        assert (pooled[..., 2] == 0).all()
        assert (pooled[..., :2] < 0).all()
        (gradient,) = torch.autograd.grad(pooled[..., 2].sum(), features)
        assert not gradient.any()


def test_taps_that_all_fall_into_the_padding_give_zero_and_not_minus_infinity():
    assert F.max_pool1d(torch.ones(1, 1, 1), 2, 1, 1, dilation=2).item() == -math.inf
    assert max_pool(torch.ones(1, 1, 1), 2, 1, 1, dilation=2).item() == 0


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_padding_beyond_half_of_the_taps_is_taken_where_torch_refuses_it(axes):
    # Windows of 4 taps 3 apart span 10: at most 5 samples of padding leave a sample under each.
    features = random_map(2, 1, *(1,) * (axes - 1), 10)
    along_last = (1,) * (axes - 1)
    padded = F.pad(features, (5, 5), value=-math.inf)
    assert torch.equal(
        max_pool(features, (*along_last, 4), 1, (*(0,) * (axes - 1), 5), (*along_last, 3)),
        torch.stack([padded[..., start : start + 10 : 3].amax(-1) for start in range(11)], -1),
    )


def test_gradients_of_windows_that_read_nothing_stay_in_their_memory():
    # Torch's own backward writes outside of it here, and the process ends.
    for shape, size, padding in (((1, 2, 2, 2), 2, 1), ((1, 2, 1, 1, 1), 3, 1)):
        features = torch.randn(shape, requires_grad=True)
        pooled = max_pool(features, size, 5, padding, 3, ceil=True)
        pooled.sum().backward()
        assert torch.equal(pooled, torch.zeros_like(pooled))
        assert torch.equal(features.grad, torch.zeros(shape))


def opencv(features, pooling):
    """What OpenCV's reader of Caffe's files makes of a pooling layer."""
    dims = "\n".join(f"input_dim: {length}" for length in features.shape)
    text = f'name: "one"\ninput: "map"\n{dims}\nlayer {{ name: "p" type: "Pooling" bottom: "map" top: "p" pooling_param {{ {pooling} }} }}'
    net = cv2.dnn.readNetFromCaffe(np.frombuffer(text.encode(), np.uint8))
    net.setInput(features.numpy())
    return torch.from_numpy(net.forward())


@pytest.mark.parametrize(("kind", "pool"), [("MAX", max_pool), ("AVE", avg_pool)])
@pytest.mark.parametrize(
    ("size", "stride", "pad"), [(2, 2, 0), (3, 2, 0), (3, 2, 1), (3, 3, 1), (1, 4, 0), (4, 3, 2), (3, 1, 2), (2, 5, 0)]
)
def test_opencv_reads_the_same_out_of_a_caffe_file(kind, pool, size, stride, pad):
    features = random_map(1, 2, 7, 9, dtype=torch.float32)
    theirs = opencv(features, f"pool: {kind} kernel_size: {size} stride: {stride} pad: {pad}")
    torch.testing.assert_close(pool(features, size, stride, pad, rule="caffe"), theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("kind", "ours"), [("MAX", "max"), ("AVE", "average")])
def test_opencv_reads_the_same_global_pooling_out_of_a_caffe_file(kind, ours):
    features = random_map(2, 3, 7, 9, dtype=torch.float32)
    theirs = opencv(features, f"pool: {kind} global_pooling: true")
    torch.testing.assert_close(global_pool(features, ours), theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("pool", "reduce"), [(max_pool, np.max), (avg_pool, np.mean)])
def test_blocks_are_those_of_scikit_image(pool, reduce):
    features = random_map(3, 8, 6)
    expected = block_reduce(features.numpy(), (1, 4, 3), reduce)
    torch.testing.assert_close(pool(features, (4, 3)), torch.from_numpy(expected), rtol=1e-14, atol=1e-14)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=3), st.integers(1, 6), st.sampled_from(["max", "average"]))
def test_adaptive_windows_share_the_map_by_the_window_algebra(lengths, count, kind):
    features = random_map(2, *lengths)
    found = adaptive_pool(features, count, kind, axes=len(lengths))
    reads = [[Adaptive(count).reads(i, i + 1, length) for i in range(count)] for length in lengths]
    for place in product(range(count), repeat=len(lengths)):
        part = features[(slice(None), *(slice(*reads[axis][i]) for axis, i in enumerate(place)))].flatten(1)
        expected = part.amax(1) if kind == "max" else part.mean(1)
        torch.testing.assert_close(found[(slice(None), *place)], expected, rtol=1e-13, atol=1e-13)


def test_an_axis_without_an_output_size_keeps_its_length():
    features = random_map(2, 3, 8, 6)
    assert torch.equal(adaptive_pool(features, (None, 3)), F.adaptive_max_pool2d(features, (None, 3)))


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=3),
    st.lists(st.integers(1, 6), min_size=1, max_size=4),
    st.sampled_from(["max", "average"]),
)
def test_a_pyramid_is_its_levels_one_after_the_other_whatever_the_size(lengths, levels, kind):
    axes = len(lengths)
    features = random_map(2, 3, *lengths).requires_grad_()
    expected = torch.cat([adaptive_pool(features, level, kind, axes=axes).flatten(1) for level in levels], 1)
    found = pyramid_pool(features, tuple(levels), kind)
    assert found.shape == (2, 3 * sum(level**axes for level in levels))
    assert torch.equal(found, expected)
    towards = torch.randn_like(found)
    gradient, same = (torch.autograd.grad(one, features, towards)[0] for one in (found, expected))
    torch.testing.assert_close(gradient, same, rtol=1e-13, atol=1e-13)
    assert torch.equal(pyramid_pool(features[0], levels, kind, axes=axes), found[0])


@pytest.mark.parametrize("kind", ["max", "average"])
def test_global_pooling_leaves_one_value_a_channel(kind):
    features = random_map(2, 3, 5, 4)
    flat = features.flatten(2)
    found = global_pool(features, kind)
    assert found.shape == (2, 3, 1, 1)
    torch.testing.assert_close(found.flatten(1), flat.amax(2) if kind == "max" else flat.mean(2))
    assert torch.equal(global_pool(features[0], kind, axes=2), found[0])


CALLS = {
    "max": lambda x: max_pool(x, 3, 2, 1),
    "Caffe's max": lambda x: max_pool(x, 2, 5, rule="caffe"),
    "widely padded": lambda x: max_pool(x, (3, 2), 2, ((2, 1), 0)),
    "average": lambda x: avg_pool(x, 3, 2, 1),
    "Caffe's average": lambda x: avg_pool(x, 2, 5, rule="caffe"),
    "average of samples": lambda x: avg_pool(x, 3, 2, (2, 2), count_padding=False),
    "adaptive": lambda x: adaptive_pool(x, 3),
    "global": lambda x: global_pool(x, "average"),
    "pyramid": lambda x: pyramid_pool(x),
}


@pytest.mark.parametrize("name", CALLS)
def test_gradients_are_those_of_finite_differences(name):
    features = random_map(1, 2, 7, 6).requires_grad_()
    assert torch.autograd.gradcheck(CALLS[name], features)
    assert torch.autograd.gradgradcheck(CALLS[name], features)


@pytest.mark.parametrize("name", CALLS)
def test_an_empty_batch_passes_through(name):
    features = random_map(0, 2, 7, 6).requires_grad_()
    found = CALLS[name](features)
    found.sum().backward()
    assert found.shape == (0, *CALLS[name](random_map(1, 2, 7, 6)).shape[1:])
    assert features.grad.shape == features.shape


@pytest.mark.parametrize("name", CALLS)
def test_half_precision_stays_and_autocast_takes_nothing(name):
    features = random_map(2, 2, 7, 6, dtype=torch.bfloat16)
    found = CALLS[name](features)
    assert found.dtype == torch.bfloat16
    # Torch's own means of half precision are rounded twice.
    torch.testing.assert_close(found.float(), CALLS[name](features.float()), rtol=2**-8, atol=0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(CALLS[name](features.float()), CALLS[name](features.float()))
        assert torch.equal(CALLS[name](features), found)


class Around(torch.nn.Module):
    def __init__(self, name):
        super().__init__()
        self.name = name

    def forward(self, features):
        return CALLS[self.name](features * 2)


@pytest.mark.parametrize("name", CALLS)
def test_an_exported_program_takes_other_batches_and_where_the_kernel_does_other_sizes(name):
    module = Around(name)
    sizes = {0: torch.export.Dim("batch")}
    if name in ("max", "average", "adaptive", "global", "pyramid"):
        sizes |= {2: torch.export.Dim("height", min=4, max=64)}
    program = torch.export.export(module, (random_map(2, 3, 11, 9),), dynamic_shapes=(sizes,)).module()
    other = random_map(5, 3, 13 if 2 in sizes else 11, 9)
    assert torch.equal(program(other), module(other))


@pytest.mark.parametrize("name", CALLS)
def test_tensors_without_values_get_shapes(name):
    features = random_map(2, 3, 11, 9)
    assert CALLS[name](features.to("meta")).shape == CALLS[name](features).shape


@pytest.mark.parametrize("pool", [Pool(avg_pool, size=2, stride=5, rule="caffe"), Pool(pyramid_pool)], ids=repr)
def test_the_forecast_of_a_step_agrees_with_its_measurement(pool):
    work = sash.Workload(pool, (torch.randn(4, 8, 61, 67, requires_grad=True),), train=True)
    found, measured = sash.forecast(work).peak_bytes, sash.measure(work).peak_bytes
    assert 0 <= found - measured <= 0.02 * measured


def test_a_layer_is_its_function_and_shows_its_settings():
    features = random_map(2, 3, 8, 8)
    layer = Pool(max_pool, size=3, stride=2, rule="caffe")
    assert torch.equal(layer(features), max_pool(features, 3, 2, rule="caffe"))
    assert repr(layer) == "Pool(max_pool, size=3, stride=2, rule='caffe')"


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda x: max_pool(x.long(), 2), "the map is of type torch.int64; it has to be floating"),
        (lambda x: max_pool(x[0, 0], 2), "the map is 5x4; .* 1 to 3 spatial axes: give axes="),
        (lambda x: max_pool(x[0, 0, 0], (2, 2)), "the map is 4; .*: 2 spatial axes want 4, or 3"),
        (lambda x: max_pool(x[:, :, :0], 2), "the map is 2x3x0x4: only its batch may be empty"),
        (lambda x: max_pool(x, (2, 2), (1, 1, 1)), "were given for 2 and for 3 axes"),
        (lambda x: max_pool(x, 2, axes=4), "the map is 2x3x5x4; .* give axes="),
        (lambda x: max_pool(x, 6), "too small: spatial axis 0 has 5 samples, and the window spans 6; a span of 5 fits"),
        (
            lambda x: avg_pool(x, 8, padding=1),
            "too small: spatial axis 0 has 5 samples and 2 of padding, and the window spans 8; a span of 7",
        ),
        (lambda x: max_pool(x, 2, padding=2), "spatial axis 0 is padded by 2, and its windows span 2: .* 1 is the most"),
        (lambda x: max_pool(x, 0), "A window's size is a whole number from 1 on, not 0"),
        (lambda x: max_pool(x, 2, 0), "A window's stride is a whole number from 1 on, not 0"),
        (lambda x: max_pool(x, 2.0), "size is 2.0; it is a whole number, or a tuple"),
        (lambda x: avg_pool(x, 2, padding="same"), "padding is 'same'; it is a whole number, or a tuple"),
        (lambda x: max_pool(x, 2, rule="keras"), "rule is 'keras'; it may be 'torch' or 'caffe'"),
        (lambda x: global_pool(x, "mean"), "kind is 'mean'; it may be 'max' or 'average'"),
        (lambda x: adaptive_pool(x, 0), "the output size is 0; it is a number from 1 on"),
        (lambda x: adaptive_pool(x, (2, 2.5)), r"the output size is \(2, 2.5\)"),
        (lambda x: adaptive_pool(x, 2.5), "the output size is 2.5"),
        (lambda x: pyramid_pool(x, ()), r"levels are \(\); they are numbers from 1 on, at least one"),
        (lambda x: pyramid_pool(x, (2, 0)), r"levels are \(2, 0\)"),
        (lambda x: pyramid_pool(x, 4), "levels are 4"),
    ],
)
def test_what_does_not_go_together_is_refused_with_what_was_found(call, told):
    with pytest.raises(InputError, match=told):
        call(torch.randn(2, 3, 5, 4))
