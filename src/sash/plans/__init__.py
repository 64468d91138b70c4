"""Make it fit: levers, the search for a plan, the planned run."""

from sash.plans._assert import assert_fits
from sash.plans._largest import Largest, largest
from sash.plans._lever import Exactness, Lever
from sash.plans._plan import Plan
from sash.plans._search import fit
from sash.plans._tile import Tile
from sash.plans._tile_search import TilePlan
from sash.plans._tiled import tiled

__all__ = ["Exactness", "Largest", "Lever", "Plan", "Tile", "TilePlan", "assert_fits", "fit", "largest", "tiled"]
