"""The largest eigenpairs of a symmetric operator: block Lanczos with all vectors kept orthogonal, and thick restarts.

Block by block the Krylov space grows; the operator's projection on it is a small dense matrix, whose eigenpairs have residuals that come
for nothing. Where the space has no room left, it shrinks to its best vectors and goes on from there. A block has too few directions for an
eigenvalue of higher multiplicity than its width: where as many values as that lie together, or the space is exhausted, random directions
are added until nothing changes.

Source: Grimes, Lewis, Simon, A shifted block Lanczos algorithm, 1994; Wu, Simon, Thick-restart Lanczos, 2000.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from scipy.linalg import eigh, qr

from sash.arrays._row_slices import slices_of, sum_in_order

_SMALL = 1e-4
"""Of the operator's size: directions of images below are made orthogonal to the space once more."""
TOGETHER = 1e-5
"""Of an eigenvalue: as many as a block is wide that lie as near as this may be more than were found."""
_CHECKED, _CHECKED_MANY, _MANY = 1.06, 1.12, 1000
"""By how much the space grows from one look at its eigenpairs to the next; from so many columns on a look takes longer than growing."""


class Operator(Protocol):
    """A symmetric, non-negative one, by what it does."""

    @property
    def side(self) -> int: ...

    def gram(self, vectors: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True, eq=False)
class Pairs:
    """The largest eigenpairs, as far as they were found."""

    values: np.ndarray
    """The largest first."""
    vectors: np.ndarray
    """In columns."""
    residuals: np.ndarray
    """Of G v - value v, by the value."""
    applied: int
    """Vectors that the operator was applied to."""
    columns: int
    """Of the largest space."""


@dataclass(frozen=True, eq=False)
class State:
    """What the space knows at a moment: all its Ritz values, and their residuals."""

    values: np.ndarray
    residuals: np.ndarray
    applied: int


def space_bytes(side: int, most: int, block: int) -> int:
    """Held at most: the space, a block on its way, and what small matrices and a restart take."""
    columns = min(most, side) + 2 * block
    return 8 * (side * columns + 6 * side * block + 4 * columns * columns)


def largest(
    operator: Operator,
    enough: Callable[[State], int | None],
    *,
    most: int,
    seed: int,
    block: int,
    threads: int = 1,
    keep: int = 0,
    first: int = 0,
) -> Pairs:
    """The largest eigenpairs: as many as `enough` says, which is asked from time to time with what the space knows.

    The space has at most `most` columns, of which at least `keep` outlive a restart, and is not looked at before it has `first`. Where it
    is as large as the operator, what it knows is all there is.
    """
    side = operator.side
    most, block = min(most, side), min(block, side)
    random = np.random.default_rng(seed)
    space = np.empty((side, min(most + 2 * block, side)), order="F")
    small = np.zeros((space.shape[1], space.shape[1]))
    apart = Apart(threads)
    following = np.linalg.qr(random.standard_normal((side, block)))[0]
    have, applied, looked, previous = 0, 0, 0, 0
    before: np.ndarray | None = None
    while True:
        last = following.shape[1]
        space[:, have : have + last] = following
        image = operator.gram(np.ascontiguousarray(following))
        applied += last
        have += last
        # What came before the block before the last has its images in the space, so that this image has nothing of it.
        image, small[:have, have - last : have] = apart(space[:, :have], np.asfortranarray(image), last + previous)
        previous = last
        small[have - last : have, :have] = small[:have, have - last : have].T
        size = max(float(np.abs(np.diag(small[:have, :have])).max()), np.finfo(float).tiny)
        least = 16 * np.finfo(float).eps * size
        following, coupling = _directions(image, least, side - have)
        if following.shape[1] and np.abs(coupling).max(axis=1).min() < _SMALL * size:
            # What is left of a small image is rounding of a large one: once more, now that it is large.
            following, _ = apart(space[:, :have], np.asfortranarray(following))
            following, again = np.linalg.qr(following)
            coupling = again @ coupling
        exhausted = following.shape[1] == 0
        full = most < side and have + max(following.shape[1], block) > most
        if have < max(looked * (_CHECKED if have < _MANY else _CHECKED_MANY), first) and not (exhausted or full):
            continue
        looked = have
        found: Any = eigh(small[:have, :have], driver="evd")
        values, rotation = found
        values, rotation = np.maximum(values[::-1], 0.0), rotation[:, ::-1]
        lost = np.linalg.norm(coupling @ rotation[have - last : have], axis=0) if coupling.size else np.zeros(have)
        wanted = enough(State(values, lost / np.maximum(values, least), applied))
        if have == side and wanted is None:
            wanted = have
        if wanted is not None:
            top = values[:wanted]
            doubtful = have < side and (exhausted or _together(values[: wanted + 1], block))
            # Random directions, and what grew out of them, changed nothing: there was no more.
            settled = before is not None and len(before) == len(top) and bool(np.all(top - before <= TOGETHER * top[0]))
            if not doubtful or settled:
                vectors = _turned(space[:, :have], rotation[:, :wanted], threads)
                return Pairs(top, vectors, lost[:wanted] / np.maximum(top, least), applied, have)
            before = top.copy()
        fresh = min(block, side - have - following.shape[1]) if exhausted or wanted is not None else 0
        if full or have + following.shape[1] + fresh > space.shape[1]:
            kept = min(max(wanted or 0, have // 2, keep), most - 2 * block)
            have = _restarted(space, small, values, rotation[:, :kept])
            looked = previous = have
        if fresh:
            following = _more(apart, space[:, :have], following, random, fresh)


class Apart:
    """What of vectors is orthogonal to a space, slice of rows by slice."""

    def __init__(self, threads: int) -> None:
        self._threads = threads

    def __call__(self, space: np.ndarray, image: np.ndarray, near: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """The rest of the image, in its own memory, and its projection; twice, which is enough.

        The first time the last `near` columns of the space suffice, where what the image has of the others is rounding.
        """
        with slices_of(len(space), 8 * space.shape[1], self._threads) as each:
            first = space[:, -near:]
            parts = sum_in_order(each(lambda own: first[own].T @ image[own]))

            def again(own: slice) -> np.ndarray:
                image[own] -= first[own] @ parts
                return space[own].T @ image[own]

            rest = sum_in_order(each(again))

            def last(own: slice) -> None:
                image[own] -= space[own] @ rest

            each(last)
        rest[-near:] += parts
        return image, rest


def _directions(image: np.ndarray, least: float, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Orthonormal directions of an image, and its coordinates in them; columns shorter than `least` have none."""
    decomposed: Any = qr(image, mode="economic", pivoting=True)
    vectors, upper, order = decomposed
    rank = min(int(np.count_nonzero(np.abs(np.diag(upper)) > least)), most)
    coordinates = np.empty((rank, image.shape[1]))
    coordinates[:, order] = upper[:rank]
    return vectors[:, :rank], coordinates


def _turned(space: np.ndarray, rotation: np.ndarray, threads: int) -> np.ndarray:
    """Their product."""
    made = np.empty((len(space), rotation.shape[1]))
    with slices_of(len(space), 8 * space.shape[1], threads) as each:
        each(lambda own: np.matmul(space[own], rotation, out=made[own]))
    return made


def _more(apart: Apart, space: np.ndarray, following: np.ndarray, random: np.random.Generator, count: int) -> np.ndarray:
    """The next block with random directions beside."""
    if count <= 0:
        return following
    drawn = random.standard_normal((len(space), count))
    for _ in range(2):
        drawn, _ = apart(space, np.asfortranarray(drawn))
        drawn -= following @ (following.T @ drawn)
        drawn = np.linalg.qr(drawn)[0]
    return np.hstack([following, drawn])


def _together(values: np.ndarray, block: int) -> bool:
    """Whether as many as a block is wide lie together."""
    if len(values) < block:
        return False
    return bool(np.any(values[: len(values) - block + 1] - values[block - 1 :] <= TOGETHER * np.abs(values[: len(values) - block + 1])))


def _restarted(space: np.ndarray, small: np.ndarray, values: np.ndarray, rotation: np.ndarray) -> int:
    """The space with its best vectors alone; how many these are."""
    have, kept = rotation.shape
    # Rows by rows, so that no second space is held.
    step = max(have, 4096)
    for start in range(0, len(space), step):
        space[start : start + step, :kept] = space[start : start + step, :have] @ rotation
    small[...] = 0.0
    small[np.arange(kept), np.arange(kept)] = values[:kept]
    return kept
