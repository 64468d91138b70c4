"""Non-maximum suppression, held to the loop that defines it."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import sash
from sash.errors import InputError
from sash.ops import _nms, batched_nms, box_iou, nms


@pytest.fixture(params=["compiled", "torch"])
def code(request, monkeypatch):
    """Both ways to the same result, the second in blocks of a few boxes."""
    if request.param == "compiled":
        pytest.importorskip("numba")
        return
    monkeypatch.setattr(_nms, "compiled", lambda tensor: False)
    monkeypatch.setattr(_nms, "BLOCK", 7)


def naive_nms(boxes, scores, threshold):
    overlaps, kept = box_iou(boxes, boxes), []
    for i in sorted(range(len(boxes)), key=lambda i: (-scores[i].item(), i)):
        if all(overlaps[j, i].item() <= threshold for j in kept):
            kept.append(i)
    return torch.tensor(kept, dtype=torch.int64)


def problem(count=60, seed=0, dtype=torch.float32, side=50):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.randint(0, side, (count, 2), generator=generator)
    boxes = torch.cat([corner, corner + torch.randint(0, side, (count, 2), generator=generator)], 1).to(dtype)
    # Few different scores: many are equal.
    return boxes, torch.randint(0, 9, (count,), generator=generator).to(dtype) / 4


@pytest.mark.usefixtures("code")
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.7, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_stays_is_what_the_loop_keeps_in_its_order(dtype, threshold):
    for seed in range(4):
        boxes, scores = problem(seed=seed, dtype=dtype)
        assert torch.equal(nms(boxes, scores, threshold), naive_nms(boxes, scores, threshold))


@given(st.integers(0, 999), st.integers(0, 40), st.integers(1, 12), st.floats(0, 1))
def test_both_codes_keep_the_same(seed, count, side, threshold):
    pytest.importorskip("numba")
    boxes, scores = problem(count, seed, side=side)
    found = []
    for compiled in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_nms, "compiled", lambda tensor, compiled=compiled: compiled)
            patch.setattr(_nms, "BLOCK", 5)
            found.append(nms(boxes, scores, threshold))
    assert torch.equal(*found)
    assert torch.equal(found[0], naive_nms(boxes, scores, threshold))


@pytest.mark.usefixtures("code")
def test_an_overlap_equal_to_the_threshold_stays_also_where_the_threshold_is_no_float():
    # 3/10 in fp32 is above 0.3 in fp64, and 7/10 below 0.7.
    boxes = torch.tensor([[0.0, 0, 10, 1], [0, 0, 3, 1], [0, 0, 7, 1], [20, 0, 22, 1], [20, 0, 21, 1]])
    scores = torch.tensor([5.0, 4, 3, 2, 1])
    assert nms(boxes, scores, 0.5).tolist() == [0, 1, 3, 4]
    assert nms(boxes[:2], scores[:2], 0.3).tolist() == [0]
    assert nms(boxes[:2], scores[:2], float(torch.tensor(0.3))).tolist() == [0, 1]
    assert nms(boxes[::2], scores[::2], 0.7).tolist() == [0, 1, 2]


@pytest.mark.usefixtures("code")
def test_of_equal_scores_the_lower_number_goes_first_and_boxes_without_area_stay():
    same = torch.tensor([[0.0, 0, 4, 4]]).expand(3, 4)
    assert nms(same, torch.ones(3), 0.5).tolist() == [0]
    flat = torch.tensor([[1.0, 1, 1, 3]]).expand(3, 4)
    assert nms(torch.cat([same, flat]), torch.ones(6), 0.0).tolist() == [0, 3, 4, 5]
    crossed = torch.tensor([[3.0, 3, 1, 1]]).expand(2, 4)
    assert nms(torch.cat([same, crossed]), torch.arange(5.0), 0.0).tolist() == [4, 3, 2]


@pytest.mark.usefixtures("code")
def test_groups_are_each_suppressed_alone_and_listed_together():
    boxes, scores = problem(count=200, side=20)
    groups = torch.randint(-3, 4, (200,), generator=torch.Generator().manual_seed(1)) * 1000
    kept = torch.zeros(200, dtype=torch.bool)
    for group in groups.unique():
        mine = (groups == group).nonzero()[:, 0]
        kept[mine[naive_nms(boxes[mine], scores[mine], 0.4)]] = True
    order = scores.argsort(descending=True, stable=True)
    assert torch.equal(batched_nms(boxes, scores, groups, 0.4), order[kept[order]])
    assert torch.equal(batched_nms(boxes, scores, torch.zeros(200, dtype=torch.int32), 0.4), nms(boxes, scores, 0.4))


def test_far_from_the_origin_groups_lose_no_precision():
    # Moved apart by class number times the largest coordinate, these two would both be rounded to the same box.
    boxes = torch.tensor([[0.0, 0, 1, 1], [0.5, 0, 1.5, 1]])
    groups = torch.tensor([10**9, 10**9])
    assert batched_nms(boxes, torch.ones(2), groups, 0.5).tolist() == [0, 1]


@pytest.mark.usefixtures("code")
def test_no_boxes_leave_none():
    assert nms(torch.zeros(0, 4), torch.zeros(0), 0.5).shape == (0,)
    assert batched_nms(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), 0.5).shape == (0,)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int64])
def test_short_and_whole_numbers_are_compared_in_float(dtype):
    boxes, scores = problem()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(nms(boxes.to(dtype), scores, 0.5), nms(boxes, scores, 0.5))
    assert nms(boxes, (4 * scores).long(), 0.5).dtype == torch.int64


def test_boxes_and_scores_that_take_a_gradient_are_suppressed_without_one():
    boxes, scores = problem()
    found = nms(boxes.requires_grad_(), scores.requires_grad_(), 0.5)
    assert not found.requires_grad


class Both(nn.Module):
    def forward(self, boxes, scores, groups):
        return nms(boxes, scores, 0.5), batched_nms(boxes, scores, groups, 0.5)


def test_both_can_be_exported_whatever_number_stays():
    boxes, scores = problem()
    groups = torch.arange(60) % 3
    exported = torch.export.export(Both(), (boxes, scores, groups)).module()
    for turn in (boxes, boxes.roll(7, 0)):
        for found, expected in zip(exported(turn, scores, groups), Both()(turn, scores, groups), strict=True):
            assert torch.equal(found, expected)


def suppress(boxes, scores):
    return nms(boxes, scores, 0.5)


def test_how_many_stay_is_forecast_from_real_boxes():
    work = sash.Workload(suppress, problem(count=2000, side=400))
    found, measured = sash.forecast(work, real=True).peak_bytes, sash.measure(work).peak_bytes
    assert 0 <= found - measured <= 0.02 * measured


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda b, s: nms(b[:, :3], s, 0.5), r"boxes are 60x3; they have to be \(boxes, 4\)"),
        (lambda b, s: nms(b, s[1:], 0.5), "scores are 59 of type torch.float32; they have to be 60 numbers, one a box"),
        (lambda b, s: nms(b, s + math.nan, 0.5), r"scores\[0\] is nan; every score has to be a number"),
        (lambda b, s: nms(b + math.inf, s, 0.5), r"boxes\[0\] is \(inf, inf, inf, inf\)"),
        (lambda b, s: nms(b, s, 70), "threshold is 70; it is a share from 0 to 1"),
        (lambda b, s: nms(b, s.to("meta"), 0.5), "the boxes are on cpu and the scores on meta"),
        (lambda b, s: batched_nms(b, s, s, 0.5), "groups are 60 of type torch.float32; they have to be 60 whole numbers"),
        (lambda b, s: batched_nms(b, s, s[1:].long(), 0.5), "groups are 59 of type torch.int64"),
    ],
)
def test_what_does_not_go_together_is_refused_with_what_was_found(call, told):
    with pytest.raises(InputError, match=told):
        call(*problem())
