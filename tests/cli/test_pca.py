"""`sash pca` on files."""

import json

import numpy as np
import scipy.io
import scipy.sparse
import zarr

from sash import arrays


def test_a_matrix_market_file_becomes_a_model(sash, folder):
    counts = scipy.sparse.csr_array(np.random.default_rng(0).poisson(0.3, (90, 60)))
    scipy.io.mmwrite(folder / "docs.mtx", counts)
    (folder / "docs.vocab.txt").write_text("".join(f"word{place}\n" for place in range(60)))
    result = sash("pca", "docs.mtx", "--variance", "0.9", "--out", "model.zarr", "--budget", "1GiB", "--weights", "tfidf")
    assert result.exit_code == 0, result.output
    assert "wrote model.zarr" in result.stdout
    assert "word" in result.stdout
    assert "components of 0.9 of the variance" in result.stderr
    wanted = arrays.pca(counts, variance=0.9, weights="tfidf")
    group = zarr.open_group(folder / "model.zarr", mode="r")
    np.testing.assert_allclose(group["scores"][...], wanted.scores, atol=1e-8)
    assert group.attrs["names"][3] == "word3"
    result = sash("pca", "docs.mtx", "--components", "5", "--json")
    assert json.loads(result.stdout)["components"] == 5
    result = sash("pca", "docs.mtx", "--components", "5", "--plan", "--json")
    assert {method["name"] for method in json.loads(result.stdout)["methods"]} == {"krylov", "gram", "nystrom"}
    assert "chosen" in sash("pca", "docs.mtx", "--components", "5", "--plan").stdout
    assert "true explained variances are larger by" in sash("pca", "docs.mtx", "--components", "5", "--method", "nystrom").stdout
    result = sash("pca", "docs.mtx", "--variance", "0.9", "--estimate", "--json")
    found = json.loads(result.stdout)
    assert found["low"] <= len(arrays.pca(counts, variance=0.9).singular_values) <= found["high"]


def test_what_makes_no_components_is_wrong_use_and_too_little_memory_is_not(sash, folder):
    scipy.io.mmwrite(folder / "docs.mtx", scipy.sparse.random_array((30, 20), density=0.2, rng=np.random.default_rng(0)))
    result = sash("pca", "docs.mtx", "--variance", "1.2")
    assert result.exit_code == 2
    assert "give a share above 0 and up to 1" in result.stderr
    result = sash("pca", "docs.mtx", "--estimate")
    assert result.exit_code == 2
    assert "give it, as --variance 0.9" in result.stderr
    result = sash("pca", "docs.mtx", "--components", "3", "--budget", "1 KiB")
    assert result.exit_code == 1
    assert "at least" in result.stderr


def test_names_and_a_report_come_with_the_components(sash, folder):
    scipy.io.mmwrite(folder / "docs.mtx", scipy.sparse.csr_array(np.random.default_rng(0).poisson(0.3, (40, 20))))
    (folder / "words.txt").write_text("".join(f"term{place}\n" for place in range(20)))
    result = sash("pca", "docs.mtx", "--components", "3", "--names", "words.txt", "--html", "page.html")
    assert result.exit_code == 0, result.output
    assert "wrote page.html" in result.stderr
    page = (folder / "page.html").read_text(encoding="utf-8")
    assert "term1" in page
    assert "Scree plot" in page
    assert sash("pca", "docs.mtx", "--components", "3", "--names", "page.html").exit_code == 2


def test_only_large_loadings_are_kept_where_that_is_asked(sash, folder):
    scipy.io.mmwrite(folder / "docs.mtx", scipy.sparse.csr_array(np.random.default_rng(0).poisson(0.3, (90, 60))))
    result = sash("pca", "docs.mtx", "--components", "4", "--out", "model.zarr", "--loadings-above", "0.2", "--html", "page.html")
    assert result.exit_code == 0, result.output
    assert "loadings above 0.2 are kept" in result.stdout
    assert "above 0.2 alone, at most 25 of a component" in result.stderr
    group = zarr.open_group(folder / "model.zarr", mode="r")
    assert (np.abs(group["loadings/data"][...]) > 0.2).all()
    assert group.attrs["loadings_above"] == 0.2
    assert "loadings kept" in (folder / "page.html").read_text(encoding="utf-8")
    result = sash("pca", "docs.mtx", "--components", "4", "--loadings-above", "1.5")
    assert result.exit_code == 2
    assert "give a size from 0 up to below 1" in result.stderr


def test_a_model_scores_rows_of_another_file(sash, folder):
    counts = scipy.sparse.csr_array(np.random.default_rng(0).poisson(0.3, (90, 60)))
    scipy.io.mmwrite(folder / "docs.mtx", counts)
    scipy.io.mmwrite(folder / "other.mtx", counts[::-1])
    assert sash("pca", "docs.mtx", "-k", "4", "--weights", "log", "--out", "model.zarr").exit_code == 0
    result = sash("pca", "other.mtx", "--model", "model.zarr", "--out", "scores.npy", "--budget", "64 MiB")
    assert result.exit_code == 0, result.output
    assert "wrote scores.npy: scores along 4 components" in result.stdout
    scores = zarr.open_group(folder / "model.zarr", mode="r")["scores"][...]
    np.testing.assert_allclose(np.load(folder / "scores.npy", allow_pickle=False), scores[::-1], atol=1e-6)
    result = sash("pca", "other.mtx", "--model", "model.zarr", "--out", "scores.npy", "--overwrite", "--json")
    assert json.loads(result.stdout) == {"components": 4, "out": "scores.npy"}
    for wrong, told in (
        (("--model", "model.zarr"), "say where, as --out scores.npy"),
        (("--model", "model.zarr", "--out", "s.npy", "-k", "3"), "--components finds others"),
        (("--model", "model.zarr", "--out", "s.npy", "--plan"), "which has no plan"),
        (("--model", "model.zarr", "--out", "s.npy", "--estimate"), "which has no estimate"),
        (("--model", "docs.mtx", "--out", "s.npy"), "give one that pca wrote"),
        (("--model", "model.zarr", "--out", "scores.npy"), "is there already"),
    ):
        result = sash("pca", "other.mtx", *wrong)
        assert result.exit_code == 2
        assert told in result.stderr
    assert not (folder / "s.npy").exists()
