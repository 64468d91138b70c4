"""A basis that grows block by block until what it leaves of a matrix is little enough: for a share of the variance at low rank.

Source: Yu, Gu, Li, Efficient randomized algorithms for the fixed-precision low-rank matrix approximation, 2018, algorithm 2 (randQB_EI):
the error left is the matrix's squared Frobenius norm less that of its projection. Bases are those of the Gram matrix's smaller side.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sash.arrays._centred import Centred
from sash.arrays._krylov import Apart, Pairs
from sash.errors import SashError

BLOCK = 32
POWERS = 2
"""Products with the Gram matrix for each block: without, components are mixed with those that come after."""


def randqb(centred: Centred, total: float, share: float, *, seed: int, threads: int, most: int) -> Pairs:
    """Eigenpairs of the Gram matrix on a basis that explains the share of `total`; values are at most the matrix's own.

    Raises `SashError` where that takes more than `most` vectors.
    """
    side, random, apart = centred.side, np.random.default_rng(seed), Apart(threads)
    basis = np.empty((side, min(most + BLOCK, side)), order="F")
    projected, left, have = list[np.ndarray](), total, 0
    # The subtraction leaves the rounding of the total.
    while left > total * (1 - share) + 1e-14 * total and have < side:
        if have >= most:
            raise SashError(f"{have} vectors leave {left / total:.3g} of the variance, and there is room for no more; say method='gram'.")
        block = np.asfortranarray(random.standard_normal((side, min(BLOCK, side - have))))
        for power in range(POWERS + 1):
            if power:
                block = np.asfortranarray(centred.gram(np.ascontiguousarray(block)))
            for _ in range(2):
                if have:
                    block, _ = apart(basis[:, :have], block)
                block = np.asfortranarray(np.linalg.qr(block)[0])
        width = block.shape[1]
        basis[:, have : have + width] = block
        have += width
        own = centred.back(np.ascontiguousarray(block)) if centred.of_rows else centred.forth(np.ascontiguousarray(block))
        projected.append(own)
        left -= float(np.square(own).sum())
    upper: Any = np.linalg.qr(np.hstack(projected), mode="r")
    rotation, values, _ = np.linalg.svd(upper.T, full_matrices=False)
    return Pairs(values**2, basis[:, :have] @ rotation, np.zeros(len(values)), (POWERS + 1) * have, have)
