"""Window values by hand, and what their construction refuses."""

from dataclasses import FrozenInstanceError
from fractions import Fraction

import pytest

from sash.errors import InputError
from sash.window import WHOLE, Adaptive, Chain, Circular, Grid, Interval, Transposed, Window, solve


def test_a_window_of_eight_on_forty_samples():
    window = Window(8)
    assert window.span == 8
    assert window.outputs(40) == 33
    assert window.reads(0, 1) == (0, 8)
    assert window.reads(32, 33) == Interval(32, 40)
    assert window.writes(0, 1, 40) == (0, 1)
    assert window.writes(20, 21, 40) == (13, 21)
    assert window.offset == Fraction(7, 2)


def test_reads_reach_into_the_padding_unless_the_length_is_given():
    window = Window(3, pad=(1, 1))
    assert window.reads(0, 1) == (-1, 2)
    assert window.reads(0, 1, 5) == (0, 2)
    assert window.reads(4, 5, 5) == (3, 5)


def test_padding_that_keeps_the_size_evens_the_coverage_only_partly():
    assert Window(3).coverage(6) == (1, 2, 3, 3, 2, 1)
    assert Window(3, pad=(1, 1)).coverage(6) == (2, 3, 3, 3, 3, 2)
    assert Circular(Window(3, pad=(1, 1))).coverage(6) == (3, 3, 3, 3, 3, 3)


def test_the_speech_chain_leaves_the_last_sample_unread():
    chain = Chain([Window(8), Window(6, 2)])
    assert chain.lengths(40) == (40, 33, 14)
    assert (chain.receptive_field, chain.jump, chain.offset) == (13, 2, 6)
    assert chain.coverage(40)[-1] == 0
    assert chain.reads(0, 14, 40) == (0, 39)
    assert chain.project((39, 40), 40).length == 0


def test_resnet_50_sees_483_samples_every_32():
    # Araujo, Norris and Sim (Distill, 2019) list 483 and 32 for the variant that strides in the last block of a stage.
    blocks = [Window(3, stride, pad=(1, 1)) for count, last in ((3, 2), (4, 2), (6, 2), (3, 1)) for stride in [1] * (count - 1) + [last]]
    chain = Chain([Window(7, 2, pad=(3, 3)), Window(3, 2, pad=(1, 1)), *blocks])
    assert chain.outputs(224) == 7
    assert (chain.receptive_field, chain.jump) == (483, 32)


def test_down_and_up_again_is_a_jump_of_one():
    chain = Chain([Window(3, pad=(1, 1)), Window(2, 2), Window(3, pad=(1, 1)), Transposed(Window(2, 2)), Window(3, pad=(1, 1))])
    assert chain.outputs(64) == 64
    assert chain.jump == 1
    assert chain.offset == 0
    assert chain.halo() == (5, 5)


def test_a_transposed_window_writes_where_its_window_reads():
    up = Transposed(Window(4, 2, pad=(1, 1)))
    assert up.outputs(20) == 40
    assert up.writes(3, 4) == (5, 9)
    assert up.reads(5, 6) == (2, 4)
    assert Transposed(Window(3, 2, pad=(1, 1)), 1).outputs(20) == 40


def test_a_tile_of_a_chain_names_its_input():
    tiles = Chain([Window(3, pad=(1, 1)), Window(2, 2)]).tiles(20, 4)
    assert [(tuple(tile.outputs), tuple(tile.inputs)) for tile in tiles] == [((0, 4), (0, 9)), ((4, 8), (7, 17)), ((8, 10), (15, 20))]
    assert tiles[1].levels == ((7, 17), (8, 16), (4, 8))


def test_adaptive_bins_overlap_where_the_length_does_not_divide():
    assert [tuple(Adaptive(3).reads(output, output + 1, 7)) for output in range(3)] == [(0, 3), (2, 5), (4, 7)]
    assert WHOLE.outputs(9) == 1
    assert WHOLE.reads(0, 1, 9) == (0, 9)
    assert Chain([Window(3), WHOLE]).field(9) == 9


def test_solving_names_the_pads_and_sizes_for_a_wanted_length():
    found = solve(Window(3), 40, 40)
    assert [window.pad for window in found.pads] == [(1, 1)]
    assert [window.size for window in found.sizes] == [1]
    assert solve(Window(7, 2), 224, 112).pads[0].pad == (2, 3)
    assert [window.stride for window in solve(Window(6), 33, 14).strides] == [2]
    assert solve(Window(3), 4, 50).pads == ()


def test_a_chain_joins_the_chains_in_it_and_grids_take_one_an_axis():
    inner = Chain([Window(3), Window(5)])
    assert Chain([inner, Window(2)]).links == (Window(3), Window(5), Window(2))
    grid = Grid([Window(3), Window(5, 2)]).then(Grid([Window(2), Window(2)]))
    assert grid.outputs((10, 20)) == (7, 7)
    assert grid.receptive_field == (4, 7)
    assert grid.jump == (1, 2)
    assert grid.offset == (Fraction(3, 2), 3)
    assert grid.halo() == ((0, 3), (0, 5))
    assert grid.project(((0, 1), (0, 1)), (10, 20)) == ((0, 1), (0, 1))


def test_windows_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        Window(3).size = 4  # type: ignore[misc]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Window(0), "A window's size is a whole number from 1 on, not 0."),
        (lambda: Window(3, 0), "A window's stride is a whole number from 1 on, not 0."),
        (lambda: Window(3, 1, 1.5), "A window's dilation is a whole number from 1 on, not 1.5."),  # type: ignore[arg-type]
        (lambda: Window(True), "A window's size is a whole number from 1 on, not True."),
        (lambda: Window(3, pad=1), "pad is (before, after), two whole numbers from 0 on, not 1; the same on both sides is pad=(1, 1)."),  # type: ignore[arg-type]
        (lambda: Window(3, pad=(-1, 0)), "not (-1, 0)"),
        (lambda: Window(3, ceil=True).then(Window(2)), "Chain([first, second]) follows them"),
        (lambda: Transposed(Window(3, ceil=True)), "a ceil window cannot be transposed; drop ceil."),
        (lambda: Transposed(Window(3, 2), 2), "output pad is from 0 up to 1 (below its stride or dilation), not 2."),
        (lambda: Circular(Window(3, ceil=True)), "a circular signal has none; drop ceil."),
        (lambda: Adaptive(0), "An adaptive window's count is a whole number from 1 on, not 0."),
        (lambda: Chain([3]), "A chain is made of Window, Circular, Transposed, Adaptive and Chain, not 3; Window(3) may be meant."),  # type: ignore[list-item]
        (lambda: Chain([WHOLE]).receptive_field, "depends on the signal's length"),
        (lambda: Chain([WHOLE]).jump, "depends on the signal's length; ask field(length), reads(start, stop, length) or levels."),
        (lambda: Chain([Window(3)]).tiles(9, 0), "A tile has at least 1 output, not 0."),
        (lambda: Grid([]), "A grid has at least one axis"),
        (lambda: Grid([Window(3)]).outputs((4, 5)), "a shape for this grid has 1 entries, one an axis, not 2: (4, 5)."),
        (lambda: solve(Window(3), 4, 0), "Solving needs at least 1 output on at least 1 sample, not 0 on 4."),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(make, message):
    with pytest.raises(InputError) as caught:
        make()
    assert message in str(caught.value)
