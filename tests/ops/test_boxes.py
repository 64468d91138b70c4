"""Overlaps, anchors and the encoding of boxes, held to loops, to the published table and to each other."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import sash
from sash.errors import InputError
from sash.ops import anchors, box_iou, decode_boxes, encode_boxes

coordinates = st.integers(-20, 20)
some_boxes = st.lists(st.tuples(coordinates, coordinates, coordinates, coordinates), max_size=5)


def naive_iou(one, other):
    """By counting the unit squares inside."""

    def squares(box):
        return {(x, y) for x in range(box[0], box[2]) for y in range(box[1], box[3])}

    both, either = squares(one) & squares(other), squares(one) | squares(other)
    return len(both) / len(either) if either else 0.0


def as_boxes(values, dtype=torch.float64):
    return torch.tensor(values, dtype=dtype).view(-1, 4)


@given(some_boxes, some_boxes)
def test_overlap_is_the_share_of_squares_that_two_boxes_have_in_common(boxes, others):
    found = box_iou(as_boxes(boxes), as_boxes(others))
    expected = torch.tensor([[naive_iou(one, other) for other in others] for one in boxes], dtype=torch.float64)
    torch.testing.assert_close(found, expected.view(found.shape), rtol=1e-15, atol=0)


def test_a_box_overlaps_itself_wholly_unless_it_has_no_area():
    boxes = as_boxes([(0, 0, 3, 2), (1, 1, 1, 5), (2, 2, 0, 0), (2, 0, 0, 2)])
    assert box_iou(boxes, boxes).diagonal().tolist() == [1, 0, 0, 0]
    assert box_iou(boxes[1:], boxes).sum() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int64])
def test_overlaps_of_short_numbers_and_whole_ones_are_computed_in_float(dtype):
    boxes = as_boxes([(0, 0, 200, 200), (100, 100, 240, 200)], dtype)
    found = box_iou(boxes, boxes)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found[0, 1], torch.tensor(10_000 / 44_000))


def test_overlaps_and_decoded_boxes_have_right_gradients():
    boxes = as_boxes([(0, 0, 3, 2.5), (1, 1, 4.5, 5), (7, 7, 8, 9)]).requires_grad_()
    changes = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(box_iou, (boxes, boxes.detach() + 0.25))
    assert torch.autograd.gradcheck(decode_boxes, (changes, boxes))
    assert torch.autograd.gradcheck(encode_boxes, (boxes, boxes.detach() + 0.25))


# The table at the head of generate_anchors.py: what Faster R-CNN's MATLAB code has, which counts pixels from 1, first to last.
PUBLISHED = [
    (-83, -39, 100, 56),
    (-175, -87, 192, 104),
    (-359, -183, 376, 200),
    (-55, -55, 72, 72),
    (-119, -119, 136, 136),
    (-247, -247, 264, 264),
    (-35, -79, 52, 96),
    (-79, -167, 96, 184),
    (-167, -343, 184, 360),
]


def test_the_nine_anchors_are_the_published_ones():
    from_zero = as_boxes(PUBLISHED) - 1
    assert torch.equal(anchors(1, 1, dtype=torch.float64), from_zero + torch.tensor([0, 0, 1, 1]))


def test_anchors_go_row_by_row_and_those_of_a_cell_stay_together():
    found = anchors(3, 4, stride=8, scales=(2, 4), ratios=(1,))
    assert found.shape == (3 * 4 * 2, 4)
    assert found.dtype == torch.float32
    assert found[0].tolist() == [-4, -4, 12, 12]
    assert found[1].tolist() == [-12, -12, 20, 20]
    by_cell = found.view(3, 4, 2, 4)
    torch.testing.assert_close(by_cell[2, 3] - by_cell[0, 0], torch.tensor([24.0, 16, 24, 16]).expand(2, 4))


@given(st.floats(0.1, 10), st.floats(0.5, 40), st.integers(1, 64))
def test_anchors_that_are_not_rounded_have_their_ratio_and_area(ratio, scale, stride):
    (box,) = anchors(1, 1, stride, (scale,), (ratio,), rounded=False, dtype=torch.float64)
    width, height = (box[2:] - box[:2]).tolist()
    assert math.isclose(height / width, ratio, rel_tol=1e-9)
    assert math.isclose(width * height, (stride * scale) ** 2, rel_tol=1e-9)
    torch.testing.assert_close((box[2:] + box[:2]) / 2, torch.full((2,), stride / 2, dtype=torch.float64))


def test_a_map_without_cells_has_no_anchors():
    assert anchors(0, 5).shape == (0, 4)
    assert anchors(5, 5, scales=()).shape == (0, 4)


@given(st.integers(0, 99), st.sampled_from([(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)]))
def test_decoding_undoes_encoding(seed, weights):
    generator = torch.Generator().manual_seed(seed)
    boxes, near = (400 * torch.rand(2, 6, 4, generator=generator, dtype=torch.float64)).unbind(0)
    boxes[:, 2:] = boxes[:, :2] + boxes[:, 2:] + 1
    near[:, 2:] = near[:, :2] + near[:, 2:] + 20
    changes = encode_boxes(boxes, near, weights)
    torch.testing.assert_close(decode_boxes(changes, near, weights), boxes, rtol=0, atol=1e-9)


def test_an_encoding_is_the_papers_formula():
    found = encode_boxes(as_boxes([(2, 3, 10, 7)]), as_boxes([(0, 0, 4, 8)]), (10, 10, 5, 5))
    expected = [10 * (6 - 2) / 4, 10 * (5 - 4) / 8, 5 * math.log(8 / 4), 5 * math.log(4 / 8)]
    torch.testing.assert_close(found, as_boxes([expected]))
    assert encode_boxes(as_boxes([(2, 3, 10, 7)]), as_boxes([(2, 3, 10, 7)])).tolist() == [[0, 0, 0, 0]]


def test_sides_grow_no_more_than_62_and_a_half_times_and_shrink_freely():
    found = decode_boxes(as_boxes([(0, 0, 100, -100)]), as_boxes([(0, 0, 16, 16)]))
    torch.testing.assert_close(found, as_boxes([(8 - 500, 8, 8 + 500, 8)]))
    freely = decode_boxes(as_boxes([(0, 0, math.log(100), 0)]), as_boxes([(0, 0, 16, 16)]), largest_change=math.inf)
    torch.testing.assert_close(freely, as_boxes([(8 - 800, 0, 8 + 800, 16)]))


def test_changes_of_several_classes_share_their_anchor():
    changes = torch.randn(5, 3, 4, dtype=torch.float64)
    boxes = anchors(5, 1, scales=(8,), ratios=(1,), dtype=torch.float64)
    found = decode_boxes(changes, boxes[:, None])
    assert found.shape == (5, 3, 4)
    torch.testing.assert_close(found[:, 1], decode_boxes(changes[:, 1], boxes))


def test_what_is_empty_passes_through():
    none, some = as_boxes([]), as_boxes([(0, 0, 1, 1)])
    assert box_iou(none, some).shape == (0, 1)
    assert box_iou(some, none).shape == (1, 0)
    assert encode_boxes(none, none).shape == decode_boxes(none, none).shape == (0, 4)


class Loss(nn.Module):
    def forward(self, changes, boxes, truths):
        return box_iou(decode_boxes(changes, boxes), truths) + encode_boxes(boxes, truths).sum()


def test_boxes_can_be_exported_and_forecast():
    inputs = torch.randn(9, 4), anchors(1, 1), torch.tensor([[0.0, 0, 50, 60]])
    assert torch.equal(torch.export.export(Loss(), inputs).module()(*inputs), Loss()(*inputs))
    found = sash.forecast(sash.Workload(box_iou, (torch.rand(300, 4), torch.rand(200, 4))))
    assert found.peak_bytes >= 4 * 300 * 200


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda b: box_iou(b[0], b), r"boxes are 4; they have to be \(boxes, 4\): x1, y1, x2, y2"),
        (lambda b: box_iou(b, b[:, :3]), "others are 2x3; they have to be"),
        (lambda b: box_iou(b, b > 0), "others are of type torch.bool; they have to be numbers"),
        (lambda b: box_iou(b, b.to("meta")), "the boxes are on cpu and the others on meta"),
        (lambda b: box_iou(b * math.nan, b), r"boxes\[0\] is \(nan, nan, nan, nan\) \(2 such boxes\); every number has to be finite"),
        (lambda b: box_iou(b, b * 1e30), r"others\[0\] is \(0, 0, 4e\+30, 3e\+30\).*finite, up to 1e\+18"),
        (lambda b: encode_boxes(b, b[:, [2, 1, 0, 3]]), r"anchors\[0\] is \(4, 0, 0, 3\); a box has to be wide and high to be encoded"),
        (lambda b: encode_boxes(b, b[:0]), "boxes are 2x4 and anchors 0x4: not one for one"),
        (lambda b: decode_boxes(b[:, :3], b), r"changes are 2x3; they have to be \(…, 4\): dx, dy, dw, dh"),
        (lambda b: decode_boxes(b, b, (1, 1, 0, 1)), r"weights are \(1, 1, 0, 1\); they have to be four positive numbers"),
        (lambda b: anchors(-1, 2), "rows is -1; a map has 0 cells or more"),
        (lambda b: anchors(1, 2, 0), "stride is 0; every one has to be positive"),
        (lambda b: anchors(1, 2, scales=(8, -1)), r"scales is \(8, -1\); every one has to be positive"),
    ],
)
def test_what_does_not_go_together_is_refused_with_what_was_found(call, told):
    with pytest.raises(InputError, match=told):
        call(torch.tensor([[0.0, 0, 4, 3], [1, 1, 5, 6]]))
