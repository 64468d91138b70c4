"""Kernels as sums of outer products, as few as a tolerance allows."""

from __future__ import annotations

from math import prod

import numpy as np

MOST_TERMS = 64
"""Outer products beyond which no more are looked for, unless they are asked for."""


def least_terms(kernel: np.ndarray, tolerance: float, enough: int) -> int:
    """Outer products that a kernel of two axes takes, at least, within a share of the sum of its absolute taps; fewer if that is `enough`.

    By the eigenvalues of the smaller side's products, a tenth of the work of the singular vectors: what is left out has at least the sum
    that the root of its squares says. The largest eigenvalue is at most the root of the sum of all their squares, so that of a large
    kernel of noise these products alone tell that there are many.
    """
    if _alone(kernel, tolerance * float(np.abs(kernel).sum())) is not None:
        return 1
    small = kernel if kernel.shape[0] <= kernel.shape[1] else kernel.T
    products = small @ small.T
    most, spared = float(np.linalg.norm(products)), (tolerance * np.abs(kernel).sum()) ** 2
    spared += len(products) * np.finfo(float).eps * most
    if most and (bound := int((products.trace() - spared) / most)) >= enough:
        return bound
    squares = np.linalg.eigvalsh(products)
    return max(int((np.cumsum(squares.clip(0)) > spared).sum()), 1)


def _alone(kernel: np.ndarray, room: float) -> tuple[np.ndarray, np.ndarray, float] | None:
    """The two factors of a kernel that is one outer product, told by its largest tap, and the sum of what they leave out; None where that
    is more than `room`. Singular vectors take nine times the kernel, and BLAS more, which small budgets do not have."""
    row, column = np.unravel_index(np.abs(kernel).argmax(), kernel.shape)
    if not kernel[row, column]:
        return None
    down, along = kernel[:, column], kernel[row] / kernel[row, column]
    apart = sum(float(np.abs(taps - one * along).sum()) for taps, one in zip(kernel, down, strict=True))
    return (down, along, apart) if apart <= room else None


def outer_products(kernel: np.ndarray, tolerance: float) -> tuple[list[tuple[np.ndarray, np.ndarray]], float]:
    """As few outer products as add up to a kernel of two axes, within a share of the sum of its absolute taps; and how far they are off."""
    size = max(float(np.abs(kernel).sum()), np.finfo(float).tiny)
    if min(kernel.shape) == 1:
        ones = np.ones(1)
        return [(ones, kernel[0]) if kernel.shape[0] == 1 else (kernel[:, 0], ones)], 0.0
    if (one := _alone(kernel, tolerance * size)) is not None:
        return [one[:2]], one[2] / size
    left, values, right = np.linalg.svd(kernel, full_matrices=False)

    def off(count: int) -> float:
        """The sum of what so many leave out, as a share."""
        return float(np.abs(kernel - (left[:, :count] * values[:count]) @ right[:count]).sum()) / size

    low, high = 1, len(values)
    while low < high:
        count = (low + high) // 2
        low, high = (low, count) if off(count) <= tolerance else (count + 1, high)
    roots = np.sqrt(values)
    terms = [(left[:, place] * roots[place], right[place] * roots[place]) for place in range(low)]
    return terms, off(low)


def outer_products_of(kernel: np.ndarray, tolerance: float, most: int) -> tuple[tuple[tuple[np.ndarray, ...], ...], float] | None:
    """The same of one to three axes; None for one that takes more than so many.

    Of three axes one is split off, that which leaves the fewest in all; what is left of each is split again. Fewer there may be: how few a
    kernel of three axes takes at the least nobody knows a quick way to tell.
    """
    if kernel.ndim == 1:
        return ((kernel,),), 0.0
    if kernel.ndim == 2:
        if most < min(kernel.shape) and least_terms(kernel, tolerance, most + 1) > most:
            return None
        terms, off = outer_products(kernel, tolerance)
        return tuple(terms), off
    best: tuple[tuple[np.ndarray, ...], ...] | None = None
    for axis in range(3):
        found = _split(kernel, axis, tolerance, most)
        best = found if best is None or (found is not None and len(found) < len(best)) else best
    if best is None:
        return None
    made = sum(np.einsum("i,j,k->ijk", *term) for term in best)
    return best, float(np.abs(kernel - made).sum()) / max(float(np.abs(kernel).sum()), np.finfo(float).tiny)


def _split(kernel: np.ndarray, axis: int, tolerance: float, most: int) -> tuple[tuple[np.ndarray, ...], ...] | None:
    """By an axis first, then by the other two: half of the tolerance for either; None beyond the most."""
    turned = np.moveaxis(kernel, axis, 0)
    size, plane = float(np.abs(kernel).sum()), turned.shape[1:]
    firsts, _ = outer_products(turned.reshape(len(turned), prod(plane)), tolerance / 2)
    terms: list[tuple[np.ndarray, ...]] = []
    for along, flat in firsts:
        own = float(np.abs(along).sum() * np.abs(flat).sum())
        for pair in outer_products(flat.reshape(plane), tolerance / 2 / len(firsts) * size / own if own else tolerance)[0]:
            term = list(pair)
            term.insert(axis, along)
            terms.append(tuple(term))
        if len(terms) > most:
            return None
    return tuple(terms)
