"""How often a matrix is read while its components are found: what a plan says, and what is asked of it."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse

from sash.arrays import _nystrom_ways, _pca, _pca_choose, _pca_ways, pca
from sash.arrays._matrix import HeldMatrix
from sash.errors import DoesNotFit

RNG = np.random.default_rng(0)
ROW_BYTES = 1000


class Counted(HeldMatrix):
    """As if it lay in a file, of so many bytes for each row."""

    def __init__(self, values):
        super().__init__(values)
        self.asked = []
        self.file_bytes = ROW_BYTES * self.shape[0]

    def block(self, start, stop):
        self.asked.append(stop - start)
        return super().block(start, stop)

    def read_bytes(self):
        """Since the last time."""
        found, self.asked[:] = ROW_BYTES * sum(self.asked), []
        return found


def counted(shape, kind):
    made = RNG.poisson(0.4, shape).astype(float)
    return Counted(scipy.sparse.csr_array(made) if kind == "sparse" else made)


def run(matrix, *given, **words):
    """What is planned, and bytes that are read."""
    plan = pca(matrix, *given, plan_only=True, **words)
    matrix.read_bytes()
    pca(matrix, *given, **words)
    return plan, matrix.read_bytes()


def least(matrix, *given, **words):
    """The smallest budget: blocks are small."""
    with pytest.raises(DoesNotFit) as caught:
        pca(matrix, *given, budget=1, **words)
    return caught.value.least_bytes


def in_chunks(monkeypatch, ways, size):
    """So many components are made and written at once."""
    for name in ("CHUNK", "NARROW"):
        monkeypatch.setattr(ways, name, size)


SHAPES = pytest.mark.parametrize("shape", [(700, 90), (90, 700)])
KINDS = pytest.mark.parametrize("kind", ["sparse", "dense"])


@SHAPES
@KINDS
@pytest.mark.parametrize("budget", ["least", "1 GiB"])
@pytest.mark.parametrize("chunk", [4, 256])
def test_of_a_gram_matrix_a_plan_counts_every_block(monkeypatch, shape, kind, budget, chunk):
    in_chunks(monkeypatch, _pca_ways, chunk)
    matrix, words = counted(shape, kind), {"method": "gram", "workers": 2}
    budget = least(matrix, 10, **words) if budget == "least" else budget
    plan, read = run(matrix, 10, budget=budget, **words)
    assert plan.read_bytes == pytest.approx(read, abs=1)
    assert plan.passes == -(-read // matrix.file_bytes)
    if budget == "1 GiB":
        # Means, products, and each chunk of components: of columns there and back at once.
        assert plan.passes == 2 + (3 if chunk == 4 else 1) * (1 if shape[0] > shape[1] else 2)


@pytest.mark.parametrize("shape", [(900, 600), (600, 900)])
def test_of_a_gram_matrix_on_disk_a_plan_counts_every_strip(shape):
    matrix = counted(shape, "sparse")
    plan, read = run(matrix, 9, method="gram", budget=least(matrix, 9, method="gram"))
    assert plan.disk_bytes
    assert plan.read_bytes == pytest.approx(read, abs=1)


@SHAPES
@KINDS
@pytest.mark.parametrize("chunk", [4, 256])
def test_nystrom_reads_once_and_once_more_for_each_chunk(monkeypatch, shape, kind, chunk):
    in_chunks(monkeypatch, _nystrom_ways, chunk)
    matrix = counted(shape, kind)
    for scale in (False, True):
        plan, read = run(matrix, 10, method="nystrom", scale=scale, workers=2)
        assert plan.passes == (2 if chunk == 256 else 5)
        assert plan.read_bytes == plan.passes * matrix.file_bytes
        # And the look before, at a hundredth or one row at each of eight places.
        assert 0 < read - plan.read_bytes <= 8 * ROW_BYTES


@SHAPES
def test_what_is_held_is_read_twice(shape):
    matrix = counted(shape, "sparse")
    for words in ({"components": 10, "method": "krylov"}, {"variance": 0.3, "method": "randqb"}):
        plan, read = run(matrix, **words)
        assert plan.read_bytes == read == 2 * matrix.file_bytes


@SHAPES
@KINDS
@pytest.mark.parametrize("chunk", [4, 256])
def test_krylov_is_foreseen_within_a_factor_of_two(monkeypatch, shape, kind, chunk):
    in_chunks(monkeypatch, _pca_ways, chunk)
    matrix, ways = counted(shape, kind), _pca_choose.ways
    monkeypatch.setattr(_pca_choose, "ways", lambda *given: (way for way in ways(*given) if not way.held))
    for count in (3, 20):
        plan, read = run(matrix, count, method="krylov", workers=2)
        assert plan.passes > 2
        assert plan.read_bytes / 2 <= read <= 2 * plan.read_bytes, (plan.read_bytes, read)


@SHAPES
def test_randqb_on_a_file_is_foreseen_where_the_number_is(monkeypatch, shape):
    matrix, asked = counted(shape, "dense"), _pca._asked
    monkeypatch.setattr(_pca, "_asked", lambda *given: replace(asked(*given), likely=32))
    plan, read = run(matrix, variance=0.1, method="randqb")
    # As many as fill a block of the basis: the number that is found is smaller, and so is that of chunks at most.
    assert plan.read_bytes == read
