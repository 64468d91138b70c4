"""Principal components on a Dask cluster: the bits of local threads, whatever is lost on the way, and clear words where it cannot be."""

import os
import signal
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import scipy.io
import scipy.sparse
import zarr
from distributed import LocalCluster
from threadpoolctl import threadpool_limits

from sash.arrays import _cluster, _pca, _pca_estimate, _pca_methods, estimate_components, pca
from sash.arrays._centred import Centred
from sash.arrays._cluster import connected
from sash.arrays._matrix_open import open_matrix
from sash.arrays._moments import moments
from sash.arrays._sweep import Sweep
from sash.arrays._sweep_apart import lanes_at
from sash.errors import DoesNotFit, InputError

RNG = np.random.default_rng(0)


def texts(rows=300, columns=420, seed=0):
    """Counts of words."""
    random = np.random.default_rng(seed)
    return scipy.sparse.csr_array(random.poisson(0.5 * random.random(columns) ** 3, (rows, columns)).astype(float))


def store(folder, kind, form):
    """A file of a kind."""
    rows, columns = (500, 90) if form == "tall" else (130, 700)
    if kind == "dense":
        np.save(folder / "docs.npy", RNG.standard_normal((rows, columns)).astype(np.float32))
        return folder / "docs.npy"
    scipy.sparse.save_npz(folder / "docs.npz", texts(rows, columns))
    return folder / "docs.npz"


@pytest.mark.parametrize("form", ["tall", "wide"])
@pytest.mark.parametrize("kind", ["sparse", "dense"])
def test_passes_have_the_bits_of_as_many_threads(tmp_path, address, kind, form):
    stored = store(tmp_path, kind, form)
    matrix = open_matrix(stored, budget_bytes=1 << 20, scratch=tmp_path / "scratch", filed=True)
    rows, columns = matrix.shape
    with connected(address) as found, lanes_at(found, matrix, "components") as apart, threadpool_limits(1, "blas"):
        made = []
        for where in (None, apart):
            for lanes in (1, 2, 3):
                sweep = Sweep(matrix, lanes, 1500, where)
                known = moments(sweep, True)
                centred = Centred(sweep, known, False)
                many = np.random.default_rng(lanes)
                own = [known.mean, known.variance, known.column_nnz, centred.forth(many.standard_normal((columns, 5)))]
                own += [centred.back(many.standard_normal((rows, 5))), centred.gram(many.standard_normal((min(rows, columns), 8)))]
                made.append(own)
    for ours, theirs in zip(made[3:], made[:3], strict=True):
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(one, other)
    matrix.close()


@pytest.mark.parametrize(
    ("kind", "form", "method"),
    [
        ("sparse", "tall", "krylov"),
        ("dense", "wide", "krylov"),
        ("sparse", "wide", "gram"),
        ("dense", "wide", "gram"),
        ("sparse", "tall", "gram"),
        ("dense", "tall", "randqb"),
        ("sparse", "tall", "nystrom"),
        ("dense", "wide", "nystrom"),
    ],
)
def test_components_have_the_bits_of_as_many_threads(tmp_path, address, monkeypatch, kind, form, method):
    stored = store(tmp_path, kind, form)
    chosen, choose = [], _pca.choose

    def same(*given):
        way, methods = choose(*given)
        # What threads would hold in memory they read here, by the sizes of the cluster's run, and in several blocks each.
        chosen.append(replace(way, stored=2000))
        return chosen[0], methods

    monkeypatch.setattr(_pca, "choose", same)
    words = {"variance": 0.6} if method == "randqb" else {"components": 6}
    found = pca(stored, out=tmp_path / "a.zarr", method=method, workers=address, **words)
    expected = pca(stored, out=tmp_path / "b.zarr", method=method, workers=2, **words)
    assert chosen[0].workers == 2
    summed_apart = method == "gram" and found.scores.shape[0] > found.components.shape[1]
    for name in ("singular_values", "scores", "components", "mean", "residuals"):
        ours, theirs = np.asarray(getattr(found, name)[...]), np.asarray(getattr(expected, name)[...])
        if summed_apart and name != "mean":
            # Sums over rows are added up lane by lane, those of threads block by block: a rounding apart.
            np.testing.assert_allclose(ours, theirs, atol=1e-9 * max(np.abs(theirs).max(), 1))
        else:
            np.testing.assert_array_equal(ours, theirs)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted([stored.name, "a.zarr", "b.zarr"])


@pytest.mark.parametrize("weights", ["counts", "tfidf"])
def test_text_is_put_in_order_once_and_read_by_all(tmp_path, address, weights):
    matrix = texts()
    scipy.io.mmwrite(tmp_path / "docs.mtx", matrix)
    for out in (None, tmp_path / "model.zarr"):
        found = pca(tmp_path / "docs.mtx", 5, out=out, weights=weights, workers=address, tolerance=1e-10)
        expected = pca(matrix, 5, weights=weights, tolerance=1e-10)
        np.testing.assert_allclose(found.scores[...], expected.scores, atol=1e-8)
        np.testing.assert_allclose(found.components[...], expected.components, atol=1e-8)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["docs.mtx", "model.zarr"]


def anndata(path, matrix):
    import h5py

    with h5py.File(path, "w") as file:
        group = file.create_group("X")
        group.attrs["encoding-type"], group.attrs["shape"] = "csr_matrix", matrix.shape
        for name in ("data", "indices", "indptr"):
            group.create_dataset(name, data=getattr(matrix, name))


def grouped(path, matrix):
    group = zarr.create_group(path, attributes={"shape": list(matrix.shape)})
    for name in ("data", "indices", "indptr"):
        group.create_array(name, data=getattr(matrix, name))


def whole(path, matrix):
    zarr.create_array(path, data=matrix.toarray())


@pytest.mark.parametrize(("name", "write"), [("x.h5ad", anndata), ("x.zarr", grouped), ("y.zarr", whole)])
def test_every_kind_of_file_is_opened_by_workers(tmp_path, address, name, write):
    matrix = texts(80, 60)
    write(tmp_path / name, matrix)
    found = pca(tmp_path / name, 4, workers=address, tolerance=1e-10)
    np.testing.assert_allclose(found.singular_values, pca(matrix, 4, tolerance=1e-10).singular_values, rtol=1e-10)


@pytest.mark.parametrize("method", ["krylov", "gram", "nystrom"])
def test_a_worker_that_is_killed_half_way_changes_nothing(tmp_path, cluster, address, monkeypatch, method):
    scipy.sparse.save_npz(tmp_path / "docs.npz", texts())
    expected = pca(tmp_path / "docs.npz", 6, method=method, workers=address)
    pids = list(cluster.run(os.getpid).values())
    fetched, taken = _cluster.Cluster._fetched, []

    def kill(self, future, told):
        taken.append(future)
        if len(taken) == 4:
            os.kill(pids[0], signal.SIGKILL)
        return fetched(self, future, told)

    monkeypatch.setattr(_cluster.Cluster, "_fetched", kill)
    found = pca(tmp_path / "docs.npz", 6, method=method, workers=address)
    assert len(taken) > 4
    np.testing.assert_array_equal(found.scores, expected.scores)
    np.testing.assert_array_equal(found.components, expected.components)
    # The nanny starts another one.
    cluster.wait_for_workers(2, timeout=60)


def test_when_all_workers_are_gone_the_run_ends_with_words(tmp_path, monkeypatch):
    monkeypatch.setattr(_cluster, "PATIENCE_S", 0.5)
    monkeypatch.setattr(_cluster, "_LOOK_S", 0.2)
    np.save(tmp_path / "docs.npy", RNG.standard_normal((300, 40)))
    fetched, taken = _cluster.Cluster._fetched, []
    with LocalCluster(n_workers=1, threads_per_worker=1, processes=True, dashboard_address=":0") as made:

        def leave(self, future, told):
            taken.append(future)
            if len(taken) == 3:
                made.scale(0)
                made.sync(made._correct_state)
            return fetched(self, future, told)

        monkeypatch.setattr(_cluster.Cluster, "_fetched", leave)
        with pytest.raises(InputError, match=r"PCA of 300x40.*: all workers of tcp://.* are gone. Start others and call again"):
            pca(tmp_path / "docs.npy", 5, workers=made.scheduler_address)


def test_a_share_is_estimated_and_found_on_the_cluster(tmp_path, address, monkeypatch):
    scipy.sparse.save_npz(tmp_path / "docs.npz", texts(90, 120))
    found = pca(tmp_path / "docs.npz", variance=0.7, workers=address)
    assert len(found.singular_values) == len(pca(texts(90, 120), variance=0.7).singular_values)
    # As if it were worth any time.
    monkeypatch.setattr(_pca, "_WORTH", np.inf)
    plan = pca(tmp_path / "docs.npz", variance=0.7, workers=address, plan_only=True)
    assert plan.estimate.low <= len(found.singular_values) <= plan.estimate.high


@pytest.mark.parametrize(("kind", "form"), [("sparse", "tall"), ("dense", "wide"), ("sparse", "wide")])
def test_an_estimate_has_the_bits_of_as_many_threads(tmp_path, address, monkeypatch, kind, form):
    stored, planned, seats = store(tmp_path, kind, form), _pca_estimate._planned, []

    def same(matrix, budget, found):
        seats.append(found)
        # What threads would hold in memory they read here, in several blocks each.
        return replace(planned(matrix, budget, found)[0], stored=2000), False

    monkeypatch.setattr(_pca_estimate, "_planned", same)
    monkeypatch.setattr(_pca_estimate, "STEPS", 12)
    words = {"variance": 0.6, "weights": "tfidf" if kind == "sparse" else "counts", "scale": form == "wide"}
    found, expected = (estimate_components(stored, workers=workers, **words) for workers in (address, 2))
    assert [one.apart for one in seats] == [2, 0]
    assert replace(found, wall_s=0) == replace(expected, wall_s=0)
    assert [entry.name for entry in tmp_path.iterdir()] == [stored.name]


def test_an_estimate_of_a_text_is_of_what_the_text_says(tmp_path, address, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(_pca_estimate, "STEPS", 16)
    scipy.io.mmwrite(tmp_path / "docs.mtx", texts())
    found = estimate_components(tmp_path / "docs.mtx", 0.9, weights="tfidf", workers=address)
    expected = estimate_components(texts(), 0.9, weights="tfidf")
    assert found.total_variance == pytest.approx(expected.total_variance, rel=1e-12)
    # By random vectors: of sums in another order the number may be the one beside.
    assert found.likely == pytest.approx(expected.likely, abs=1)
    assert [entry.name for entry in tmp_path.iterdir()] == ["docs.mtx"]


def test_an_interrupted_run_goes_on_to_the_same_bits(tmp_path, address, monkeypatch):
    from sash.arrays import _pca_ways

    scipy.sparse.save_npz(tmp_path / "docs.npz", texts())
    monkeypatch.setattr(_pca_ways, "CHUNK", 8)
    words = {"components": 20, "workers": address, "method": "krylov"}
    expected = pca(tmp_path / "docs.npz", out=tmp_path / "whole.zarr", **words)
    chunks, both = [], _pca_methods._both_sides

    fetched = _cluster.Cluster._fetched

    def ends(self, future, told):
        if len(chunks) == 2:
            raise KeyboardInterrupt
        return fetched(self, future, told)

    monkeypatch.setattr(_pca_methods, "_both_sides", lambda centred, own: chunks.append(own.shape[1]) or both(centred, own))
    # In the middle of a pass.
    monkeypatch.setattr(_cluster.Cluster, "_fetched", ends)
    with pytest.raises(KeyboardInterrupt):
        pca(tmp_path / "docs.npz", out=tmp_path / "again.zarr", **words)
    assert not (tmp_path / "again.zarr").exists()
    monkeypatch.setattr(_cluster.Cluster, "_fetched", fetched)
    found = pca(tmp_path / "docs.npz", out=tmp_path / "again.zarr", **words)
    assert chunks == [8, 8, 8, 4]
    np.testing.assert_array_equal(found.scores[...], expected.scores[...])
    np.testing.assert_array_equal(found.components[...], expected.components[...])
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["again.zarr", "docs.npz", "whole.zarr"]


def test_nystrom_takes_a_pass_each_way_there(tmp_path, address, monkeypatch):
    from sash.arrays import _nystrom_ways

    scipy.sparse.save_npz(tmp_path / "docs.npz", texts())
    words = {"method": "nystrom", "workers": address}
    assert pca(tmp_path / "docs.npz", 9, plan_only=True, **words).passes == 3
    whole = pca(tmp_path / "docs.npz", 9, scale=True, **words)
    for name in ("CHUNK", "NARROW"):
        monkeypatch.setattr(_nystrom_ways, name, 4)
    # Means and the sketch, the basis, three chunks.
    assert pca(tmp_path / "docs.npz", 9, plan_only=True, **words).passes == 1 + 1 + 2 * 3
    parts = pca(tmp_path / "docs.npz", 9, scale=True, **words)
    for name in ("singular_values", "components", "scores", "residuals"):
        np.testing.assert_allclose(getattr(parts, name), getattr(whole, name), atol=1e-9)


def test_a_plan_counts_what_this_process_and_all_workers_hold(tmp_path, address):
    np.save(tmp_path / "docs.npy", RNG.standard_normal((3000, 400)))
    words = {"components": 5, "method": "krylov", "plan_only": True}
    plan = pca(tmp_path / "docs.npy", workers=address, **words)
    assert plan.workers == 2
    assert "on 2 Dask workers" in str(plan)
    assert plan.peak_bytes > pca(tmp_path / "docs.npy", workers=2, **words).peak_bytes
    with pytest.raises(DoesNotFit) as caught:
        pca(tmp_path / "docs.npy", 5, budget="1 MiB", workers=address)
    assert (
        pca(tmp_path / "docs.npy", 5, budget=caught.value.least_bytes, workers=address, plan_only=True).peak_bytes
        <= caught.value.least_bytes
    )


def grown(reset):
    """Bytes that this process has, and has had at most since the last reset."""
    from pathlib import Path

    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return [int(lines[name].split()[0]) << 10 for name in ("VmRSS", "VmHWM")]


@pytest.mark.skipif(sys.platform != "linux", reason="the system tells how much a process had on Linux alone")
@pytest.mark.parametrize(("shape", "method"), [((12_000, 500), "krylov"), ((600, 10_000), "gram")])
def test_this_process_and_all_workers_keep_to_the_plan(tmp_path, cluster, address, shape, method):
    np.save(tmp_path / "docs.npy", RNG.standard_normal(shape).astype(np.float32))
    run = partial(pca, tmp_path / "docs.npy", 8, method=method, tolerance=1e-2, workers=address)
    run()
    # The scheduler is in this process, and holds vectors on their way.
    before, mine = cluster.run(grown, True), grown(True)
    run()
    most = sum(after[1] - before[worker][0] for worker, after in cluster.run(grown, False).items()) + grown(False)[1] - mine[0]
    assert most <= run(plan_only=True).peak_bytes


@pytest.mark.skipif(sys.platform != "linux", reason="the system tells how much a process had on Linux alone")
@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_this_process_and_all_workers_keep_to_the_budget_of_an_estimate(tmp_path, cluster, address, monkeypatch, kind):
    monkeypatch.setattr(_pca_estimate, "STEPS", 16)
    if kind == "dense":
        np.save(tmp_path / "docs.npy", RNG.standard_normal((8000, 600)).astype(np.float32))
    else:
        scipy.sparse.save_npz(tmp_path / "docs.npz", texts(8000, 3000))
    run = partial(estimate_components, tmp_path / f"docs.{'npy' if kind == 'dense' else 'npz'}", 0.5, workers=address)
    with pytest.raises(DoesNotFit) as caught:
        run(budget="1 MiB")
    budget = caught.value.least_bytes
    run(budget=budget)
    before, mine = cluster.run(grown, True), grown(True)
    run(budget=budget)
    most = sum(after[1] - before[worker][0] for worker, after in cluster.run(grown, False).items()) + grown(False)[1] - mine[0]
    assert most <= budget


def test_numbers_that_are_not_finite_are_found_by_a_worker_and_told(tmp_path, address):
    values = RNG.standard_normal((300, 40))
    values[200, 3] = np.nan
    np.save(tmp_path / "docs.npy", values)
    with pytest.raises(InputError, match="nan at row 200, column 3; give finite numbers"):
        pca(tmp_path / "docs.npy", 5, out=tmp_path / "model.zarr", workers=address)
    assert [entry.name for entry in tmp_path.iterdir()] == ["docs.npy"]


def test_workers_that_do_not_see_what_is_read_are_named(tmp_path, address, monkeypatch):
    np.save(tmp_path / "docs.npy", RNG.standard_normal((30, 40)))
    elsewhere = (str(tmp_path).encode(), str(tmp_path)[:-1].encode() + b"_")
    original = _cluster.pickled
    monkeypatch.setattr(_cluster, "pickled", lambda value: original(value).replace(*elsewhere))
    for operation in (partial(pca, components=5), partial(estimate_components, variance=0.5)):
        with pytest.raises(InputError, match=r"the worker tcp://.* does not see the same files: .*docs.npy.* Mount .* under the same name"):
            operation(tmp_path / "docs.npy", workers=address)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (lambda folder: np.zeros((20, 30)), "the source is a ndarray in this process.* save it as .npy or .npz and give the path"),
        (lambda folder: texts(20, 30), "the source is a csr_array in this process"),
        (lambda folder: np.load(folder / "docs.npy", mmap_mode="r"), r"give its path, .*docs\.npy"),
    ],
)
def test_what_is_in_memory_is_refused_before_a_cluster_is_asked(tmp_path, source, message):
    np.save(tmp_path / "docs.npy", np.zeros((20, 30)))
    with pytest.raises(InputError, match=message):
        pca(source(tmp_path), 3, workers="tcp://127.0.0.1:9")
    with pytest.raises(InputError, match=message):
        estimate_components(source(tmp_path), 0.5, workers="tcp://127.0.0.1:9")


def test_dense_text_is_refused_with_what_works(tmp_path, address):
    scipy.io.mmwrite(tmp_path / "docs.mtx", RNG.standard_normal((20, 30)))
    with pytest.raises(InputError, match=r"docs.mtx is read into this process's memory.* save it as .npy or .npz"):
        pca(tmp_path / "docs.mtx", 3, workers=address)
