"""Principal components against dense float64 decompositions and scikit-learn, over spectra that are hard, and what is refused."""

import json
import os
from dataclasses import replace
from types import MappingProxyType

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st
from sklearn.decomposition import PCA as Peer  # noqa: N811 (two classes of one name)

from sash.arrays import PCA, PcaPlan, _pca, estimate_components, pca
from sash.arrays._matrix import Matrix
from sash.arrays._reduced_filed import Sizes
from sash.errors import DoesNotFit, InputError

RNG = np.random.default_rng(0)

ALL = pytest.mark.parametrize("method", ["krylov", "gram", "gram on disk"], indirect=True)
GRAM = pytest.mark.parametrize("method", ["gram", "gram on disk"], indirect=True)


@pytest.fixture
def method(request, monkeypatch):
    """A method's name. On disk a Gram matrix is reduced by panels that are narrow enough for matrices of tests."""
    if request.param != "gram on disk":
        return request.param
    choose = _pca.choose

    def filed(matrix, *given):
        way, methods = choose(matrix, *given)
        return (replace(way, filed=Sizes(min(matrix.shape), 8, 2)) if way.method == "gram" else way), methods

    monkeypatch.setattr(_pca, "choose", filed)
    return "gram"


def sparse(rows, columns, density=0.1, seed=0):
    """Counts as words in texts: whole numbers, some columns full, some with little."""
    random = np.random.default_rng(seed)
    popular = random.random(columns) ** 3
    made = random.poisson(density * 4 * popular, (rows, columns)).astype(float)
    return scipy.sparse.csr_array(made)


def exact(matrix, scale=False):
    """Left vectors, singular values and right vectors of the dense centred matrix, the largest loading positive."""
    dense = matrix.toarray() if scipy.sparse.issparse(matrix) else np.asarray(matrix, float)
    centred = dense - dense.mean(axis=0)
    if scale:
        spread = dense.std(axis=0, ddof=1)
        centred /= np.where(spread > 0, spread, 1)
    left, values, right = np.linalg.svd(centred, full_matrices=False)
    signs = np.sign(right[np.arange(len(right)), np.abs(right).argmax(axis=1)])
    return left * signs, values, right * signs[:, None]


def assert_same_components(found, matrix, scale=False, tolerance=1e-10):
    """Values, scores, loadings, mean and shares as the dense decomposition has them."""
    left, values, right = exact(matrix, scale)
    count = len(found.singular_values)
    top = values[0]
    np.testing.assert_allclose(found.singular_values, values[:count], atol=tolerance * top, rtol=0)
    np.testing.assert_allclose(found.components, right[:count], atol=100 * tolerance)
    np.testing.assert_allclose(found.scores, left[:, :count] * values[:count], atol=100 * tolerance * top)
    np.testing.assert_allclose(found.explained_variance, values[:count] ** 2 / (len(left) - 1), atol=tolerance * top**2)
    np.testing.assert_allclose(found.explained_variance_ratio, values[:count] ** 2 / np.sum(values**2), atol=tolerance)


@ALL
@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize("shape", [(60, 200), (200, 60), (90, 90)])
def test_components_are_those_of_the_dense_decomposition(method, scale, shape):
    for matrix in (sparse(*shape), RNG.standard_normal(shape) + 5):
        found = pca(matrix, 8, method=method, scale=scale, tolerance=1e-11, workers=2)
        assert found.method == method
        assert_same_components(found, matrix, scale)
        assert found.residuals.max() <= 1e-11
        np.testing.assert_allclose(found.transform(matrix), found.scores, atol=1e-9)


@pytest.mark.parametrize("weights", ["counts", "tfidf", "log"])
def test_scikit_learn_agrees(weights):
    from sash.arrays import _weights

    matrix = sparse(150, 400)
    found = pca(matrix, 6, weights=weights, tolerance=1e-10)
    idf = _weights.rarity(pytest.importorskip("sash.arrays._matrix_open").open_matrix(matrix, budget_bytes=1 << 30), 1 << 30)
    weighed = scipy.sparse.csr_array(_weights.weigh(matrix, weights, idf if weights == "tfidf" else None))
    peer = Peer(6, svd_solver="arpack", random_state=0).fit(weighed)
    np.testing.assert_allclose(found.singular_values, peer.singular_values_, rtol=1e-10)
    np.testing.assert_allclose(found.explained_variance_ratio, peer.explained_variance_ratio_, rtol=1e-10)
    np.testing.assert_allclose(np.abs(found.components), np.abs(peer.components_), atol=1e-7)
    # Signs by scikit-learn's own rule: the largest loading is positive.
    np.testing.assert_allclose(found.components, peer.components_, atol=1e-7)
    np.testing.assert_allclose(found.transform(matrix[:7]), found.scores[:7], atol=1e-9)


def test_the_user_s_matrix_is_left_as_it_is():
    matrix = sparse(80, 50)
    before = matrix.copy()
    for method in ("krylov", "gram"):
        pca(matrix, 3, method=method, scale=True)
    assert (matrix != before).nnz == 0


@given(rows=st.integers(2, 40), columns=st.integers(1, 40), seed=st.integers(0, 1000), share=st.floats(0.01, 1.0))
def test_the_fewest_components_that_explain_a_share_are_found(rows, columns, seed, share):
    matrix = sparse(rows, columns, 0.4, seed)
    dense = matrix.toarray()
    if np.ptp(dense, axis=0).max() == 0:
        with pytest.raises(InputError, match=r"nothing varies"):
            pca(matrix, variance=share)
        return
    values = exact(matrix)[1] ** 2
    sums = np.cumsum(values) / values.sum()
    found = pca(matrix, variance=share, workers=1)
    count = len(found.singular_values)
    assert found.explained_variance_ratio.sum() >= share * (1 - 1e-9)
    # Within rounding of the share either number is right.
    assert count == 1 or sums[count - 2] < share * (1 + 1e-9)


def spectrum(values, rows=120, columns=150, seed=0):
    """A dense matrix whose centred form has these singular values."""
    random = np.random.default_rng(seed)
    left = random.standard_normal((rows, len(values)))
    left, _ = np.linalg.qr(left - left.mean(axis=0))
    right, _ = np.linalg.qr(random.standard_normal((columns, len(values))))
    return (left * values) @ right.T + random.standard_normal(columns)


SPECTRA = {
    "flat": np.ones(60),
    "two levels": np.repeat([2.0, 1.0], [30, 50]),
    "clustered": 1 + 1e-7 * np.arange(60)[::-1],
    "steep": 10.0 ** -np.arange(0, 9, 0.5),
    "one far above": np.concatenate([[1e6], np.linspace(2, 1, 40)]),
    "rank 20": np.linspace(3, 1, 20),
}


@pytest.mark.parametrize("name", SPECTRA)
@ALL
def test_hard_spectra_have_their_singular_values(name, method):
    # Squares of singular values below 1e-7 of the largest are rounding.
    values, count = SPECTRA[name], 13 if name == "steep" else 17
    found = pca(spectrum(values), count, method=method, tolerance=1e-9)
    np.testing.assert_allclose(found.singular_values, values[:count], atol=1e-10 * values[0], rtol=0)
    assert np.abs(found.components @ found.components.T - np.eye(count))[:10, :10].max() < 1e-7
    np.testing.assert_allclose(found.total_variance, np.sum(values**2) / 119, rtol=1e-10)


def test_one_huge_column_leaves_the_others_their_components():
    matrix = sparse(200, 80, 0.3).toarray()
    matrix[:, 5] = RNG.standard_normal(200) * 1e5 + 1e7
    for made in (matrix, scipy.sparse.csr_array(matrix)):
        found = pca(made, 5, method="krylov", tolerance=1e-6)
        np.testing.assert_allclose(found.singular_values, exact(matrix)[1][:5], rtol=1e-6)


@ALL
def test_empty_rows_and_columns_change_nothing_but_their_own_numbers(method):
    matrix = sparse(100, 60).tolil()
    matrix[[0, 50, 99]] = 0
    matrix[:, [0, 30, 59]] = 0
    matrix = scipy.sparse.csr_array(matrix)
    found = pca(matrix, 5, method=method, scale=True, tolerance=1e-11)
    assert_same_components(found, matrix, scale=True)
    assert np.abs(found.components[:, [0, 30, 59]]).max() < 1e-14


@pytest.mark.parametrize("method", ["auto", "gram", "gram on disk"], indirect=True)
def test_all_of_the_variance_is_the_rank(method):
    assert len(pca(spectrum(SPECTRA["rank 20"]), variance=1.0, method=method).singular_values) == 20
    assert len(pca(sparse(30, 80), variance=1, method=method).singular_values) == 29


def test_randqb_takes_components_enough():
    matrix = spectrum(np.concatenate([np.linspace(5, 3, 12), np.full(60, 0.01)]))
    found = pca(matrix, variance=0.99, method="randqb")
    fewest = len(pca(matrix, variance=0.99, method="gram").singular_values)
    assert fewest <= len(found.singular_values) <= fewest + 2
    assert found.explained_variance_ratio.sum() >= 0.99 * (1 - 1e-9)


@ALL
@pytest.mark.parametrize("budget", ["least", "1 GiB"])
def test_the_same_call_gives_the_same_bits(method, budget):
    matrix = sparse(300, 500)
    if budget == "least":
        with pytest.raises(DoesNotFit) as caught:
            pca(matrix, 5, method=method, budget=1)
        budget = caught.value.least_bytes
    first, second = (pca(matrix, 5, method=method, budget=budget, workers=2, seed=3) for _ in range(2))
    assert np.array_equal(first.components, second.components)
    assert np.array_equal(first.scores, second.scores)
    np.testing.assert_allclose(first.singular_values, exact(matrix)[1][:5], rtol=1e-9)


@ALL
def test_a_matrix_read_in_blocks_has_the_same_components(method, tmp_path):
    for shape in ((400, 90), (90, 400)):
        dense = RNG.standard_normal(shape).astype(np.float32)
        np.save(tmp_path / "dense.npy", dense)
        scipy.sparse.save_npz(tmp_path / "sparse.npz", sparse(*shape))
        for source, matrix in ((tmp_path / "dense.npy", dense), (tmp_path / "sparse.npz", sparse(*shape))):
            with pytest.raises(DoesNotFit) as caught:
                pca(source, 5, method=method, budget=1)
            found = pca(source, 5, method=method, budget=caught.value.least_bytes, tolerance=1e-11)
            assert_same_components(found, matrix, tolerance=1e-9)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({}, "give one of them"),
        ({"components": 3, "variance": 0.5}, "give one of them"),
        ({"components": 0}, "components is 0; give a whole number from 1 on"),
        ({"components": 0.9}, "For a share of the variance say variance="),
        ({"components": 60}, "components is 60; 60 centred rows of 90 columns have 59 at most"),
        ({"variance": 0}, "variance is 0; give a share above 0 and up to 1"),
        ({"variance": 1.2}, "variance is 1.2; give a share above 0 and up to 1"),
        ({"components": 3, "method": "svd"}, "method is 'svd'; it is one of auto, krylov, gram, randqb"),
        ({"components": 3, "method": "randqb"}, "finds components for a share"),
        ({"components": 3, "tolerance": 0}, "tolerance is 0"),
        ({"components": 3, "weights": "bm25"}, "weights are 'bm25'"),
        ({"components": 3, "loadings": "int8"}, "loadings is 'int8'"),
        ({"components": 3, "seed": -1}, "seed is -1"),
        ({"components": 3, "workers": "tcp://127.0.0.1:1"}, "in this process, which the workers of tcp://127.0.0.1:1 do not have"),
    ],
)
def test_wrong_words_are_refused(words, message):
    with pytest.raises(InputError, match=message):
        pca(sparse(60, 90), **words)


@ALL
def test_components_beyond_the_rank_are_refused(method):
    with pytest.raises(InputError, match=r"components is 25, and the centred matrix has the rank 20.*; give 20 or fewer"):
        pca(spectrum(SPECTRA["rank 20"]), 25, method=method)


def test_matrices_without_components_are_refused():
    with pytest.raises(InputError, match="a single row"):
        pca(np.ones((1, 5)), 1)
    with pytest.raises(InputError, match="nothing varies"):
        pca(np.zeros((5, 5)), 1)
    with pytest.raises(InputError, match="nothing varies"):
        pca(np.full((9, 5), 3.7), 1)
    with pytest.raises(InputError, match=r"nan at row 2, column 1"):
        pca(np.array([[1.0, 2], [3, 4], [5, np.nan]]), 1)


def test_a_plan_tells_every_way_and_runs_nothing():
    matrix = sparse(300, 500)
    plan = pca(matrix, variance=0.9, plan_only=True)
    assert isinstance(plan, PcaPlan)
    assert {method.name for method in plan.methods} == {"krylov", "gram", "randqb"}
    assert plan.peak_bytes <= plan.budget_bytes
    text = str(plan)
    assert "components of 0.9 of the variance" in text
    assert "chosen" in text
    assert json.loads(plan.to_json())["schema"] == "sash.array-plan/1"
    with pytest.raises(DoesNotFit, match="To a file, components and scores would not count") as caught:
        pca(matrix, 20, budget="1 MiB")
    assert pca(matrix, 20, budget=caught.value.least_bytes, plan_only=True).peak_bytes <= caught.value.least_bytes


def test_an_early_estimate_decides_how_a_share_is_found(monkeypatch):
    matrix = sparse(600, 900)
    monkeypatch.setattr("sash.arrays._pca._WORTH", 0.0)
    supposed = pca(matrix, variance=0.1, plan_only=True)
    assert (supposed.method, supposed.estimate) == ("gram", None)
    monkeypatch.setattr("sash.arrays._pca._WORTH", 1e9)
    plan, found = pca(matrix, variance=0.1, plan_only=True), pca(matrix, variance=0.1)
    assert plan.method == found.method == "krylov"
    assert plan.estimate == replace(estimate_components(matrix, 0.1), wall_s=plan.estimate.wall_s)
    assert str(plan.estimate) in str(plan)
    assert plan.estimate.low <= len(found.singular_values) <= plan.estimate.high
    assert len(found.singular_values) == len(pca(matrix, variance=0.1, method="gram").singular_values)
    # What would be too large for as many components as might be is not for those that there are.
    least = pca(matrix, variance=0.1, plan_only=True).peak_bytes
    assert least < supposed.peak_bytes


class Told(Matrix):
    """Ten million rows by half a million columns, a hundred numbers a row, of which nothing is there."""

    shape, nnz, file_bytes, filed = (10_000_000, 500_000), 1_000_000_000, 12_000_000_000, True

    def row_nnz(self):
        return np.broadcast_to(np.int64(100), (self.shape[0],))

    def block_bytes(self, start, stop):
        return 12 * 100 * (stop - start)


def test_a_thousand_million_numbers_have_a_plan_within_four_gibibytes(tmp_path):
    plan = pca(Told(), 50, budget="4 GiB", workers=2, out=tmp_path / "out.zarr", plan_only=True)
    assert plan.method == "krylov"
    assert plan.peak_bytes <= 4 << 30
    assert plan.read_bytes == plan.passes * Told.file_bytes
    few = pca(Told(), 50, budget="4 GiB", workers=2, out=tmp_path / "out.zarr", method="nystrom", plan_only=True)
    assert few.peak_bytes <= 4 << 30
    assert few.passes == 6 < plan.passes / 4


def test_a_file_that_waits_for_the_disk_is_read_fewer_times(tmp_path, monkeypatch):
    found = {}
    for memory in (16 * Told.file_bytes, 2 * Told.file_bytes):
        monkeypatch.setattr(os, "sysconf", lambda name, memory=memory: memory // 4096 if name == "SC_PHYS_PAGES" else 4096)
        found[memory] = pca(Told(), 50, budget="6 GiB", workers=2, out=tmp_path / "out.zarr", method="krylov", plan_only=True)
    kept, waiting = found.values()
    assert waiting.passes < 0.7 * kept.passes
    assert waiting.peak_bytes > kept.peak_bytes
    assert waiting.wall_s > kept.wall_s


def test_rates_decide_which_way_is_taken(monkeypatch):
    from sash.arrays import array_rates

    matrix, usual = sparse(900, 1200), array_rates()
    assert pca(matrix, 2, plan_only=True).method == "krylov"
    slow = MappingProxyType({**usual.values, "matrix.pair_s": 1.0})
    monkeypatch.setattr("sash.arrays._pca.array_rates", lambda: replace(usual, values=slow))
    assert pca(matrix, 30, plan_only=True).method == "gram"


@GRAM
def test_all_of_a_hard_spectrum_comes_in_groups(method, monkeypatch):
    choose = _pca.choose

    def tight(*given):
        way, methods = choose(*given)
        return replace(way, group=40, chunk=16), methods

    monkeypatch.setattr(_pca, "choose", tight)
    values = np.sort(10.0 ** -(np.random.default_rng(0).random(119) * 3))[::-1]
    matrix = spectrum(values)
    found = pca(matrix, variance=1 - 1e-9, method=method)
    count = len(found.singular_values)
    assert count > 110
    _, exactly, _ = exact(matrix)
    np.testing.assert_allclose(found.singular_values, exactly[:count], atol=1e-10 * exactly[0])
    # Of the largest: a Gram matrix has the squares.
    assert np.abs(found.components @ found.components.T - np.eye(count)).max() < 1e-7
    assert np.abs(found.scores.T @ found.scores - np.diag(found.singular_values**2)).max() < 1e-12 * exactly[0] ** 2
    assert (found.residuals * found.singular_values).max() < 1e-10 * exactly[0]


@pytest.mark.parametrize("weights", ["counts", "tfidf"])
def test_an_estimate_holds_the_number_between_its_bounds(weights):
    matrix = sparse(400, 700)
    for share in (0.2, 0.9):
        found = estimate_components(matrix, share, weights=weights)
        count = len(pca(matrix, variance=share, weights=weights, method="gram").singular_values)
        assert found.sure_low <= found.low <= count <= found.high <= found.sure_high
        assert found.likely == pytest.approx(count, rel=0.05, abs=1)
    low_rank = estimate_components(spectrum(np.linspace(3, 1, 9)), 0.8)
    assert low_rank.low == low_rank.high == len(pca(spectrum(np.linspace(3, 1, 9)), variance=0.8).singular_values)


def test_what_users_see_names_terms():
    matrix = sparse(100, 5, 0.9)
    found = pca(matrix, 2)
    assert isinstance(found, PCA)
    assert found.top_terms(0, 2)[0][0] in {"0", "1", "2", "3", "4"}
    assert "2 components explain" in str(found)
    assert json.loads(found.to_json())["components"] == 2
    with pytest.raises(InputError, match="give 5 columns"):
        found.transform(np.ones((3, 4)))


@GRAM
def test_eigenvectors_in_groups_are_orthogonal_or_refused(method, monkeypatch):
    from sash.errors import SashError

    choose = _pca.choose

    def tight(*given):
        way, methods = choose(*given)
        return replace(way, group=16, chunk=8), methods

    monkeypatch.setattr(_pca, "choose", tight)
    matrix = sparse(150, 300, 0.3)
    found = pca(matrix, 60, method=method)
    assert_same_components(found, matrix)
    assert np.abs(found.components @ found.components.T - np.eye(60)).max() < 1e-10
    with pytest.raises(SashError, match="more than 16 eigenvalues are equal but for rounding"):
        pca(spectrum(SPECTRA["flat"]), 40, method=method)
