"""Principal components in a zarr folder: whole or not at all, taken up again, the same as in memory."""

import weakref
from dataclasses import replace

import numpy as np
import pytest
import scipy.io
import scipy.sparse
import zarr

from sash.arrays import _pca, _pca_methods, _pca_ways, _tridiagonal, pca
from sash.errors import DoesNotFit, InputError


def texts(rows=300, columns=420, seed=0):
    """Counts of words."""
    random = np.random.default_rng(seed)
    return scipy.sparse.csr_array(random.poisson(0.5 * random.random(columns) ** 3, (rows, columns)).astype(float))


@pytest.mark.parametrize("method", ["krylov", "gram"])
@pytest.mark.parametrize("loadings", ["float64", "float32"])
def test_a_folder_holds_what_memory_would(tmp_path, method, loadings):
    matrix, out = texts(), tmp_path / "model.zarr"
    scipy.io.mmwrite(tmp_path / "docs.mtx", matrix)
    held = pca(matrix, 20, method=method, loadings=loadings)
    found = pca(tmp_path / "docs.mtx", 20, out=out, method=method, loadings=loadings)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["docs.mtx", "model.zarr"]
    np.testing.assert_allclose(found.scores[...], held.scores, atol=1e-7)
    np.testing.assert_allclose(found.components[...], held.components, atol=1e-7)
    assert found.components.dtype == held.components.dtype == loadings
    np.testing.assert_allclose(found.transform(matrix[:5]), held.transform(matrix[:5]), atol=1e-6)
    group = zarr.open_group(out, mode="r")
    for name in ("singular_values", "explained_variance", "explained_variance_ratio", "residuals", "mean"):
        assert np.array_equal(group[name][...], getattr(found, name))
    assert group.attrs["total_variance"] == found.total_variance
    assert group.attrs["method"] == method
    with pytest.raises(InputError, match="is there already; say overwrite=True"):
        pca(matrix, 5, out=out)
    pca(matrix, 5, out=out, overwrite=True)
    assert zarr.open_group(out, mode="r")["scores"].shape == (300, 5)


def test_an_interrupted_run_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    matrix = texts()
    monkeypatch.setattr(_pca_ways, "CHUNK", 32)
    words = {"variance": 0.95, "method": "gram", "workers": 2}
    whole = pca(matrix, out=tmp_path / "whole.zarr", **words)
    # Notes after every panel, and an end in the middle of the reduction; then one between chunks.
    monkeypatch.setattr(_tridiagonal, "NOTED_S", 0.0)
    out, panel = tmp_path / "again.zarr", _tridiagonal.Reduced._panel
    begun = []

    def ends(self, *given):
        begun.append(self.done)
        if len(begun) == 2:
            raise KeyboardInterrupt
        panel(self, *given)

    monkeypatch.setattr(_tridiagonal.Reduced, "_panel", ends)
    with pytest.raises(KeyboardInterrupt):
        pca(matrix, out=out, **words)
    assert not out.exists()
    assert (tmp_path / "again.zarr.reduced").exists()
    chunks, both = [], _pca_methods._both_sides

    def ends_later(centred, own):
        chunks.append(own.shape[1])
        if len(chunks) == 2:
            raise KeyboardInterrupt
        return both(centred, own)

    monkeypatch.setattr(_pca_methods, "_both_sides", ends_later)
    with pytest.raises(KeyboardInterrupt):
        pca(matrix, out=out, **words)
    assert begun[2] > 0  # gone on with, not begun again
    monkeypatch.setattr(_pca_methods, "_both_sides", lambda centred, own: chunks.append(own.shape[1]) or both(centred, own))
    found = pca(matrix, out=out, **words)
    assert sum(chunks[2:]) < len(found.singular_values)
    for name in ("scores", "components"):
        assert np.array_equal(getattr(found, name)[...], getattr(whole, name)[...])
    assert np.array_equal(found.residuals, whole.residuals)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["again.zarr", "whole.zarr"]


def test_another_run_is_not_gone_on_with(tmp_path, monkeypatch):
    matrix, out = texts(), tmp_path / "model.zarr"
    with monkeypatch.context() as patched:
        patched.setattr(_pca_methods, "_both_sides", lambda centred, own: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            pca(matrix, 5, out=out)
    with pytest.raises(InputError, match=r"other things changed: components \(5 → 6\)"):
        pca(matrix, 6, out=out)
    found = pca(matrix, 6, out=out, restart=True)
    assert len(found.singular_values) == 6
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.zarr"]


def test_wrong_places_are_refused_before_work(tmp_path):
    with pytest.raises(InputError, match=r"give a name that ends in \.zarr"):
        pca(texts(), 3, out=tmp_path / "model.npy")
    with pytest.raises(InputError, match="there is no folder"):
        pca(texts(), 3, out=tmp_path / "none" / "model.zarr")
    with pytest.raises(InputError, match="rank"):
        pca(np.outer(np.arange(9.0), np.ones(9)), 3, out=tmp_path / "model.zarr")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("filed", [False, True])
def test_a_group_of_vectors_and_a_chunk_are_gone_before_the_next(tmp_path, monkeypatch, filed):
    before, found_by, both = list[weakref.ref](), _pca_methods.found_by, _pca_methods._both_sides

    def grouped(*given):
        found = found_by(*given)

        def vectors(start, stop):
            assert not [one for one in before if one() is not None]
            made = found.vectors(start, stop)
            before.append(weakref.ref(made))
            return made

        return replace(found, vectors=vectors, groups=((0, 8), (8, 20), (20, 30)))

    def sides(centred, own):
        # All but the group's vectors.
        assert sum(one() is not None for one in before) == 1
        made = both(centred, own)
        before.extend(weakref.ref(part) for part in (own, *made[:2]))
        return made

    monkeypatch.setattr(_pca_ways, "CHUNK", 4)
    monkeypatch.setattr(_pca, "found_by", grouped)
    monkeypatch.setattr(_pca_methods, "_both_sides", sides)
    pca(texts(), 30, method="gram", out=tmp_path / "model.zarr" if filed else None)
    assert len(before) == 3 + 3 * 8


def test_the_least_budget_is_enough_where_terms_are_counted_too(tmp_path):
    matrix = texts(499, 3143)
    group = zarr.create_group(tmp_path / "docs.zarr", attributes={"shape": list(matrix.shape)})
    for name in ("data", "indices", "indptr"):
        # Whole: every row takes all of it to read, and what it takes is more than is there for counting at first.
        group.create_array(name, data=getattr(matrix, name), chunks=(len(getattr(matrix, name)),))
    with pytest.raises(DoesNotFit) as caught:
        pca(tmp_path / "docs.zarr", 8, weights="tfidf", budget=1)
    assert pca(tmp_path / "docs.zarr", 8, weights="tfidf", budget=caught.value.least_bytes, plan_only=True).passes
