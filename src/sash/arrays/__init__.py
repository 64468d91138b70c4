"""Jobs on arrays larger than memory: a budget in bytes, kept, and the result that of the whole array."""

import typing as _typing
from importlib.util import find_spec as _find_spec

if _find_spec("numba") is None:
    raise ImportError("sash.arrays needs numba, which is not installed: pip install 'sash[arrays]'.")

from sash.arrays._bins import BinTable, explain_bins
from sash.arrays._blur import blur
from sash.arrays._convolve import convolve
from sash.arrays._deconvolve import deconvolve
from sash.arrays._deconvolve_plan import DeconvolutionPlan
from sash.arrays._istft import istft
from sash.arrays._overlap import OverlapAdd, overlap_add
from sash.arrays._pca import pca
from sash.arrays._pca_estimate import ComponentsEstimate, estimate_components
from sash.arrays._pca_result import PCA, PcaPlan
from sash.arrays._plan import ArrayPlan, Method
from sash.arrays._rates import ArrayRates, array_rates, array_rates_path, forget_array_rates, stored_array_rates
from sash.arrays._stft import stft
from sash.arrays._topics import topics
from sash.arrays._topics_result import Topic, TopicModel, TopicTerm

if _typing.TYPE_CHECKING:
    from sash.arrays._estimator import PCAEstimator

__all__ = [
    "PCA",
    "ArrayPlan",
    "ArrayRates",
    "BinTable",
    "ComponentsEstimate",
    "DeconvolutionPlan",
    "Method",
    "OverlapAdd",
    "PCAEstimator",
    "PcaPlan",
    "Topic",
    "TopicModel",
    "TopicTerm",
    "array_rates",
    "array_rates_path",
    "blur",
    "convolve",
    "deconvolve",
    "estimate_components",
    "explain_bins",
    "forget_array_rates",
    "istft",
    "overlap_add",
    "pca",
    "stft",
    "stored_array_rates",
    "topics",
]


def __getattr__(name: str) -> _typing.Any:
    # Its base classes are scikit-learn's, which is loaded, and needed, by nobody else.
    if name == "PCAEstimator":
        from sash.arrays._estimator import PCAEstimator

        return PCAEstimator
    raise AttributeError(f"module 'sash.arrays' has no attribute {name!r}")
