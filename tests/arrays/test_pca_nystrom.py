"""Principal components of one pass and one more: exact at low rank, never above the true ones, and as far below as is told at most."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import scipy.sparse
from tests.arrays.test_pca import exact

from sash.arrays import _nystrom_ways, _pca_methods, pca
from sash.errors import DoesNotFit, InputError

RNG = np.random.default_rng(0)
SHAPES = pytest.mark.parametrize("shape", [(60, 200), (200, 60), (90, 90)])


def low_rank(shape, rank, kind, seed=0):
    """A matrix of so many kinds of rows, each some times as large."""
    random = np.random.default_rng(seed)
    if kind == "dense":
        return random.standard_normal((shape[0], rank)) @ random.standard_normal((rank, shape[1])) + 5
    kinds = random.poisson(0.3, (rank, shape[1])).astype(float)
    kinds[:, :3] = 0
    return scipy.sparse.csr_array(kinds[random.integers(rank, size=shape[0])] * random.integers(1, 4, (shape[0], 1)))


def spectrum(values, rows=150, columns=220, seed=0, offset=0.0):
    """A dense matrix whose centred form has these singular values."""
    random = np.random.default_rng(seed)
    left = random.standard_normal((rows, len(values)))
    left, _ = np.linalg.qr(left - left.mean(axis=0))
    right, _ = np.linalg.qr(random.standard_normal((columns, len(values))))
    return (left * values) @ right.T + random.standard_normal(columns) + offset


def least(source, *given, **words):
    """The smallest budget."""
    with pytest.raises(DoesNotFit, match="by nystrom hold") as caught:
        pca(source, *given, method="nystrom", budget=1, **words)
    return caught.value.least_bytes


def assert_exact(found, matrix, scale=False, tolerance=1e-10):
    """Values, loadings, scores and shares as the dense decomposition has them."""
    left, values, right = exact(matrix, scale)
    count, top = len(found.singular_values), values[0]
    np.testing.assert_allclose(found.singular_values, values[:count], atol=tolerance * top, rtol=0)
    np.testing.assert_allclose(found.components, right[:count], atol=100 * tolerance)
    np.testing.assert_allclose(found.scores, left[:, :count] * values[:count], atol=100 * tolerance * top)
    np.testing.assert_allclose(found.explained_variance_ratio, values[:count] ** 2 / np.sum(values**2), atol=tolerance)
    assert found.residuals.max() <= tolerance


@SHAPES
@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize("kind", ["sparse", "dense"])
def test_where_the_rank_is_below_that_of_the_sketch_it_is_exact(shape, scale, kind):
    # Rank 14; the sketch has 32 vectors for eight components, and all of the range is in theirs.
    matrix = low_rank(shape, 14, kind)
    found = pca(matrix, 8, method="nystrom", scale=scale, workers=2)
    assert found.method == "nystrom"
    assert_exact(found, matrix, scale)
    assert found.shortfall <= 1e-10 * found.total_variance
    np.testing.assert_allclose(found.transform(matrix), found.scores, atol=1e-9)
    if kind == "sparse":
        assert np.abs(found.components[:, :3]).max() < 1e-14


@SHAPES
def test_where_the_sketch_is_as_wide_as_the_smaller_side_it_is_exact(shape):
    matrix = RNG.standard_normal(shape)
    assert_exact(pca(matrix, 45, method="nystrom"), matrix)


SPECTRA = {
    "as 1 / n": 1 / np.arange(1.0, 101),
    "by a tenth less each": 0.9 ** np.arange(100),
    "steep": 10.0 ** -np.arange(0, 7, 0.25),
    "flat behind ten": np.concatenate([np.linspace(10, 5, 10), np.full(90, 0.3)]),
}


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("rows", [150, 400])
def test_what_is_missed_is_no_more_than_told(name, rows):
    values, count = SPECTRA[name], 10
    matrix = spectrum(values, rows)
    found = pca(matrix, count, method="nystrom")
    true = values**2 / (rows - 1)
    missed = true[:count] - found.explained_variance
    rounding = 1e-13 * true[0]
    assert missed.min() >= -rounding
    assert missed.max() <= found.shortfall + rounding
    # What 32 random vectors leave is to be expected below 1 + m / (31 - m) times what comes after the m largest, for any m; by chance more.
    expected = min((1 + m / (31 - m)) * true[m:].sum() for m in range(1, 30))
    assert found.shortfall <= 1.5 * expected + rounding
    assert np.all(np.diff(found.singular_values) <= 0)
    # An eigenvalue is within a residual of each that is told.
    gaps = np.abs(true[:, None] - found.explained_variance).min(axis=0)
    assert np.all(gaps <= found.residuals * found.explained_variance + rounding)
    assert np.abs(found.components @ found.components.T - np.eye(count)).max() < 1e-10
    angles = np.linalg.svd(found.components @ exact(matrix)[2][:count].T)[1]
    assert angles.min() > (0.999 if name in ("steep", "flat behind ten") else 0.8)


def test_small_singular_values_are_as_exact_as_squares_allow():
    values = 10.0 ** -np.arange(0, 8.5, 0.5)
    found = pca(spectrum(values, 400), 15, method="nystrom")
    # A square of 1e-14 of the largest has one digit or two left of the sixteen.
    np.testing.assert_allclose(found.singular_values, values[:15], rtol=0.2)
    np.testing.assert_allclose(found.singular_values[:9], values[:9], rtol=1e-8)


@pytest.mark.parametrize("rows", [150, 400])
@pytest.mark.parametrize("dense", [True, False])
def test_means_that_are_large_cancel_nothing(rows, dense):
    values = np.linspace(30, 10, 20)
    matrix = spectrum(values, rows, offset=1e6)
    found = pca(matrix if dense else scipy.sparse.csr_array(matrix), 8, method="nystrom")
    # Numbers of a million are rounded by 1e-10, 30,000 of them to 2e-8 at most beside singular values of 10 and more.
    np.testing.assert_allclose(found.singular_values, values[:8], rtol=1e-8)
    np.testing.assert_allclose(found.total_variance, np.sum(values**2) / (rows - 1), rtol=1e-8)
    assert found.residuals.max() < 1e-7


@pytest.mark.parametrize("kind", ["sparse", "dense"])
def test_columns_of_other_units_are_scaled_before_their_deviations_are_known(kind):
    random = np.random.default_rng(1)
    if kind == "dense":
        matrix = spectrum(SPECTRA["as 1 / n"], 400, 100)
    else:
        matrix = random.poisson(2 * random.random((400, 1)) * random.random(100) ** 2).astype(float)
    units = 10.0 ** random.uniform(-5, 5, 100)
    other = matrix * units
    if kind == "sparse":
        matrix, other = scipy.sparse.csr_array(matrix), scipy.sparse.csr_array(other)
    alike, apart = (pca(one, 10, method="nystrom", scale=True) for one in (matrix, other))
    values = exact(matrix, True)[1][:10]
    # Both miss as much, but for chance: what is looked at before makes columns alike. By their own units, half of it would be missed.
    for found in (alike, apart):
        assert np.all(found.singular_values <= values * (1 + 1e-10))
        assert found.singular_values.sum() > 0.93 * values.sum()
    assert apart.shortfall < 1.1 * alike.shortfall
    np.testing.assert_allclose(alike.total_variance, apart.total_variance)


def test_components_that_come_chunk_by_chunk_are_the_same(monkeypatch):
    for shape in ((300, 120), (120, 300)):
        matrix = scipy.sparse.csr_array(RNG.poisson(0.4, shape).astype(float) * (RNG.random(shape[1]) < 0.4))
        whole = pca(matrix, 9, method="nystrom", scale=True)
        with monkeypatch.context() as patched:
            patched.setattr(_nystrom_ways, "CHUNK", 4)
            patched.setattr(_nystrom_ways, "NARROW", 4)
            plan = pca(matrix, 9, method="nystrom", plan_only=True)
            parts = pca(matrix, 9, method="nystrom", scale=True)
        # Means and the sketch; the basis; three chunks.
        assert (plan.passes, plan.tasks) == (5, 3)
        assert pca(matrix, 9, method="nystrom", plan_only=True).passes == 2
        for name in ("singular_values", "components", "scores", "residuals", "shortfall"):
            np.testing.assert_allclose(getattr(parts, name), getattr(whole, name), atol=1e-9, rtol=1e-9)


@SHAPES
@pytest.mark.parametrize("budget", ["least", "1 GiB"])
@pytest.mark.parametrize("kind", ["sparse", "dense"])
def test_files_are_read_in_blocks_to_the_same_bits_every_time(tmp_path, shape, budget, kind):
    matrix = low_rank(shape, 14, kind)
    if kind == "dense":
        np.save(tmp_path / "matrix.npy", matrix)
    else:
        scipy.sparse.save_npz(tmp_path / "matrix.npz", matrix)
    source = next(tmp_path.iterdir())
    budget = least(source, 6) if budget == "least" else budget
    first, second = (pca(source, 6, method="nystrom", budget=budget, workers=2, seed=3) for _ in range(2))
    for name in ("components", "scores", "singular_values", "residuals"):
        assert np.array_equal(getattr(first, name), getattr(second, name))
    assert_exact(first, matrix, tolerance=1e-9)


@pytest.mark.parametrize("chunk", [4, 256])
def test_an_interrupted_run_goes_on_to_the_same_bits(tmp_path, monkeypatch, chunk):
    matrix = low_rank((300, 420), 30, "sparse")
    monkeypatch.setattr(_nystrom_ways, "CHUNK", chunk)
    monkeypatch.setattr(_nystrom_ways, "NARROW", chunk)
    words = {"method": "nystrom", "workers": 2}
    whole = pca(matrix, 10, out=tmp_path / "whole.zarr", **words)
    finished, made = _pca_methods._finished, []

    def ends(*given):
        if len(made) == (1 if chunk == 4 else 0):
            raise KeyboardInterrupt
        made.append(given[0].shape[1])
        return finished(*given)

    monkeypatch.setattr(_pca_methods, "_finished", ends)
    with pytest.raises(KeyboardInterrupt):
        pca(matrix, 10, out=tmp_path / "again.zarr", **words)
    assert not (tmp_path / "again.zarr").exists()
    monkeypatch.setattr(_pca_methods, "_finished", lambda *given: made.append(given[0].shape[1]) or finished(*given))
    found = pca(matrix, 10, out=tmp_path / "again.zarr", **words)
    assert made == ([4, 4, 2] if chunk == 4 else [10])
    for name in ("scores", "components", "singular_values", "residuals"):
        assert np.array_equal(getattr(found, name)[...], getattr(whole, name)[...])
    assert found.shortfall == whole.shortfall is not None
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["again.zarr", "whole.zarr"]


def test_what_cannot_be_found_is_told(tmp_path):
    matrix = low_rank((60, 90), 14, "dense")
    with pytest.raises(InputError, match=r"'nystrom' finds a number of components that is given; give components, or take 'gram'"):
        pca(matrix, variance=0.9, method="nystrom")
    for count in (20, 50):
        message = rf"components is {count}, and the centred matrix has the rank 14, as far as a Gram matrix tells; give 14 or fewer"
        with pytest.raises(InputError, match=message):
            pca(matrix, count, method="nystrom", out=tmp_path / "model.zarr")
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="nothing varies"):
        pca(np.full((9, 5), 3.7), 1, method="nystrom")
    matrix[57, 3] = np.nan
    with pytest.raises(InputError, match="nan at row 57, column 3"):
        pca(matrix, 5, method="nystrom")


def test_it_is_taken_on_request_alone_and_says_what_it_does_not_know():
    matrix = scipy.sparse.csr_array(RNG.poisson(0.1, (400, 300)).astype(float))
    plan = pca(matrix, 5, plan_only=True)
    (verdict,) = (one.verdict for one in plan.methods if one.name == "nystrom")
    assert plan.method != "nystrom"
    assert verdict == "on request: 2 passes; how near it comes is told after"
    own = pca(matrix, 5, method="nystrom", plan_only=True)
    assert "residuals told after the run" in str(own)
    assert json.loads(own.to_json())["error"] is None
    found = pca(matrix, 5, method="nystrom")
    told = (
        f"true explained variances are larger by {found.shortfall:.3g} at most, {found.shortfall / found.total_variance:.1%} of the total"
    )
    assert told in str(found)
    assert json.loads(found.to_json())["shortfall"] == found.shortfall
    assert pca(matrix, 5).shortfall is None


MEASURED = """
import re, sys
from pathlib import Path
import numpy as np, scipy.sparse
from sash.arrays import pca

def status(name):
    return int(re.search(name + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) << 10

random, folder, words = np.random.default_rng(0), sys.argv[1], dict(method="nystrom", workers=2)
small = scipy.sparse.random_array((300, 400), density=0.1, rng=random, format="csr")
for one in (small, small.toarray(), small.toarray().astype(np.float32)):
    pca(one, 20, scale=True, out=folder + "/small.zarr", overwrite=True, **words)
for rows, columns, dense in ((30000, 4000, False), (3000, 40000, False), (12000, 1500, True), (1200, 9000, True)):
    matrix = scipy.sparse.random_array((rows, columns), density=0.003, rng=random, format="csr")
    matrix = matrix.toarray().astype(np.float32) if dense else matrix
    for count, scale, share in ((60, True, 1.0), (60, False, 0.6)):
        out = folder + "/model.zarr" if scale else None
        budget = 1 << 30
        if share < 1:
            budget = int(share * pca(matrix, count, scale=scale, out=out, plan_only=True, **words).peak_bytes)
        try:
            plan = pca(matrix, count, scale=scale, out=out, plan_only=True, budget=budget, overwrite=True, **words)
        except Exception as error:
            budget = error.least_bytes
            plan = pca(matrix, count, scale=scale, out=out, plan_only=True, budget=budget, overwrite=True, **words)
        Path("/proc/self/clear_refs").write_text("5")
        before = status("VmRSS")
        found = pca(matrix, count, scale=scale, out=out, budget=budget, overwrite=True, **words)
        print(rows, columns, dense, scale, plan.passes, plan.workers, plan.budget_bytes, plan.peak_bytes, status("VmHWM") - before)
        del found
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="needs Linux's account of a process")
def test_it_holds_no_more_than_planned(tmp_path):
    run = subprocess.run([sys.executable, "-c", MEASURED, str(tmp_path)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert len(lines) == 8
    for line in lines:
        budget, planned, grown = map(int, line.split()[-3:])
        assert grown <= planned <= budget, run.stdout
        # And not much less: dense blocks count as if they were copied to float64, and threads as if they were at their most at once.
        assert planned <= 2 * grown, run.stdout
