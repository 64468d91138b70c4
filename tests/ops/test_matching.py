"""Which anchors train on what, held to the rule as a loop."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sash.errors import InputError
from sash.ops import IGNORED, NEGATIVE, anchors, box_iou, match, sample_balanced


def naive_match(boxes, truths, high, low, best):
    overlaps = box_iou(boxes, truths).tolist()
    found = []
    for mine in overlaps:
        most = max(mine, default=0.0)
        positive = bool(mine) and most >= high
        for truth, overlap in enumerate(mine):
            positive |= best and overlap > 0 and overlap == max(others[truth] for others in overlaps)
        found.append(mine.index(most) if positive else NEGATIVE if most < low or not mine else IGNORED)
    return found


def some_boxes(count, generator):
    corner = torch.randint(0, 8, (count, 2), generator=generator)
    return torch.cat([corner, corner + torch.randint(0, 8, (count, 2), generator=generator)], 1).double()


@given(st.integers(0, 9999), st.integers(0, 12), st.integers(0, 4), st.booleans(), st.sampled_from([(0.7, 0.3), (0.5, 0.5), (0.25, 0.0)]))
def test_matches_are_what_the_rule_says_box_by_box(seed, count, objects, best, limits):
    generator = torch.Generator().manual_seed(seed)
    boxes, truths = some_boxes(count, generator), some_boxes(objects, generator)
    assert match(boxes, truths, *limits, best=best).tolist() == naive_match(boxes, truths, *limits, best)


def test_every_object_under_an_anchor_has_one_and_all_of_equals_count():
    truths = torch.tensor([[100.0, 100, 130, 130], [5000, 5000, 5100, 5100]])
    grid = anchors(20, 20)
    found = match(grid, truths)
    overlaps = box_iou(grid, truths)[:, 0]
    assert overlaps.max() < 0.3
    assert torch.equal(found == 0, overlaps == overlaps.max())
    assert (found == 0).sum() > 1
    # Farther away than any anchor reaches: none, where comparing with its best overlap of 0 would take them all.
    assert not (found == 1).any()
    assert set(match(grid, truths, best=False).tolist()) == {NEGATIVE}


def test_a_box_that_is_best_for_one_object_belongs_to_the_one_that_it_overlaps_most():
    boxes = torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60]])
    truths = torch.tensor([[0.0, 0, 10, 9], [0, 8, 10, 20]])
    assert match(boxes, truths).tolist() == [0, NEGATIVE]


def test_without_objects_all_are_negative_and_without_boxes_there_are_none():
    assert match(anchors(2, 2), torch.zeros(0, 4)).tolist() == [NEGATIVE] * 36
    assert match(torch.zeros(0, 4), torch.ones(3, 4)).shape == (0,)


@given(st.integers(0, 99), st.integers(0, 300), st.floats(0, 1), st.integers(0, 400))
def test_a_draw_is_balanced_full_where_it_can_be_and_never_of_ignored_boxes(seed, count, share, boxes):
    generator = torch.Generator().manual_seed(seed)
    matches = torch.randint(-2, 3, (boxes,), generator=generator)
    positives, negatives = sample_balanced(matches, count, share, generator=generator)
    assert (matches[positives] >= 0).all()
    assert (matches[negatives] == NEGATIVE).all()
    assert len(positives) == min(int(count * share), int((matches >= 0).sum()))
    assert len(negatives) == min(count - len(positives), int((matches == NEGATIVE).sum()))
    for drawn in (positives, negatives):
        assert torch.equal(drawn, drawn.unique())


def test_a_generator_repeats_the_draw_and_every_box_has_the_same_chance():
    matches = torch.cat([torch.zeros(20), torch.full((30,), NEGATIVE)]).long()

    def draw(seed):
        return torch.cat(sample_balanced(matches, 20, generator=torch.Generator().manual_seed(seed)))

    assert torch.equal(draw(3), draw(3))
    assert not torch.equal(draw(3), draw(4))
    times = torch.stack([draw(seed).bincount(minlength=50) for seed in range(600)]).sum(0)
    # Of 600 draws 10 in 20 and 10 in 30: 300 ± 12 and 200 ± 12 times; five deviations would be a fault.
    assert (times[:20] - 300).abs().max() < 62
    assert (times[20:] - 200).abs().max() < 58


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: match(torch.zeros(3, 4), torch.zeros(2, 5)), r"others are 2x5; they have to be \(boxes, 4\)"),
        (lambda: match(torch.zeros(3, 4), torch.zeros(2, 4), 0.3, 0.7), "low is 0.7 and high 0.3; they have to be shares"),
        (lambda: match(torch.zeros(3, 4), torch.zeros(2, 4), math.nan), "high nan"),
        (lambda: sample_balanced(torch.zeros(3)), "matches are 3 of type torch.float32; they have to be what match gives"),
        (lambda: sample_balanced(torch.zeros(3, 2).long()), "matches are 3x2"),
        (lambda: sample_balanced(torch.zeros(3).long(), -1), "count is -1; it is a number of boxes, from 0 on"),
        (lambda: sample_balanced(torch.zeros(3).long(), 8, 1.5), "positive is 1.5; it is a share from 0 to 1"),
    ],
)
def test_what_does_not_go_together_is_refused_with_what_was_found(call, told):
    with pytest.raises(InputError, match=told):
        call()
