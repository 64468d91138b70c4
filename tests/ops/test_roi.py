"""RoI pooling, held to the sources' loops."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import sash
from sash.errors import InputError
from sash.ops import RoIAlign, RoIPool, _compiled, _roi_gather, _roi_operators, roi_align, roi_pool


@pytest.fixture(params=["compiled", "torch"])
def code(request, monkeypatch):
    """Both ways to the same result, the second in parts of a few boxes."""
    if request.param == "compiled":
        pytest.importorskip("numba")
        return
    monkeypatch.setattr(_roi_operators, "compiled", lambda tensor: False)
    monkeypatch.setattr(_roi_gather, "PART", 1 << 10)


def rounded(value):
    return math.floor(abs(value) + 0.5) * (1 if value > 0 else -1)


def naive_pool(features, rois, bins, scale):
    """The source's loops in Python's floats: values and places."""
    channels, height, width = features.shape[1:]
    values = torch.zeros(len(rois), channels, bins, bins, dtype=features.dtype)
    places = torch.full(values.shape, -1)
    for k, (image, *ends) in enumerate(rois.tolist()):
        x1, y1, x2, y2 = (rounded(end * scale) for end in ends)
        high, wide = max(y2 - y1 + 1, 1) / bins, max(x2 - x1 + 1, 1) / bins
        for c in range(channels):
            for i in range(bins):
                for j in range(bins):
                    best = -math.inf
                    for row in range(max(y1 + math.floor(i * high), 0), min(y1 + math.ceil((i + 1) * high), height)):
                        for column in range(max(x1 + math.floor(j * wide), 0), min(x1 + math.ceil((j + 1) * wide), width)):
                            value = features[int(image), c, row, column].item()
                            if value > best:
                                best, places[k, c, i, j] = value, row * width + column
                                values[k, c, i, j] = value
    return values, places


def naive_sample(plane, y, x):
    height, width = plane.shape
    if not (-1 <= y <= height and -1 <= x <= width):
        return 0.0
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    top, left = math.floor(y), math.floor(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    above = plane[top, left] * (1 - x + left) + plane[top, right] * (x - left)
    below = plane[bottom, left] * (1 - x + left) + plane[bottom, right] * (x - left)
    return above * (1 - y + top) + below * (y - top)


def naive_align(features, rois, bins, scale, ratio, aligned):
    """The source's loops, each sample by itself; differentiable."""
    values = []
    for image, *ends in rois.tolist():
        x1, y1, x2, y2 = (end * scale - 0.5 * aligned for end in ends)
        extents = [y2 - y1, x2 - x1] if aligned else [max(y2 - y1, 1.0), max(x2 - x1, 1.0)]
        high, wide = (extent / bins for extent in extents)
        down, across = (ratio or math.ceil(size) for size in (high, wide))
        for plane in features[int(image)]:
            for i in range(bins):
                for j in range(bins):
                    total = torch.zeros((), dtype=features.dtype)
                    for row in range(down):
                        for column in range(across):
                            y, x = y1 + high * (i + (row + 0.5) / down), x1 + wide * (j + (column + 0.5) / across)
                            total = total + naive_sample(plane, y, x)
                    values.append(total / max(down * across, 1))
    return torch.stack(values).view(len(rois), features.shape[1], bins, bins)


def problem(boxes=12, channels=3, seed=0, dtype=torch.float64, images=2, height=11, width=9):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(images, channels, height, width, generator=generator, dtype=torch.float64).to(dtype)
    ends = torch.rand(boxes, 4, generator=generator, dtype=torch.float64) * 260 - 40
    image = torch.randint(images, (boxes, 1), generator=generator)
    return features, torch.cat([image, ends], 1).to(torch.float64 if dtype is torch.float64 else torch.float32)


@pytest.mark.usefixtures("code")
@pytest.mark.parametrize("bins", [1, 3])
@pytest.mark.parametrize("seed", [0, 1])
def test_pooling_is_the_sources_loop_also_for_crossed_boxes_and_beyond_the_border(bins, seed):
    features, rois = problem(seed=seed)
    values, places = roi_pool(features, rois, bins, 1 / 16, return_positions=True)
    expected, expected_places = naive_pool(features, rois, bins, 1 / 16)
    assert torch.equal(values, expected)
    assert torch.equal(places.long(), expected_places)
    assert torch.equal(roi_pool(features, rois, bins, 1 / 16), expected)
    assert (places < 0).any()
    assert (values[places < 0] == 0).all()


@pytest.mark.usefixtures("code")
@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("ratio", [None, 1, 3])
def test_aligning_is_the_sources_loop_with_its_gradient(ratio, aligned):
    features, rois = problem(boxes=6, channels=2)
    features.requires_grad_()
    values = roi_align(features, rois, 3, 1 / 16, ratio, aligned)
    expected = naive_align(features, rois, 3, 1 / 16, ratio, aligned)
    torch.testing.assert_close(values, expected, atol=1e-12, rtol=0)
    weights = torch.randn(values.shape, dtype=values.dtype)
    (found,), (wanted,) = (torch.autograd.grad(result, features, weights) for result in (values, expected))
    torch.testing.assert_close(found, wanted, atol=1e-12, rtol=0)


@pytest.mark.usefixtures("code")
def test_ends_at_a_half_are_rounded_away_from_zero():
    features = torch.arange(10.0).view(1, 1, 1, 10)
    # 2.5 and 6.5 become 3 and 7, where to the even number they would be 2 and 6; −0.5 becomes −1.
    rois = torch.tensor([[0, 2.5, 0, 6.5, 0], [0, 0, 0, 0.49999997, 0], [0, -0.5, 0, -0.5, 0]])
    values, places = roi_pool(features, rois, (1, 5), return_positions=True)
    assert values[0, 0, 0].tolist() == [3, 4, 5, 6, 7]
    assert values[1, 0, 0].tolist() == [0] * 5
    assert places[1, 0, 0].tolist() == [0] * 5
    assert places[2, 0, 0].tolist() == [-1] * 5


@pytest.mark.usefixtures("code")
def test_bins_of_a_box_that_does_not_divide_share_cells_as_adaptive_pooling_has_it():
    features = torch.randn(1, 4, 23, 19)
    values = roi_pool(features, torch.tensor([[0, 0, 0, 18.0, 22.0]]), (7, 5))
    torch.testing.assert_close(values, nn.functional.adaptive_max_pool2d(features, (7, 5)), rtol=0, atol=0)


@pytest.mark.usefixtures("code")
def test_the_gradient_goes_to_the_first_of_equals_and_adds_up_over_boxes():
    features = torch.ones(1, 2, 4, 5, requires_grad=True)
    rois = torch.tensor([[0, 1, 1, 3, 2], [0, 0, 0, 4, 3], [0, 1, 1, 3, 2.0]])
    values, places = roi_pool(features, rois, 1, return_positions=True)
    assert places[:, 0, 0, 0].tolist() == [6, 0, 6]
    values.sum().backward()
    expected = torch.zeros(1, 2, 4, 5)
    expected[:, :, 1, 1], expected[:, :, 0, 0] = 2, 1
    assert torch.equal(features.grad, expected)


@pytest.mark.usefixtures("code")
def test_what_is_not_a_number_is_seen_in_its_bins_and_nowhere_else():
    features = torch.zeros(1, 2, 6, 6)
    features[0, 0, 2, 3] = math.nan
    features[0, 0, 5, 5] = math.inf
    features[0, 1] = -math.inf
    rois = torch.tensor([[0, 0, 0, 3, 3], [0, 0, 0, 1, 1], [0, 20, 20, 30, 30.0]])
    values, places = roi_pool(features, rois, 1, return_positions=True)
    assert values[0, 0].isnan()
    assert places[0, 0, 0, 0] == 15
    assert values[1, 0] == 0
    assert values[0, 1] == -math.inf
    assert values[2].tolist() == [[[0]], [[0]]]
    means = roi_align(features, rois, 1)
    assert means[0, 0].isnan()
    assert means[1, 0] == 0
    assert means[2].tolist() == [[[0]], [[0]]]


@pytest.mark.usefixtures("code")
def test_first_and_second_derivatives_are_right():
    features, rois = problem(boxes=4, channels=2, height=6, width=5)
    features.requires_grad_()
    for operator in (lambda x: roi_pool(x, rois, 2, 1 / 40), lambda x: roi_align(x, rois, 2, 1 / 40)):
        assert torch.autograd.gradcheck(operator, features)
        assert torch.autograd.gradgradcheck(operator, features)


@settings(max_examples=40)
@given(st.integers(0, 999), st.sampled_from([None, 1, 2]), st.booleans(), st.integers(1, 4), st.integers(1, 300))
def test_compiled_kernels_and_torchs_operators_agree(seed, ratio, aligned, bins, channels):
    pytest.importorskip("numba")
    features, rois = problem(seed=seed, dtype=torch.float32, channels=channels)
    features.requires_grad_()
    found = []
    for compiled in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_roi_operators, "compiled", lambda tensor, compiled=compiled: compiled)
            pooled, places = roi_pool(features, rois, bins, 1 / 16, return_positions=True)
            means = roi_align(features, rois, bins, 1 / 16, ratio, aligned)
            weights = torch.linspace(-1, 1, means.numel()).view(means.shape)
            gradients = [torch.autograd.grad(one, features, weights)[0] for one in (pooled, means)]
        found.append((pooled, places, means, *gradients))
    for one, other in zip(found[0][:2], found[1][:2], strict=True):
        assert torch.equal(one, other)
    torch.testing.assert_close(found[0][2], found[1][2], rtol=0, atol=2e-6)
    for one, other in zip(found[0][3:], found[1][3:], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=2e-5)


@given(st.integers(0, 999), st.sampled_from([None, 2, 4]), st.booleans())
def test_a_float_mean_stays_within_its_bound_where_samples_are_placed_exactly(seed, ratio, aligned):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(1, 3, 12, 12, generator=generator)
    # Up to 8 cells: four bins of 1, 2 or 4 samples then have theirs at 32nds of a cell.
    rois = torch.cat([torch.zeros(5, 1), torch.randint(0, 9, (5, 4), generator=generator)], 1)
    found = roi_align(features, rois, 4, 1.0, ratio, aligned)
    exact = roi_align(features.double(), rois.double(), 4, 1.0, ratio, aligned)
    assert (found - exact).abs().max() <= 2**-21 * features.abs().max()


@pytest.mark.usefixtures("code")
def test_a_huge_box_costs_no_more_than_its_part_on_the_map():
    features = torch.randn(1, 2, 9, 9, dtype=torch.float64)
    far = 40_000.0
    rois = torch.tensor([[0, -far, -far, far, far], [0, 1, 1, 4, 4]], dtype=torch.float64)
    found = roi_align(features, rois, 3)
    # The middle bin's samples, one for each 13,334th of its 13,333.3 cells, are those of a box of which more can be looped over.
    middle = found[0, :, 1, 1] * math.ceil(2 * far / 3) ** 2
    size = 2 * far / 3 / math.ceil(2 * far / 3)
    places = [-far + 2 * far / 3 + (n + 0.5) * size for n in range(math.ceil(2 * far / 3))]
    near = [place for place in places if -1 <= place <= 9]
    expected = torch.stack([sum(naive_sample(plane, y, x) for y in near for x in near) for plane in features[0]])
    torch.testing.assert_close(middle, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found[1:], naive_align(features, rois[1:], 3, 1.0, None, False))
    extreme = torch.tensor([[0, -1e18, -1e18, 1e18, 1e18], [0, 1e18, 0, -1e18, 5]])
    assert roi_pool(features.float(), extreme, 1)[0, :, 0, 0].equal(features.float().amax((0, 2, 3)))
    assert roi_align(features.float(), extreme, 2, aligned=True).isfinite().all()


@pytest.mark.usefixtures("code")
@pytest.mark.parametrize("operator", [roi_pool, roi_align])
@pytest.mark.parametrize("shape", [(0, 3, 5, 5), (2, 3, 5, 5), (2, 0, 5, 5), (2, 3, 0, 5), (2, 3, 5, 0)])
def test_what_is_empty_passes_through(operator, shape):
    features = torch.randn(shape, requires_grad=True)
    boxes = 0 if shape[0] == 0 or 0 not in shape else 3
    found = operator(features, torch.zeros(boxes, 5), (2, 4))
    assert found.shape == (boxes, shape[1], 2, 4)
    assert (found == 0).all()
    found.sum().backward()
    assert torch.equal(features.grad, torch.zeros(shape))


@pytest.mark.usefixtures("code")
@pytest.mark.parametrize("operator", [roi_pool, roi_align])
def test_any_layout_of_the_features_and_of_the_gradient_will_do(operator):
    features, rois = problem(dtype=torch.float32, channels=4)
    expected = operator(features, rois, 2, 1 / 16)
    for laid in (features.contiguous(memory_format=torch.channels_last), features.transpose(2, 3).contiguous().transpose(2, 3)):
        assert torch.equal(operator(laid, rois, 2, 1 / 16), expected)
    features.requires_grad_()
    weights = torch.randn(2, 2, 4, 12)
    (found,) = torch.autograd.grad(operator(features, rois, 2, 1 / 16), features, weights.permute(3, 2, 1, 0))
    (wanted,) = torch.autograd.grad(operator(features, rois, 2, 1 / 16), features, weights.permute(3, 2, 1, 0).contiguous())
    assert torch.equal(found, wanted)


@pytest.mark.usefixtures("code")
@pytest.mark.parametrize("operator", [roi_pool, roi_align])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float_and_rounded_once(operator, dtype):
    features, rois = problem(dtype=dtype)
    features.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        values = operator(features, rois, 3, 1 / 16)
    values.backward(torch.ones_like(values))
    wide = features.detach().float().requires_grad_()
    exact = operator(wide, rois, 3, 1 / 16)
    exact.backward(torch.ones_like(exact))
    assert values.dtype == features.grad.dtype == dtype
    assert torch.equal(values, exact.to(dtype))
    assert torch.equal(features.grad, wide.grad.to(dtype))


def test_results_do_not_depend_on_the_number_of_threads(monkeypatch):
    pytest.importorskip("numba")
    monkeypatch.setattr(_compiled, "LEAST", 1)
    features, rois = problem(boxes=50, channels=70, dtype=torch.float32)
    features.requires_grad_()
    found = []
    for threads in (1, 2, 5):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        for operator in (roi_pool, roi_align):
            values = operator(features, rois, 3, 1 / 16)
            found.append((values, *torch.autograd.grad(values, features, torch.ones_like(values))))
    for one, other in zip(found[:2] * 2, found[2:], strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])


class Both(nn.Module):
    def __init__(self):
        super().__init__()
        self.pool, self.align = RoIPool(2, 1 / 16), RoIAlign((2, 3), 1 / 16, aligned=True)

    def forward(self, features, rois):
        return self.pool(features, rois).flatten(1), self.align(features, rois).flatten(1)


def test_both_can_be_exported_with_any_number_of_boxes():
    features, rois = problem(dtype=torch.float32)
    exported = torch.export.export(Both(), (features, rois), dynamic_shapes=({}, {0: torch.export.Dim("boxes", min=2)})).module()
    for found, expected in zip(exported(features, rois[:5]), Both()(features, rois[:5]), strict=True):
        assert torch.equal(found, expected)
    assert repr(Both().align) == "RoIAlign(output_size=(2, 3), scale=0.0625, sampling_ratio=None, aligned=True)"
    assert repr(Both().pool) == "RoIPool(output_size=2, scale=0.0625)"


def test_without_values_there_are_shapes():
    features = torch.zeros(2, 3, 8, 8, device="meta", requires_grad=True)
    for values, width in zip(Both()(features, torch.zeros(7, 5, device="meta")), (12, 18), strict=True):
        assert values.shape == (7, width)
        values.sum().backward()
    assert features.grad.shape == features.shape


def pool_then_align(features, rois):
    return roi_pool(features, rois, 5), roi_align(features, rois, 5)


def test_the_forecast_of_a_training_step_is_what_is_measured():
    features, rois = problem(boxes=100, channels=48, dtype=torch.float32)
    work = sash.Workload(pool_then_align, (features.requires_grad_(), rois), train=True)
    found, measured = sash.forecast(work).peak_bytes, sash.measure(work).peak_bytes
    assert 0 <= found - measured <= 0.005 * measured


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda x, r: roi_pool(x[0], r, 2), r"the features are 3x11x9; they have to be \(images, channels, height, width\)"),
        (lambda x, r: roi_pool(x.long(), r, 2), "the features are of type torch.int64; they have to be floating"),
        (lambda x, r: roi_pool(x, r[:, 1:], 2), r"rois are 12x4; they have to be \(boxes, 5\): image, x1, y1, x2, y2"),
        (lambda x, r: roi_pool(x, r[0], 2), r"rois are 5; they have to be \(boxes, 5\)"),
        (lambda x, r: roi_pool(x, r + math.nan, 2), r"rois\[0\] is \(nan, nan, nan, nan, nan\) \(12 such boxes\); every number has to be"),
        (lambda x, r: roi_align(x, r * math.inf, 2), "every number has to be finite"),
        (lambda x, r: roi_pool(x, r + 1, 2), r"rois\[\d+\] is on image 2, and there are 2 images, 0 to 1"),
        (lambda x, r: roi_pool(x, r - 1, 2), r"rois\[\d+\] is on image -1, and there are 2 images"),
        (lambda x, r: roi_align(x, r + 0.25, 2), r"rois\[0\] is on image \d.25, and there are 2 images"),
        (lambda x, r: roi_pool(x[:0], r, 2), r"rois\[0\] is on image \d, and there is no image"),
        (lambda x, r: roi_pool(x, r, 0), r"output_size is 0; it is a number of bins from 1 on, or two: \(7, 7\)"),
        (lambda x, r: roi_pool(x, r, (2, 2, 2)), r"output_size is \(2, 2, 2\)"),
        (lambda x, r: roi_pool(x, r, 2, -1.0), "scale is -1.0; it is the cells of the map to a pixel"),
        (lambda x, r: roi_align(x, r, 2, math.nan), "scale is nan"),
        (lambda x, r: roi_align(x, r, 2, 1.0, 0), "sampling_ratio is 0; it is a number from 1 on, or None"),
        (lambda x, r: roi_pool(x.to("meta"), r, 2), "the features are on meta and the rois on cpu"),
    ],
)
def test_what_does_not_go_together_is_refused_with_what_was_found(call, told):
    features, rois = problem()
    with pytest.raises(InputError, match=told):
        call(features, rois)


def test_boxes_of_whole_numbers_are_boxes():
    features, rois = problem(dtype=torch.float32)
    whole = rois.long()
    assert torch.equal(roi_pool(features, whole, 2, 1 / 16), roi_pool(features, whole.float(), 2, 1 / 16))
