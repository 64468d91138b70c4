"""Nyström's approximation of a matrix's covariance, of products that one pass over its rows adds up together with columns' means.

With A the centred matrix, C = A'A and random vectors W, the pass makes C W: its rows are A' (A - 1 s') W whatever the shift s is, and one
near the means leaves nothing to cancel. C W (W'C W)^-1 (C W)' is then the largest matrix below C with that range: it is A'Q Q'A of the
randomised range finder Q of A W. What columns are scaled by is not known before: of D C D the vectors W / D have the product D C W.

Its eigenvectors are a basis, on which one pass more finds the components (Rayleigh and Ritz), larger than the approximation's own. As no
eigenvalue falls by more than the trace that the basis leaves, what is missed is bounded.

Source: Halko, Martinsson, Tropp, Finding structure with randomness, 2011, section 5.5 (single pass), algorithm 5.5; Tropp, Yurtsever,
Udell, Cevher, Fixed-rank approximation of a positive-semidefinite matrix from streaming data, 2017.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from scipy.linalg import eigh

from sash.arrays._centred import Centred, ThereAndBack, lines
from sash.arrays._moments import Lane, Means, Moments, moments_of
from sash.arrays._row_slices import Each, slices_of, sum_in_order
from sash.arrays._spmm import centre, gathered
from sash.arrays._sweep import Sweep

EPS = float(np.finfo(float).eps)
PLACES, LOOKED = 8, 800
"""Where rows are looked at before, and by how many of all rows at each: a hundredth together."""
_AT_ONCE = 1 << 20
"""Bytes of a product's rows that are held while their Gram matrix is added up."""
RUNS = 8
"""Of rows, whose products are added up each by itself."""
_ORTHONORMAL = 1e-13
"""How far from that a basis of many vectors is left."""


@dataclass(frozen=True, eq=False)
class Sketch:
    """What the covariance, times rows - 1, makes of random vectors."""

    image: np.ndarray
    """As scaled, (columns, vectors); who uses it up overwrites it."""
    kernel: np.ndarray
    """The vectors' products with it."""


def sketched(sweep: Sweep, width: int, scale: bool, seed: int, ended: Callable[[float], None]) -> tuple[Moments, Sketch]:
    """Means and variances, and a sketch of so many vectors, in one pass; raises `InputError` for NaN and infinities."""
    matrix = sweep.matrix
    looked = _looked_at(sweep)
    test = _test(looked, width, scale, seed)
    found, (image, sums) = sweep.summed(_Sketching(Means(matrix.shape[1]), ThereAndBack(test, looked.mean @ test)), None, ended)
    moments = moments_of(found, matrix, scale)
    centre(image, moments.mean, sums, np.ones(len(image)))
    kernel = _products(test, image, sweep.threads)
    del test
    with slices_of(len(image), 8 * width, sweep.threads) as each:
        each(lambda own: np.multiply(image[own], moments.scale[own, None], out=image[own]))
    return moments, Sketch(image, (kernel + kernel.T) / 2)


def _looked_at(sweep: Sweep) -> Lane:
    """About what columns' means are and how they vary, of some rows at several places."""
    rows, columns = sweep.matrix.shape
    stops = [stop for _, stop in sweep.blocks]
    made, means, done = Lane(columns), Means(columns), 0
    for place in range(PLACES):
        start = max(rows * place // PLACES, done)
        if start < rows:
            # No more than a block, which there is room for.
            done = min(start + -(-rows // LOOKED), stops[int(np.searchsorted(stops, start, "right"))])
            means.add(made, sweep.matrix.block(start, done), start, None)
    return made


def _test(looked: Lane, width: int, scale: bool, seed: int) -> np.ndarray:
    """Random vectors: of columns that are to be scaled, each by what it will be about, so that the largest do not drown the others."""
    test = lines((len(looked.mean), width))
    np.random.default_rng([seed, 2]).standard_normal(out=test)
    if 2 * width > len(test):
        # So many are near to dependent.
        test = np.linalg.qr(test)[0]
    if not scale or not (looked.squares > 0).any():
        return test
    squares = looked.squares.copy()
    once = (looked.counts == 1) & (squares > 0)
    # Columns of which little was seen are as others of which one number was.
    squares[(looked.counts < 2) | (squares == 0)] = np.median(squares[once if once.any() else squares > 0])
    test /= np.sqrt(np.maximum(squares, 1e-12 * np.median(squares)))[:, None]
    return test


@dataclass(frozen=True, eq=False)
class _Sketching:
    """Means, and products there and back."""

    means: Means
    products: ThereAndBack

    def begin(self) -> tuple[Lane, tuple[np.ndarray, np.ndarray]]:
        """Nothing of either."""
        return self.means.begin(), self.products.begin()

    def add(self, made: tuple[Lane, tuple[np.ndarray, np.ndarray]], block: Any, start: int, rows: None) -> None:
        """Add the block's."""
        self.means.add(made[0], block, start, None)
        self.products.add(made[1], block, start, None)

    def join(self, made: tuple[Lane, tuple[np.ndarray, np.ndarray]], other: tuple[Lane, tuple[np.ndarray, np.ndarray]]) -> None:
        """Add another lane's."""
        self.means.join(made[0], other[0])
        self.products.join(made[1], other[1])


def basis_of(sketch: Sketch, threads: int) -> np.ndarray:
    """Orthonormal vectors with the range of the sketch, in its memory: the approximation's eigenvectors, the largest first.

    Of their eigenvalues those below the rounding of the first are left out.
    """
    found = sketch.image
    with slices_of(len(found), 8 * found.shape[1], threads) as each:
        values, vectors = _eigenpairs(sketch.kernel)
        kept = values > 8 * EPS * values[0]
        # Roots of the approximation: its eigenvalues are squares of their lengths, and only half as far apart.
        found = _turned(found, vectors[:, kept] / np.sqrt(values[kept]), each)
        values, vectors = _eigenpairs(_products(found, found, threads))
        kept = values > 8 * EPS * values[0]
        found = _turned(found, vectors[:, kept] / np.sqrt(values[kept]), each)
        for _ in range(3):
            gram = _products(found, found, threads)
            if np.abs(gram - np.eye(len(gram))).max() <= _ORTHONORMAL:
                break
            # The nearest orthonormal vectors.
            values, vectors = _eigenpairs(gram)
            found = _turned(found, (vectors / np.sqrt(values)) @ vectors.T, each)
    return found


def with_scores(centred: Centred, basis: np.ndarray, count: int) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray], np.ndarray]:
    """The best `count` unit vectors on the basis, in its memory; their scores and what the matrix's transpose makes of these; in one pass.

    And the squares of singular values that the whole basis has.
    """
    scores, image = centred.forth_and_back(basis)
    threads = centred.sweep.threads
    squares, rotation = ritz(_products(scores, scores, threads))
    rotation = rotation[:, :count]
    with slices_of(len(scores), 8 * scores.shape[1], threads) as long, slices_of(len(basis), 8 * basis.shape[1], threads) as short:
        return _turned(basis, rotation, short), (_turned(scores, rotation, long), _turned(image, rotation, short)), squares


def without_scores(centred: Centred, basis: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The best `count` unit vectors on the basis, in its memory, and the squares of singular values that all of it has; in one pass.

    Scores are not held.
    """
    factors = centred.moments.scale
    scaled = basis * factors[:, None] if (factors != 1).any() else np.ascontiguousarray(basis)
    gram = centred.sweep.summed(_Gram(scaled, centred.moments.mean @ scaled), None, centred.passed)
    del scaled
    squares, rotation = ritz(gram)
    with slices_of(len(basis), 8 * basis.shape[1], centred.sweep.threads) as each:
        return _turned(basis, rotation[:, :count], each), squares


def ritz(gram: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Squares of singular values of a matrix by its Gram matrix, the largest first, and the right vectors.

    Its columns are nearly orthogonal, but of all lengths: a root of the matrix by these keeps small values from the rounding of large ones.
    """
    lengths = np.sqrt(np.maximum(np.diag(gram), 0.0))
    lengths[lengths == 0] = 1.0
    values, vectors = eigh(gram / lengths / lengths[:, None])
    root = (np.sqrt(np.maximum(values, 0.0)) * vectors).T * lengths
    _, found, right = np.linalg.svd(root)
    return found**2, right.T


@dataclass(frozen=True, eq=False)
class _Gram:
    """The Gram matrix of a product's columns, of which some rows are held at once."""

    vectors: np.ndarray
    offset: np.ndarray

    def begin(self) -> np.ndarray:
        """Nothing yet."""
        return np.zeros((self.vectors.shape[1],) * 2)

    def add(self, made: np.ndarray, block: Any, start: int, rows: None) -> None:
        """Add the block's."""
        step = rows_at_once(self.vectors.shape[1])
        for first in range(0, block.shape[0], step):
            last = min(first + step, block.shape[0])
            if isinstance(block, np.ndarray):
                own = block[first:last] @ self.vectors
                own -= self.offset
            else:
                own = np.empty((last - first, self.vectors.shape[1]))
                gathered(block.indptr[first : last + 1], block.indices, block.data, self.vectors, self.offset, own, 0, len(own))
            made += own.T @ own

    def join(self, made: np.ndarray, other: np.ndarray) -> None:
        """Add another lane's."""
        made += other


def rows_at_once(width: int) -> int:
    """Of a product of so many vectors, while its Gram matrix is added up."""
    return max(_AT_ONCE // (8 * width), width)


def _eigenpairs(symmetric: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The largest first."""
    found: Any = eigh(symmetric)
    return found[0][::-1], found[1][:, ::-1]


def _products(left: np.ndarray, right: np.ndarray, threads: int) -> np.ndarray:
    """Of all columns with all, in as many sums whatever the threads, so that bits are the same."""
    step = rows_at_once(left.shape[1])

    def run(start: int, stop: int) -> np.ndarray:
        made = np.zeros((left.shape[1], right.shape[1]))
        for first in range(start, stop, step):
            own = slice(first, min(first + step, stop))
            made += left[own].T @ right[own]
        return made

    edges = [len(left) * place // RUNS for place in range(RUNS + 1)]
    with ThreadPoolExecutor(threads, "sash") as pool:
        return sum_in_order(list(pool.map(run, edges[:-1], edges[1:])))


def _turned(columns: np.ndarray, rotation: np.ndarray, each: Each) -> np.ndarray:
    """Columns times a matrix that is no wider than they are many, in their memory."""
    each(partial(_turn, columns, rotation))
    return columns[:, : rotation.shape[1]]


def _turn(columns: np.ndarray, rotation: np.ndarray, own: slice) -> None:
    columns[own, : rotation.shape[1]] = columns[own] @ rotation
