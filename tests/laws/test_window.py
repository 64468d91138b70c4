"""The algebra against naive loops."""

from fractions import Fraction

from hypothesis import assume, given
from hypothesis import strategies as st

from sash.window import WHOLE, Adaptive, Chain, Circular, Grid, Interval, Transposed, Window, solve

small = st.integers(1, 5)
pads = st.tuples(st.integers(0, 6), st.integers(0, 6))
plain = st.builds(Window, small, small, st.integers(1, 4), pads)
windows = st.builds(Window, small, small, st.integers(1, 4), pads, st.booleans())
dense = st.builds(Window, small, small, st.just(1), pads)
lengths = st.integers(1, 40)


@st.composite
def transposes(draw):
    window = draw(plain)
    return Transposed(window, draw(st.integers(0, max(window.stride, window.dilation) - 1)))


regular = st.one_of(windows, transposes())
links = st.one_of(windows, transposes(), st.builds(Adaptive, small), st.just(WHOLE))
chains = st.lists(links, max_size=3).map(Chain)
regular_chains = st.lists(regular, max_size=3).map(Chain)


def taps(link, output, length):
    """Samples that an output reads, one by one, those in the padding included."""
    if isinstance(link, Window):
        return [output * link.stride + tap * link.dilation - link.pad[0] for tap in range(link.size)]
    if isinstance(link, Adaptive):
        return [x for x in range(length) if output * length // link.count <= x < -(-(output + 1) * length // link.count)]
    return [x for x in range(length) if output in taps(link.window, x, None)]


def naive_outputs(window, length):
    """Slide the window until it leaves the padded signal."""
    starts, start, end = [], -window.pad[0], length + window.pad[1]
    while start + window.span <= end:
        starts.append(start)
        start += window.stride
    if window.ceil:
        if start + window.span - end < window.stride:
            starts.append(start)
        if starts and starts[-1] >= length:
            starts.pop()
    return len(starts)


@given(windows, lengths)
def test_outputs_are_counted_by_sliding_the_window(window, length):
    assert window.outputs(length) == naive_outputs(window, length)


@given(plain, plain, lengths)
def test_two_windows_compose_into_one(first, second, length):
    # An empty middle signal has no composite: `second` would see only its own padding.
    assume(first.outputs(length) > 0)
    assert first.then(second).outputs(length) == second.outputs(first.outputs(length))


@given(plain, plain, st.integers(0, 9), st.integers(1, 5))
def test_a_composite_lies_over_what_the_two_read_in_turn(first, second, start, count):
    assert first.then(second).reads(start, start + count) == Chain([first, second]).reads(start, start + count)


@given(plain, plain, plain)
def test_composition_is_associative_in_span_stride_and_pad(a, b, c):
    left, right = a.then(b).then(c), a.then(b.then(c))
    assert (left.span, left.stride, left.pad) == (right.span, right.stride, right.pad)


@given(plain)
def test_a_window_of_one_sample_changes_nothing(window):
    assert Window(1).then(window).reads(0, 3) == window.reads(0, 3)
    assert window.then(Window(1)) == window


@given(plain, plain, st.integers(0, 9))
def test_a_composite_comb_has_the_taps_of_the_two(first, second, output):
    one = first.then(second)
    two = {x for middle in taps(second, output, None) for x in taps(first, middle, None)}
    found = set(taps(one, output, None))
    assert two <= found
    steps = {later - earlier for earlier, later in zip(sorted(two), sorted(two)[1:], strict=False)}
    if len(steps) <= 1 and first.size > 1 and second.size > 1 and first.stride * second.dilation >= first.dilation:
        assert found == two


@given(regular, st.integers(0, 6), st.integers(1, 4), lengths)
def test_what_is_read_spans_every_tap_and_no_more(link, start, count, length):
    assume(start + count <= link.outputs(length))
    touched = [x for output in range(start, start + count) for x in taps(link, output, length) if 0 <= x < length]
    found = link.reads(start, start + count, length)
    assert all(found.start <= x < found.stop for x in touched)
    if isinstance(link, Window) and link.dilation == 1 and link.stride <= link.size and touched:
        assert found == (min(touched), max(touched) + 1)


@given(links, lengths)
def test_an_output_reads_a_sample_exactly_where_the_sample_writes_the_output(link, length):
    for output in range(link.outputs(length)):
        read = link.reads(output, output + 1, length)
        for sample in range(length):
            written = link.writes(sample, sample + 1, length)
            assert (read.start <= sample < read.stop) == (written.start <= output < written.stop)


@given(links, lengths)
def test_coverage_counts_every_read(link, length):
    counts = [0] * length
    for output in range(link.outputs(length)):
        for sample in taps(link, output, length):
            if 0 <= sample < length:
                counts[sample] += 1
    assert link.coverage(length) == tuple(counts)


@given(small, small, st.integers(1, 4), lengths)
def test_a_circular_window_reads_every_sample_alike_at_stride_one(size, stride, dilation, length):
    base = Window.same(size, 1, dilation)
    window = Circular(base)
    assert window.coverage(length) == (size,) * length
    strided = Circular(Window(size, stride, dilation, base.pad))
    assert sum(strided.coverage(length)) == size * strided.outputs(length)


@given(st.integers(2, 5), st.integers(1, 3), st.integers(12, 30), st.integers(0, 11))
def test_a_circular_window_reads_and_writes_round_the_end(size, dilation, length, output):
    window = Circular(Window.causal(size, 1, dilation))
    wraps = any(x < 0 for x in taps(window.window, output, length))
    assert (window.reads(output, output + 1, length) == (0, length)) == wraps
    for sample in {x % length for x in taps(window.window, output, length)}:
        written = window.writes(sample, sample + 1, length)
        assert written.start <= output < written.stop


@given(small, small, st.integers(1, 4), lengths)
def test_a_causal_window_never_reads_later_than_its_output(size, stride, dilation, length):
    window = Window.causal(size, stride, dilation)
    for output in range(window.outputs(length)):
        assert window.reads(output, output + 1).stop - 1 == output * stride
    assert Window.causal(size, 1, dilation).outputs(length) == length


@given(small, st.integers(1, 4), lengths)
def test_same_padding_keeps_the_length_at_stride_one(size, dilation, length):
    assert Window.same(size, 1, dilation).outputs(length) == length


@given(plain, lengths, st.data())
def test_the_adjoint_gives_back_the_length_for_one_output_pad(window, length, data):
    # A dilated window allows more output pads than a stride has phases; the length is always reached by one below the stride.
    assume(window.outputs(length) > 0)
    reached = {
        Transposed(window, pad).outputs(window.outputs(length)) for pad in range(max(window.stride, window.dilation)) if pad < window.stride
    }
    assert length in reached


@given(chains, lengths)
def test_a_chain_composes_lengths_and_coverage(chain, length):
    signals = chain.lengths(length)
    for link, before, after in zip(chain.links, signals, signals[1:], strict=False):
        assert after == (link.outputs(before) if before else 0)
    counts = [0] * length
    for output in range(chain.outputs(length)):
        at = [output]
        for link, signal in zip(reversed(chain.links), reversed(signals[:-1]), strict=True):
            at = [x for index in at for x in taps(link, index, signal) if 0 <= x < signal]
        for x in at:
            counts[x] += 1
    assert chain.coverage(length) == tuple(counts)


@given(regular_chains, st.integers(0, 12))
def test_no_output_reads_more_than_the_receptive_field(chain, output):
    assert chain.reads(output, output + 1).length <= chain.receptive_field
    assert chain.field(30) <= min(chain.receptive_field, 30)


@given(st.lists(plain, max_size=4).map(Chain), st.integers(0, 12))
def test_receptive_field_jump_and_offset_describe_what_is_read(chain, output):
    read = chain.reads(output, output + 1)
    assert read.length == chain.receptive_field
    assert chain.centre(output) == Fraction(read.start + read.stop - 1, 2)
    assert chain.reads(output + 1, output + 2).start - read.start == chain.jump


@given(st.lists(regular, max_size=2).map(Chain), lengths, st.integers(3, 9))
def test_tiles_cover_the_outputs_and_each_level_feeds_the_next(chain, length, tile):
    tiles = chain.tiles(length, tile)
    signals = chain.lengths(length)
    assert [x for part in tiles for x in range(*part.outputs)] == list(range(chain.outputs(length)))
    for part in tiles:
        assert 1 <= part.outputs.length <= tile
        assert part.inputs == chain.reads(*part.outputs, length)
        for link, signal, below, above in zip(chain.links, signals, part.levels, part.levels[1:], strict=False):
            needed = {x for output in range(*above) for x in taps(link, output, signal) if 0 <= x < signal}
            assert needed <= set(range(*below))


@given(regular_chains, st.integers(0, 12), st.integers(1, 7))
def test_the_halo_is_enough_for_every_tile(chain, start, size):
    stop = start + size
    needed = chain.reads(start, stop)
    own = Interval(int(start * chain.jump // 1), int(-(-stop * chain.jump // 1)))
    for before, after in (chain.halo(), chain.halo((start, stop))):
        assert not needed.length or (own.start - before <= needed.start and needed.stop <= own.stop + after)
    assert chain.halo((start, stop))[0] <= chain.halo()[0]
    assert chain.halo((start, stop))[1] <= chain.halo()[1]


@given(st.lists(plain, min_size=1, max_size=3).map(Chain), lengths, st.integers(0, 39), st.integers(1, 8))
def test_projecting_forward_finds_the_outputs_that_read_the_interval(chain, length, start, size):
    assume(start + size <= length)
    found = chain.project((start, start + size), length)
    for output in range(chain.outputs(length)):
        read = chain.reads(output, output + 1, length)
        if read.start < start + size and start < read.stop and all(link.dilation == 1 and link.stride <= link.size for link in chain.links):
            assert found.start <= output < found.stop


@given(windows, lengths, st.integers(1, 12))
def test_solving_finds_every_pad_size_and_stride(window, length, outputs):
    found = solve(window, length, outputs)
    for other in (*found.pads, *found.sizes, *found.strides):
        assert other.outputs(length) == outputs

    def counts(**change):
        fields = {name: getattr(window, name) for name in ("size", "stride", "dilation", "pad", "ceil")} | change
        return Window(**fields).outputs(length)

    pads = [pad for pad in range(2 * window.span - 1) if counts(pad=(pad // 2, pad - pad // 2)) == outputs]
    assert [sum(other.pad) for other in found.pads] == pads
    assert [other.size for other in found.sizes] == [size for size in range(1, 120) if counts(size=size) == outputs]
    strides = [stride for stride in range(1, length + sum(window.pad) + 1) if counts(stride=stride) == outputs]
    assert [other.stride for other in found.strides] == strides


@given(st.tuples(plain, plain), st.tuples(lengths, lengths), st.integers(1, 5))
def test_a_grid_is_its_axes_side_by_side(axes, shape, tile):
    grid = Grid(axes)
    assert grid.outputs(shape) == tuple(axis.outputs(length) for axis, length in zip(axes, shape, strict=True))
    assert grid.coverage(shape) == tuple(axis.coverage(length) for axis, length in zip(axes, shape, strict=True))
    boxes = grid.tiles(shape, (tile, tile))
    cells = [(row, column) for rows, columns in boxes for row in range(*rows.outputs) for column in range(*columns.outputs)]
    expected = [(row, column) for row in range(grid.outputs(shape)[0]) for column in range(grid.outputs(shape)[1])]
    assert sorted(cells) == expected
    for rows, columns in boxes:
        assert grid.reads((rows.outputs, columns.outputs), shape) == (rows.inputs, columns.inputs)
