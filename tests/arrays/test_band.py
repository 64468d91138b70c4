"""A matrix in a file becomes a band, then tridiagonal: eigenvalues and vectors are those of the dense one, whatever the sizes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from sash.arrays._band import Banding, turned_by_panels
from sash.arrays._chase import Chase, turned_by_chase
from sash.arrays._triangle import Triangle, triangle_bytes
from sash.arrays._tridiagonal import Tridiagonal, parted
from sash.errors import InputError, SashError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files are written over."""
    return tmp_path_factory.mktemp("triangles")


def triangles(folder, matrix, width):
    """Two files of block columns; the first has the matrix, what lies above its diagonal is wrong."""
    side = len(matrix)
    files = tuple(Triangle.at(folder / f"{side} {width} {name}", side, width) for name in "ab")
    for place in range(files[0].count):
        start = place * width
        block = matrix[start:, start : start + width].copy(order="F")
        block[np.triu_indices(block.shape[1], 1)] = 1e3
        files[0].write(place, block)
    return files


def reduced(files, gathered, threads=1):
    """Band, tridiagonal matrix, and the function that turns vectors back."""
    shares = []
    banding = Banding(files, gathered)
    # BLAS's threads would wait for each other, spinning, on those of the pool.
    with threadpool_limits(1, "blas"):
        banding.run(shares.append, threads, lambda: None)
    chase = Chase.of(files, gathered, banding.band)
    chase.run(shares.append, lambda: None)
    assert sum(shares) == pytest.approx(2)

    def turned(vectors):
        pieces = [slice(start, start + 3) for start in range(0, vectors.shape[1], 3)]
        pieces = [slice(piece.start, min(piece.stop, vectors.shape[1])) for piece in pieces]
        turned_by_chase(vectors, files, gathered, pieces, map)
        turned_by_panels(vectors, files, gathered, pieces, map)
        return vectors

    return banding.band, Tridiagonal(*chase.tridiagonal), turned


@given(side=st.integers(1, 70), width=st.integers(1, 20), gathered=st.integers(1, 4), steep=st.integers(0, 8), seed=st.integers(0, 99))
def test_the_orthogonal_factor_and_the_tridiagonal_one_make_the_matrix(folder, side, width, gathered, steep, seed):
    random = np.random.default_rng(seed)
    matrix = random.standard_normal((side, max(side // 2, 1) if seed % 3 == 0 else side)) * 10.0 ** -random.uniform(0, steep, (side, 1))
    matrix = matrix @ matrix.T
    band, tridiagonal, turned = reduced(triangles(folder, matrix, width), gathered)
    assert band.shape == (side, width + 1)
    factor = turned(np.eye(side, order="F"))
    made = factor @ (np.diag(tridiagonal.diagonal) + np.diag(tridiagonal.beside, 1) + np.diag(tridiagonal.beside, -1)) @ factor.T
    # A reflection is orthogonal to a few roundings, and each number passes through some hundred.
    np.testing.assert_allclose(factor.T @ factor, np.eye(side), atol=2e-14)
    np.testing.assert_allclose(made, matrix, atol=5e-14 * np.abs(matrix).max() * max(side, 2) ** 0.5)
    values = tridiagonal.eigenvalues()
    np.testing.assert_allclose(values, np.linalg.eigvalsh(matrix)[::-1], atol=1e-13 * values[0])


@pytest.mark.parametrize("width", [16, 64])
def test_threads_change_no_bit(folder, width):
    random = np.random.default_rng(0)
    matrix = random.standard_normal((700, 700))
    matrix = matrix @ matrix.T
    found = [reduced(triangles(folder, matrix, width), 2, threads) for threads in (1, 2, 3)]
    for band, tridiagonal, _ in found[1:]:
        assert np.array_equal(band, found[0][0])
        assert np.array_equal(tridiagonal.diagonal, found[0][1].diagonal)
        assert np.array_equal(tridiagonal.beside, found[0][1].beside)
    _, tridiagonal, turned = found[-1]
    vectors = turned(tridiagonal.vectors(0, 20, tridiagonal.eigenvalues())[:, ::-1])
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(20), atol=1e-12)


def test_block_columns_come_back_as_they_were(folder):
    random = np.random.default_rng(0)
    for side, width in ((10, 3), (9, 3), (3, 8), (1, 1)):
        matrix = random.standard_normal((side, side))
        files = triangles(folder, matrix, width)
        assert files[0].path.stat().st_size == triangle_bytes(side, width)
        for place in reversed(range(files[0].count)):
            start = place * width
            block = files[0].read(place, files[0].room())
            assert np.array_equal(np.tril(block), np.tril(matrix[start:, start : start + width]))


def test_a_disk_without_room_and_a_file_cut_off_are_told(tmp_path, monkeypatch):
    file = Triangle.at(tmp_path / "gram", 30, 8)
    (tmp_path / "gram").write_bytes(b"")
    with pytest.raises(SashError, match=r"gram was cut off at .* begin anew with restart=True"):
        file.read(0, file.room())

    def full(*given):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full, raising=False)
    with pytest.raises(InputError, match=r"cannot be written \(No space left on device\): it takes .* make room there"):
        Triangle.at(tmp_path / "other", 30, 8)


def test_runs_of_eigenvalues_are_cut_late_where_they_can_and_early_where_they_must():
    values = np.linspace(2, 1, 20)
    assert parted(values, 0, 20, 20) == [(0, 20)]
    apart = np.where(np.arange(20) < 7, values + 1, values)
    assert parted(apart, 0, 9, 8) == [(0, 7), (7, 9)]
    # Seven in the middle are one.
    values[5:12] = values[5]
    assert parted(values, 0, 20, 8) == [(0, 5), (5, 12), (12, 20)]
    assert parted(values, 0, 20, 7) == [(0, 5), (5, 12), (12, 19), (19, 20)]
    assert parted(values, 0, 20, 6) is None
