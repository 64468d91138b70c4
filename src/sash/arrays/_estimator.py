"""`pca` as scikit-learn's estimators are: fit, transform, and attributes that end in an underscore."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from sash.arrays._pca import pca
from sash.arrays._weights import Weights
from sash.errors import InputError

try:
    from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
    from sklearn.utils.validation import check_array, check_is_fitted, validate_data
except ImportError:
    raise InputError("PCAEstimator needs scikit-learn, which is not installed: pip install 'sash[sklearn]'.") from None


class PCAEstimator(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Principal components of dense or sparse rows, centred exactly and never made dense, inside a byte budget.

    `n_components` is how many, or a share of the variance between 0 and 1; the other parameters are those of `sash.arrays.pca`. Signs are
    scikit-learn's: the largest loading of a component is positive. `fit` also takes the path of a file that `pca` reads.
    """

    def __init__(
        self,
        n_components: int | float = 2,
        *,
        weights: Weights = "counts",
        scale: bool = False,
        budget: str | int = "2 GiB",
        tolerance: float = 1e-6,
        random_state: int = 0,
    ) -> None:
        self.n_components = n_components
        self.weights: Weights = weights
        self.scale = scale
        self.budget = budget
        self.tolerance = tolerance
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> PCAEstimator:  # noqa: N803 (scikit-learn's name)
        """Itself, with the components of the rows; raises `InputError` where there are none."""
        self._fit(X)
        return self

    def fit_transform(self, X: Any, y: Any = None, **fit_params: Any) -> np.ndarray:  # noqa: N803
        """The rows' scores, as `fit` found them."""
        return self._fit(X)

    def transform(self, X: Any) -> np.ndarray:  # noqa: N803
        """Scores of rows with the same columns, weighed, centred and scaled as those of `fit` were."""
        check_is_fitted(self)
        return self.result_.transform(validate_data(self, X, reset=False, **_ACCEPTED), budget=self.budget)

    def inverse_transform(self, X: Any) -> np.ndarray:  # noqa: N803
        """Dense rows, as weighed, whose scores these are: what the components tell of them."""
        check_is_fitted(self)
        scores = check_array(X, dtype="float64")
        rows = scores @ self.components_
        return (rows if self.result_.scale is None else rows / self.result_.scale) + self.mean_

    def _fit(self, X: Any) -> np.ndarray:  # noqa: N803
        rows = X if isinstance(X, (str, os.PathLike)) else validate_data(self, X, ensure_min_samples=2, **_ACCEPTED)
        share = isinstance(self.n_components, (float, np.floating)) and self.n_components < 1
        asked: dict[str, Any] = {"variance": float(self.n_components)} if share else {"components": self.n_components}
        found = pca(
            rows,
            **asked,
            budget=self.budget,
            weights=self.weights,
            scale=self.scale,
            tolerance=self.tolerance,
            seed=self.random_state,
            progress=False,
        )
        self.result_ = found
        self.components_, self.mean_ = found.components, found.mean
        self.singular_values_ = found.singular_values
        self.explained_variance_, self.explained_variance_ratio_ = found.explained_variance, found.explained_variance_ratio
        self.n_components_, self.n_features_in_ = found.components.shape
        return found.scores

    @property
    def _n_features_out(self) -> int:
        return self.n_components_

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.transformer_tags.preserves_dtype = ["float64"]
        return tags


_ACCEPTED: dict[str, Any] = {"accept_sparse": "csr", "dtype": [np.float64, np.float32]}
