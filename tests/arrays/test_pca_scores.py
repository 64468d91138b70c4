"""Components that were written are opened again, and score rows of arrays and files, within a budget; wrong ones are refused."""

import json
import pickle
import weakref

import numpy as np
import pytest
import scipy.io
import scipy.sparse
import zarr
from tests.arrays.test_pca_files import texts

from sash.arrays import PCA, _pca_scores, pca
from sash.arrays._matrix_stored import StoredDense
from sash.errors import DoesNotFit, InputError

NAMES = [f"term{place}" for place in range(420)]


def found(folder, **words):
    """A folder of components."""
    pca(texts(), 12, out=folder / "model.zarr", **words)
    return folder / "model.zarr"


def by_hand(model, rows):
    """Scores by the definition, of weighed rows."""
    components = model.components[...]
    components = components.toarray() if scipy.sparse.issparse(components) else components
    return (rows - model.mean) * (1 if model.scale is None else model.scale) @ components.T


@pytest.mark.parametrize("weights", ["counts", "log", "tfidf"])
@pytest.mark.parametrize("words", [{}, {"scale": True}, {"loadings_above": 0.1}, {"loadings": "float32"}])
def test_what_is_opened_again_is_what_was_found(tmp_path, weights, words):
    again = PCA.open(found(tmp_path, weights=weights, names=NAMES, **words))
    held = pca(texts(), 12, weights=weights, names=NAMES, **words)
    assert (again.weights, again.method, again.names) == (held.weights, held.method, held.names)
    assert (again.loadings_above, again.total_variance) == (held.loadings_above, held.total_variance)
    for name in ("mean", "scale", "idf", "left_out"):
        ours, theirs = getattr(again, name), getattr(held, name)
        assert (ours is None) == (theirs is None)
        # A loading at the size itself is above it by the one's rounding, and not by the other's.
        assert ours is None or np.allclose(ours, theirs, atol=1e-2 if name == "left_out" else 0)
    np.testing.assert_allclose(again.scores[...], held.scores, atol=1e-7)
    np.testing.assert_allclose(again.transform(texts(seed=5)), by_hand(again, weighed(texts(seed=5), again)), atol=1e-9)
    if "loadings_above" not in words:
        np.testing.assert_allclose(again.transform(texts()), held.scores, atol=1e-5)


def weighed(rows, model):
    """Dense rows as scikit-learn weighs them."""
    rows = rows.toarray()
    if model.weights == "log":
        return np.log1p(rows)
    if model.weights == "tfidf":
        rows = rows * model.idf
        return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-300)
    return rows


@pytest.mark.parametrize("kind", ["mtx", "npz", "npy", "zarr", "dense", "list", "float32", "coo"])
def test_rows_come_from_anything_that_is_a_matrix(tmp_path, kind):
    model, new = PCA.open(found(tmp_path)), texts(seed=5)[:70]
    wanted = by_hand(model, new.toarray())
    path = tmp_path / f"new.{kind}"
    if kind == "mtx":
        scipy.io.mmwrite(path, new)
    elif kind == "npz":
        scipy.sparse.save_npz(path, new)
    elif kind == "npy":
        np.save(path, new.toarray())
    elif kind == "zarr":
        group = zarr.create_group(path, attributes={"encoding-type": "csr_matrix", "shape": list(new.shape)})
        for name in ("data", "indices", "indptr"):
            group.create_array(name, data=getattr(new, name))
    others = {"dense": new.toarray(), "list": new.toarray().tolist(), "float32": new.astype(np.float32), "coo": new.tocoo()}
    given = others.get(kind, path)
    np.testing.assert_allclose(model.transform(given), wanted, atol=1e-9)
    out = model.transform(given, tmp_path / "scores.npy")
    assert out == tmp_path / "scores.npy"
    assert np.array_equal(np.load(out, allow_pickle=False), model.transform(given))


def test_rows_of_zeros_have_the_scores_of_the_mean(tmp_path):
    model = PCA.open(found(tmp_path))
    wanted = by_hand(model, np.zeros((3, 420)))
    for given in (np.zeros((3, 420)), scipy.sparse.csr_array((3, 420)), scipy.sparse.coo_matrix((3, 420))):
        np.testing.assert_allclose(model.transform(given), wanted, atol=1e-12)


@pytest.mark.parametrize("dense", [False, True])
def test_a_tight_budget_takes_smaller_blocks_and_the_least_is_told(tmp_path, monkeypatch, dense):
    model, new = PCA.open(found(tmp_path)), texts(rows=3000, seed=5)
    given = new.toarray() if dense else new
    whole, widths, rows = model.transform(given, workers=2), set(), set()
    scores = _pca_scores._Part.scores

    def seen(self, block, threads):
        widths.add(self.vectors.shape[1])
        rows.add(block.shape[0])
        return scores(self, block, threads)

    monkeypatch.setattr(_pca_scores._Part, "scores", seen)
    with pytest.raises(DoesNotFit, match="scores of 3000 rows holds") as told:
        model.transform(given, budget=1000)
    again = model.transform(given, budget=told.value.least_bytes, workers=2)
    np.testing.assert_allclose(again, whole, atol=1e-12)
    assert widths == {1}
    assert max(rows) < 3000
    with pytest.raises(DoesNotFit) as less:
        model.transform(given, tmp_path / "scores.npy", budget=1000)
    assert told.value.least_bytes - less.value.least_bytes == 8 * 3000 * 12
    assert not (tmp_path / "scores.npy").exists()
    model.transform(given, tmp_path / "scores.npy", budget=less.value.least_bytes, workers=2)
    assert np.array_equal(np.load(tmp_path / "scores.npy", allow_pickle=False), again)


@pytest.mark.parametrize("outer", ["rows", "components"])
def test_a_block_and_a_part_are_gone_before_the_next(tmp_path, monkeypatch, outer):
    model, made = PCA.open(found(tmp_path)), {"part": [], "block": []}
    np.save(tmp_path / "new.npy", texts(rows=900, seed=5).toarray())
    part_of, block_of = _pca_scores._Part.of, StoredDense.block

    def one(kind, value):
        assert not [before for before in made[kind] if before() is not None]
        made[kind].append(weakref.ref(value))
        return value

    monkeypatch.setattr(_pca_scores._Part, "of", lambda *given: one("part", part_of(*given)))
    monkeypatch.setattr(StoredDense, "block", lambda *given: one("block", block_of(*given)))
    monkeypatch.setattr(_pca_scores, "_WIDTHS", (4,))
    monkeypatch.setattr(_pca_scores, "_CALL", 1 << 40 if outer == "components" else 0)
    model.transform(tmp_path / "new.npy", budget="3 MiB")
    blocks = len(made["block"]) if outer == "rows" else len(made["block"]) // 3
    assert blocks > 1
    assert len(made["part"]) == (3 * blocks if outer == "rows" else 3)


def test_wrong_rows_are_refused_and_nothing_is_left(tmp_path):
    model, out = PCA.open(found(tmp_path, names=NAMES)), tmp_path / "scores.npy"
    before = sorted(tmp_path.iterdir())
    for rows, message in (
        (np.ones((3, 4)), "give 420 columns"),
        (np.ones(420), r"the rows have the shape \(420,\)"),
        (scipy.sparse.csr_array((3, 4)), "give 420 columns"),
        (tmp_path / "none.mtx", "there is no file"),
        (np.full((3, 420), np.nan), "the matrix holds nan at row 0"),
        (np.ones((3, 420), complex), "holds complex128"),
    ):
        with pytest.raises(InputError, match=message):
            model.transform(rows, out)
    with pytest.raises(InputError, match=r"ends in \.npy"):
        model.transform(texts(), tmp_path / "scores.csv")
    with pytest.raises(InputError, match="threads of this process"):
        model.transform(texts(), workers="tcp://127.0.0.1:1")
    assert sorted(tmp_path.iterdir()) == before
    model.transform(texts(), out)
    with pytest.raises(InputError, match="there already"):
        model.transform(texts(), out)
    model.transform(texts()[:5], out, overwrite=True)
    assert np.load(out, allow_pickle=False).shape == (5, 12)


def test_columns_by_other_names_are_refused(tmp_path):
    model = PCA.open(found(tmp_path, names=NAMES))
    scipy.io.mmwrite(tmp_path / "new.mtx", texts(seed=5))
    (tmp_path / "new.vocab.txt").write_text("\n".join([*NAMES[:7], "other", *NAMES[8:]]) + "\n")
    with pytest.raises(InputError, match=r"column 7 of .*new\.mtx is 'other', and 'term7' in the model"):
        model.transform(tmp_path / "new.mtx")
    (tmp_path / "new.vocab.txt").write_text("\n".join(NAMES) + "\n")
    assert model.transform(tmp_path / "new.mtx").shape == (300, 12)


def test_a_block_with_a_wrong_number_leaves_no_file(tmp_path):
    model = PCA.open(found(tmp_path))
    rows = np.ones((300, 420))
    rows[250, 3] = np.inf
    np.save(tmp_path / "new.npy", rows)
    with pytest.raises(InputError, match=r"new\.npy holds inf at row 250, column 3"):
        model.transform(tmp_path / "new.npy", tmp_path / "scores.npy", budget="1.4 MiB")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.zarr", "new.npy"]


def test_folders_that_are_no_components_are_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be read as a folder of components"):
        PCA.open(tmp_path / "none.zarr")
    zarr.create_group(tmp_path / "empty.zarr")
    with pytest.raises(InputError, match=r"has no explained_variance, .*; give a folder that pca wrote"):
        PCA.open(tmp_path / "empty.zarr")
    path = found(tmp_path, weights="tfidf")
    group = zarr.open_group(path, mode="r+")
    kept = {name: group[name][...] for name in ("idf", "mean", "residuals")}

    def changed(name, values):
        group.create_array(name, data=values, overwrite=True)

    del group["idf"]
    with pytest.raises(InputError, match="has no idf"):
        PCA.open(path)
    changed("idf", kept["idf"][:-1])
    with pytest.raises(InputError, match="lengths do not go together"):
        PCA.open(path)
    changed("idf", kept["idf"])
    changed("mean", np.arange(420))
    with pytest.raises(InputError, match="mean is no array of numbers"):
        PCA.open(path)
    changed("mean", kept["mean"])
    changed("residuals", kept["residuals"][:3])
    with pytest.raises(InputError, match="lengths do not go together"):
        PCA.open(path)
    changed("residuals", kept["residuals"])
    assert PCA.open(path).weights == "tfidf"
    group.attrs["operation"] = "topics"
    with pytest.raises(InputError, match="was written by something else"):
        PCA.open(path)


def test_an_array_whose_bytes_would_be_unpickled_is_not_read(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (tmp_path / "gone off").mkdir, ()

    for place, (filters, compressor) in enumerate(((["pickle"], None), (None, "pickle"), (["delta", "pickle"], None))):
        path = tmp_path / f"{place}.zarr"
        path.mkdir()
        codecs = {"pickle": {"id": "pickle", "protocol": 4}, "delta": {"id": "delta", "dtype": "<f8", "astype": "<f8"}}
        meta = {"zarr_format": 2, "shape": [4, 4], "chunks": [4, 4], "dtype": "<f8", "fill_value": 0.0, "order": "C"}
        meta |= {"filters": filters and [codecs[name] for name in filters], "compressor": compressor and codecs[compressor]}
        (path / ".zarray").write_text(json.dumps(meta))
        (path / "0.0").write_bytes(pickle.dumps(Bomb()))
        with pytest.raises(InputError, match="cannot be read as zarr"):
            pca(path, 2)
        assert not (tmp_path / "gone off").exists()
