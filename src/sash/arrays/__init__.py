"""Jobs on arrays larger than memory: a budget in bytes, kept, and the result that of the whole array."""

from importlib.util import find_spec as _find_spec

if _find_spec("numba") is None:
    raise ImportError("sash.arrays needs numba, which is not installed: pip install 'sash[arrays]'.")

from sash.arrays._bins import BinTable, explain_bins
from sash.arrays._blur import blur
from sash.arrays._convolve import convolve
from sash.arrays._istft import istft
from sash.arrays._overlap import OverlapAdd, overlap_add
from sash.arrays._plan import ArrayPlan, Method
from sash.arrays._stft import stft

__all__ = ["ArrayPlan", "BinTable", "Method", "OverlapAdd", "blur", "convolve", "explain_bins", "istft", "overlap_add", "stft"]
