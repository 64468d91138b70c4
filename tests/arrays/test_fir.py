"""Taps along rows and columns, held to sums in float64, and to themselves however the plane is cut."""

import os
import subprocess
import sys

import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given, settings
from hypothesis import strategies as st

from sash.arrays._border import places
from sash.arrays._fir import CHAIN, ROWS, correlate, line_samples, scratch_bytes
from sash.window import Interval

BOUNDARIES = ("reflect", "mirror", "nearest", "wrap", "constant")
FILL = 0.25
# Fewer than a tile has rows, as many, one chain, and several.
COUNTS = st.sampled_from([1, 2, 3, 4, 5, 7, 8, 9, 15, 21, CHAIN, CHAIN + 1, CHAIN + ROWS - 1, CHAIN + ROWS, 2 * CHAIN + 3, 101])


def part(table, boundary, down, along, rows, columns):
    """A part of the plane."""
    before = len(down) // 2, len(along) // 2
    near = [
        Interval(own.start - ahead, own.stop - ahead + len(taps) - 1)
        for own, ahead, taps in zip((rows, columns), before, (down, along), strict=True)
    ]
    high, wide = (places(one, size, boundary) for one, size in zip(near, table.shape, strict=True))
    inside = near[1].clip(table.shape[1])
    run = (max(-near[1].start, 0), inside.start, inside.length)
    out = np.empty((rows.length, columns.length), down.dtype)
    correlate(table, high, wide, run, FILL, down, along, out)
    return out


def whole(table, boundary, down, along):
    return part(table, boundary, down, along, Interval(0, table.shape[0]), Interval(0, table.shape[1]))


def exact(table, boundary, down, along):
    found = table.astype(np.float64)
    for axis, taps in ((0, down), (1, along)):
        # Our output is at the tap len // 2, which is where scipy's is.
        found = scipy.ndimage.correlate1d(
            found, taps.astype(np.float64), axis, mode=boundary, cval=FILL if axis == 0 else FILL * down.sum()
        )
    return found


def random_taps(rng, count, dtype):
    return rng.standard_normal(count).astype(dtype)


@settings(deadline=None, max_examples=80)
@given(
    st.sampled_from(BOUNDARIES),
    st.tuples(st.integers(1, 60), st.sampled_from([1, 2, 15, 16, 17, 33, 130, 300])),
    st.tuples(COUNTS, COUNTS),
    st.sampled_from([("uint8", "float32"), ("int16", "float32"), ("float32", "float32"), ("float32", "float64"), ("int64", "float64")]),
    st.integers(0, 2**31),
)
def test_a_sample_is_the_sum_of_its_neighbours_times_their_taps(boundary, shape, counts, kinds, seed):
    rng = np.random.default_rng(seed)
    table = (rng.random(shape) * 100).astype(kinds[0])
    down, along = (random_taps(rng, count, kinds[1]) for count in counts)
    # A rounding for each product and each sum, of the largest that they can be.
    most = 100 * np.abs(down).sum() * np.abs(along).sum()
    far = np.abs(whole(table, boundary, down, along) - exact(table, boundary, down, along)).max()
    assert far <= 2 * np.finfo(kinds[1]).eps * sum(counts) * most


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(BOUNDARIES),
    st.tuples(COUNTS, COUNTS),
    st.tuples(st.integers(0, 49), st.integers(1, 50)),
    st.tuples(st.integers(0, 299), st.integers(1, 300)),
)
def test_a_part_has_the_bits_that_the_whole_has(boundary, counts, rows, columns):
    rng = np.random.default_rng(1)
    table = rng.random((50, 300), np.float32)
    table[20, 30], table[5, 280], table[49, 0] = np.nan, np.inf, -np.inf
    down, along = (random_taps(rng, count, np.float32) for count in counts)
    high, wide = (Interval(first, min(first + count, size)) for (first, count), size in zip((rows, columns), table.shape, strict=True))
    found = part(table, boundary, down, along, high, wide)
    np.testing.assert_array_equal(found, whole(table, boundary, down, along)[high.start : high.stop, wide.start : wide.stop])


@pytest.mark.parametrize("counts", [(7, 7), (15, 3), (41, 9)])
def test_nan_reaches_as_far_as_the_taps_and_no_farther(counts):
    table = np.zeros((100, 400), np.float32)
    table[60, 203] = np.nan
    down, along = (np.ones(count, np.float32) for count in counts)
    rows, columns = np.nonzero(np.isnan(whole(table, "reflect", down, along)))
    assert (60 - rows.min(), rows.max() - 60) == (counts[0] // 2, counts[0] // 2)
    assert (203 - columns.min(), columns.max() - 203) == (counts[1] // 2, counts[1] // 2)


def test_planes_wider_than_a_line_are_made_of_several():
    rng = np.random.default_rng(2)
    table = rng.random((20, 20000), np.float32)
    down, along = random_taps(rng, 9, np.float32), random_taps(rng, 11, np.float32)
    assert line_samples(9, 11, 20000, 4) < 20000
    np.testing.assert_allclose(whole(table, "wrap", down, along), exact(table, "wrap", down, along), atol=1e-4)


@given(st.integers(1, 2000), st.integers(1, 2000), st.integers(1, 10**5), st.sampled_from([4, 8]))
def test_lines_are_no_longer_than_the_plane_and_their_bytes_are_known(down, along, columns, item):
    samples = line_samples(down, along, columns, item)
    assert 1 <= samples <= columns
    assert scratch_bytes(down, along, 64, columns, item) >= ROWS * (samples + along - 1) * item


NARROWER = """
import sys
from sash.arrays import _fir, _vectors
_vectors.BYTES = _fir._BYTES = int(sys.argv[1])
import hashlib
import numpy as np
rng = np.random.default_rng(3)
made = hashlib.sha256()
table, out = rng.random((30, 200), np.float32), np.empty((20, 160), np.float32)
for down, along in ((1, 15), (5, 5), (11, 41)):
    taps = [rng.standard_normal(count).astype(np.float32) for count in (down, along)]
    _fir.correlate(table, np.arange(19 + down), np.arange(159 + along), (0, 0, 159 + along), 0.0, *taps, out)
    made.update(out.tobytes())
print(made.hexdigest())
"""


def test_processors_with_narrower_vectors_make_the_same_bits(tmp_path):
    found = set()
    for width in ("64", "16"):
        kept = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / width)}
        found.add(subprocess.run([sys.executable, "-c", NARROWER, width], env=kept, capture_output=True, text=True, check=True).stdout)
    assert len(found) == 1
