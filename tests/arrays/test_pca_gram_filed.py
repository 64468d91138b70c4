"""Principal components by a Gram matrix on disk: when it is taken, what it holds, and runs that were killed."""

import os
import shutil
import subprocess
import sys
from collections import namedtuple

import numpy as np
import pytest
import scipy.sparse

from sash.arrays import _reduced_filed, pca
from sash.errors import DoesNotFit, InputError


def texts(rows=600, columns=900, seed=0):
    """Counts of words."""
    random = np.random.default_rng(seed)
    return scipy.sparse.csr_array(random.poisson(0.5 * random.random(columns) ** 3, (rows, columns)).astype(float))


def least(matrix, *given, **words):
    """The smallest budget."""
    with pytest.raises(DoesNotFit) as caught:
        pca(matrix, *given, budget=1, **words)
    return caught.value.least_bytes


@pytest.mark.parametrize("shape", [(600, 900), (900, 600)])
@pytest.mark.parametrize("dense", [False, True])
def test_where_the_gram_matrix_does_not_fit_it_is_on_disk(tmp_path, shape, dense):
    matrix = texts(*shape)
    matrix = matrix.toarray() + 3 if dense else matrix
    budget = least(matrix, 9, method="gram")
    plan = pca(matrix, 9, method="gram", budget=budget, plan_only=True)
    assert 8 * 600**2 <= plan.disk_bytes <= 1.1 * 8 * 600**2
    assert "disk      2.89 MiB for the Gram matrix, until all is done" in str(plan)
    assert "the Gram matrix is on disk, 2.89 MiB there" in str(plan)
    found, held = (pca(matrix, 9, method="gram", budget=size) for size in (budget, "1 GiB"))
    assert pca(matrix, 9, method="gram", budget="1 GiB", plan_only=True).disk_bytes == 0
    np.testing.assert_allclose(found.singular_values, held.singular_values, rtol=1e-12)
    np.testing.assert_allclose(found.components, held.components, atol=1e-9)
    np.testing.assert_allclose(found.scores, held.scores, atol=1e-9)
    assert found.residuals.max() < 1e-10


def test_a_full_disk_is_refused_before_work(tmp_path, monkeypatch):
    matrix, usage = texts(), namedtuple("usage", "total used free")
    budget = least(matrix, 9, method="gram")
    held = least(matrix, 9, method="krylov")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1 << 30, 0, 1 << 20))
    message = r"With the Gram matrix on disk it takes .*, and 2\.89 MiB there, where 1\.00 MiB are free"
    with pytest.raises(DoesNotFit, match=message) as caught:
        pca(matrix, 9, method="gram", budget=budget)
    assert caught.value.least_bytes > budget
    with monkeypatch.context() as patched:
        patched.setattr(_reduced_filed, "_kind", lambda folder: "tmpfs")
        with pytest.raises(DoesNotFit, match="and the folder for it is kept in memory"):
            pca(matrix, 9, method="gram", budget=budget)
    # Another method may need none.
    assert pca(matrix, 9, budget=max(held, budget), plan_only=True).method == "krylov"


def test_what_an_interrupted_run_left_needs_no_more_room(tmp_path, monkeypatch):
    matrix, out, usage = texts(), tmp_path / "model.zarr", namedtuple("usage", "total used free")
    budget = least(matrix, 9, method="gram", out=out)
    words = {"method": "gram", "budget": budget, "out": out}
    with monkeypatch.context() as patched:
        patched.setattr(_reduced_filed, "_chased", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            pca(matrix, 9, **words)
    left = sorted(entry.name for entry in (tmp_path / "model.zarr.scratch").iterdir())
    assert left == ["gram.0", "gram.1", "gram.note"]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1 << 30, 0, 1 << 20))
    # To look at the plan leaves it as it is.
    pca(matrix, 9, plan_only=True, **words)
    assert (tmp_path / "model.zarr.scratch" / "gram.note").exists()
    monkeypatch.setattr(_reduced_filed, "_assembled", lambda *given: pytest.fail("begun again"))
    assert len(pca(matrix, 9, **words).singular_values) == 9
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.zarr"]


@pytest.mark.parametrize("harm", ["gram.0", "gram.note", "truncated", "garbled"])
def test_files_that_were_harmed_are_made_again(tmp_path, monkeypatch, harm):
    matrix, out = texts(), tmp_path / "model.zarr"
    words = {"method": "gram", "budget": least(matrix, 9, method="gram", out=out), "out": out}
    with monkeypatch.context() as patched:
        patched.setattr(_reduced_filed, "_chased", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            pca(matrix, 9, **words)
    scratch = tmp_path / "model.zarr.scratch"
    if harm == "truncated":
        os.truncate(scratch / "gram.1", 999)
    elif harm == "garbled":
        whole = (scratch / "gram.note").read_bytes()
        (scratch / "gram.note").write_bytes(whole[: len(whole) // 2])
    else:
        (scratch / harm).unlink()
    found = pca(matrix, 9, **words)
    np.testing.assert_allclose(found.singular_values, pca(matrix, 9).singular_values, rtol=1e-9)


def test_what_cannot_be_done_leaves_nothing(tmp_path):
    matrix = scipy.sparse.csr_array(np.outer(np.arange(700.0), np.ones(600)) + np.eye(700, 600) * (np.arange(600) < 5))
    with pytest.raises(InputError, match=r"has the rank 6.*; give 6 or fewer"):
        pca(matrix, 9, method="gram", budget=least(matrix, 9, method="gram", out=tmp_path / "a.zarr"), out=tmp_path / "a.zarr")
    assert not list(tmp_path.iterdir())


KILLED = """
import os, signal, sys
import numpy as np, scipy.sparse
from sash.arrays import _band, _gram, _reduced_filed, _triangle, pca

random = np.random.default_rng(0)
matrix = scipy.sparse.csr_array(random.poisson(0.5 * random.random(700) ** 3, (560, 700)).astype(float))
folder, budget = sys.argv[1], int(sys.argv[2])
words = dict(variance=0.9, method="gram", budget=budget, workers=1)
_reduced_filed.NOTED_S = 0.0
write, note, strip = _triangle.Triangle.write, _reduced_filed._Note.write, _gram.Gram.strip

def run(kill_at, out):
    count, made = 0, []

    def killed(self, place, block):
        nonlocal count
        count += 1
        if count == kill_at:
            # Half of it reaches the file.
            block[len(block) // 2 :] = np.nan
            write(self, place, block)
            os.kill(os.getpid(), signal.SIGKILL)
        write(self, place, block)

    _triangle.Triangle.write = killed
    _gram.Gram.strip = lambda *given: made.append(1) or strip(*given)
    pca(matrix, out=out, **words)
    print(count, len(made), flush=True)

for kill_at in map(int, sys.argv[3:]):
    pid = os.fork()
    if not pid:
        run(kill_at, folder + "/killed.zarr")
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
run(0, folder + "/killed.zarr")
run(0, folder + "/whole.zarr")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_killed_in_the_middle_of_a_write_it_goes_on_to_the_same_bits(tmp_path):
    import zarr

    matrix = scipy.sparse.csr_array(np.random.default_rng(0).poisson(0.5 * np.random.default_rng(0).random(700) ** 3, (560, 700)) * 1.0)
    budget = least(matrix, variance=0.9, method="gram", workers=1, out=tmp_path / "whole.zarr")
    # While the matrix is made, within passes that write and between them, and while the band is chased.
    kills = [7, 30, 9, 14, 40, 3, 60, 25, 11]
    command = [sys.executable, "-c", KILLED, str(tmp_path), str(budget), *map(str, kills)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    *ends, again, whole = run.stdout.splitlines()
    assert ends == ["-9"] * len(kills)
    # The last one had nothing to make, and wrote less.
    assert int(again.split()[1]) == 0 < int(whole.split()[1])
    assert int(again.split()[0]) < int(whole.split()[0]) / 2
    for name in ("scores", "loadings", "singular_values", "residuals"):
        first, second = (zarr.open_group(tmp_path / f"{one}.zarr", mode="r")[name][...] for one in ("killed", "whole"))
        assert np.array_equal(first, second)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["killed.zarr", "whole.zarr"]


MEASURED = """
import re, sys
from pathlib import Path
import numpy as np, scipy.sparse
from sash.arrays import pca

def status(name):
    return int(re.search(name + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) << 10

random = np.random.default_rng(0)
def texts(rows, columns):
    made = scipy.sparse.random_array((rows, columns), density=0.005, rng=random, format="csr")
    return scipy.sparse.csr_array(made.multiply(0.2 + random.random(columns) ** 3).tocsr())
budget, words = int(sys.argv[1]), dict(method="gram", workers=2)
pca(texts(600, 900), 8, budget=budget, **words)
matrix = texts(3000, 6000)
plan = pca(matrix, 8, budget=budget, plan_only=True, **words)
assert plan.disk_bytes, plan
Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
found = pca(matrix, 8, budget=budget, **words)
print(plan.peak_bytes, status("VmHWM") - before, found.residuals.max())
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="needs Linux's account of a process")
def test_it_holds_less_than_a_third_of_the_gram_matrix_and_no_more_than_planned():
    gram = 8 * 3000**2
    run = subprocess.run([sys.executable, "-c", MEASURED, str(gram // 3)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    planned, grown, residual = run.stdout.split()
    assert int(grown) <= int(planned) <= gram // 3
    assert float(residual) < 1e-10
