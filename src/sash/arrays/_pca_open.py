"""A matrix opened so that what is done with it fits beside it: in memory where there is room, else on disk."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from sash.arrays._matrix import Matrix
from sash.arrays._matrix_names import Names
from sash.arrays._matrix_open import open_matrix
from sash.arrays._weights import Weights, rarity, weighted
from sash.errors import DoesNotFit

Plan = TypeVar("Plan")


def opened_within(
    source: Any,
    budget: int,
    scratch: Path | None,
    weights: Weights,
    planned: Callable[[Matrix], Plan],
    now: ExitStack,
    names: Names | None = None,
    progress: bool | None = False,
    filed: bool = False,
    counted: Callable[[Matrix, int], np.ndarray] = rarity,
) -> tuple[Matrix, Plan]:
    """The matrix, weighed and closed with `now`, and the plan that `planned` makes of it.

    Opening takes into memory what fits there, and nothing where it is to be `filed`, for other processes to open; where the plan then does
    not fit beside, it is opened with less, down to what reading takes. `counted` tells how rare columns are, where that weighs them.
    Raises `DoesNotFit` with the least that opening and the plan need.
    """
    least: int | None = None
    refused: DoesNotFit | None = None
    for share in (budget, budget // 4, 0):
        try:
            share_bytes = share or _reading(source, scratch, filed)
            given = open_matrix(source, budget_bytes=share_bytes, scratch=scratch, names=names, progress=progress, filed=filed)
        except DoesNotFit as error:
            refused = error
            continue
        try:
            matrix = _weighted(given, weights, share, counted)
            plan = planned(matrix)
        except DoesNotFit as error:
            refused = error if least is None or error.least_bytes < least else refused
            least = error.least_bytes if least is None else min(least, error.least_bytes)
            if given is not source:
                given.close()
            if given.held_bytes == 0:
                break
        except BaseException:
            if given is not source:
                given.close()
            raise
        else:
            if given is not source:
                now.callback(given.close)
            return matrix, plan
    assert refused is not None
    raise refused


def _weighted(given: Matrix, weights: Weights, share: int, counted: Callable[[Matrix, int], np.ndarray]) -> Matrix:
    """Weighed, where a quarter of the share is enough to count terms in."""
    try:
        return weighted(given, weights, budget_bytes=max(share // 4, 1 << 20), counted=counted)
    except DoesNotFit as error:
        raise DoesNotFit(str(error), 4 * error.least_bytes) from None


def _reading(source: Any, scratch: Path | None, filed: bool) -> int:
    """The least with which a source is opened."""
    try:
        opened = open_matrix(source, budget_bytes=1, scratch=scratch, filed=filed)
    except DoesNotFit as error:
        return error.least_bytes
    if opened is not source:
        opened.close()
    return 1
