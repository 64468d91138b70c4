"""The algebra of windows that slide over a signal. Standard library only."""

from sash.window._adaptive import WHOLE, Adaptive
from sash.window._chain import Chain, Link, Tile
from sash.window._circular import Circular
from sash.window._grid import Box, Grid
from sash.window._interval import Interval
from sash.window._solve import Solutions, solve
from sash.window._transposed import Transposed
from sash.window._walk import Step, Walk, walk
from sash.window._window import Window

__all__ = [
    "WHOLE",
    "Adaptive",
    "Box",
    "Chain",
    "Circular",
    "Grid",
    "Interval",
    "Link",
    "Solutions",
    "Step",
    "Tile",
    "Transposed",
    "Walk",
    "Window",
    "solve",
    "walk",
]
