"""`pca` as scikit-learn's estimators are: its own checks, its PCA's numbers, and paths of files besides."""

import subprocess
import sys

import numpy as np
import pytest
import scipy.sparse
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from sash.arrays import PCAEstimator
from sash.errors import InputError

RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(80, 6)) @ RNG.normal(size=(6, 20)) + 0.1 * RNG.normal(size=(80, 20)) + 3


@parametrize_with_checks([PCAEstimator()])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
def test_it_is_an_estimator_of_scikit_learn_for_dense_and_sparse_rows(estimator, check):
    check(estimator)


@pytest.mark.parametrize("kind", ["dense", "sparse"])
@pytest.mark.parametrize("asked", [4, 0.9])
def test_its_numbers_are_those_of_scikit_learns_pca(kind, asked):
    given = ROWS if kind == "dense" else scipy.sparse.csr_array(ROWS)
    ours, peer = PCAEstimator(asked, tolerance=1e-12), PCA(asked, svd_solver="full").fit(ROWS)
    scores = ours.fit_transform(given)
    # Vectors are as near as the gaps between singular values let them, and eigenvalues of a Gram matrix are squares.
    for name in ("components_", "explained_variance_", "explained_variance_ratio_", "singular_values_", "mean_"):
        np.testing.assert_allclose(getattr(ours, name), getattr(peer, name), atol=1e-8 * np.abs(getattr(peer, name)).max(), err_msg=name)
    assert (ours.n_components_, ours.n_features_in_) == (peer.n_components_, 20)
    np.testing.assert_allclose(scores, peer.transform(ROWS), atol=1e-7)
    np.testing.assert_allclose(ours.transform(given[:7]), scores[:7], atol=1e-7)
    np.testing.assert_allclose(ours.inverse_transform(scores), peer.inverse_transform(peer.transform(ROWS)), atol=1e-7)
    assert ours.get_feature_names_out().tolist() == [f"pcaestimator{number}" for number in range(ours.n_components_)]


def test_scaled_columns_are_those_of_a_standard_scaler():
    ours = PCAEstimator(3, scale=True).fit(ROWS)
    peer = make_pipeline(StandardScaler(), PCA(3)).fit(ROWS)
    np.testing.assert_allclose(ours.explained_variance_ratio_, peer[-1].explained_variance_ratio_, rtol=1e-9)
    everything = PCAEstimator(20, scale=True)
    np.testing.assert_allclose(everything.inverse_transform(everything.fit_transform(ROWS)), ROWS, atol=1e-7)


def test_a_file_is_fitted_by_its_path(tmp_path):
    np.save(tmp_path / "rows.npy", ROWS)
    found = PCAEstimator(3).fit(tmp_path / "rows.npy")
    np.testing.assert_allclose(found.transform(ROWS), PCAEstimator(3).fit_transform(ROWS), atol=1e-9)
    assert clone(found).get_params() == found.get_params()


def test_what_makes_no_components_is_refused_as_everywhere():
    with pytest.raises(InputError, match="components"):
        PCAEstimator(0).fit(ROWS)
    with pytest.raises(InputError, match="variance"):
        PCAEstimator(-0.5).fit(ROWS)


def test_without_scikit_learn_the_extra_is_named_and_all_else_works():
    told = "import sys; sys.modules['sklearn'] = None; sys.modules['sklearn.base'] = None; import sash.arrays as a; a.pca; a.PCAEstimator"
    result = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=False)
    assert "pip install 'sash[sklearn]'" in result.stderr.splitlines()[-1]
