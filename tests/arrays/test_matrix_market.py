"""Matrix Market files: the same matrix as scipy reads, within any budget, and a line's number for whatever is wrong in one."""

import gzip
import subprocess
import sys

import numpy as np
import pytest
import scipy.io
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st

from sash.arrays import _matrix_market as market
from sash.arrays._matrix_open import open_matrix
from sash.errors import DoesNotFit, InputError

REAL = "%%MatrixMarket matrix coordinate real general\n"
BUDGET = 16 << 20


def written(folder, text, name="docs.mtx"):
    path = folder / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


def whole(matrix, step=None):
    """All rows, read `step` at a time."""
    rows = matrix.shape[0]
    step = step or rows
    blocks = [matrix.block(first, min(first + step, rows)) for first in range(0, rows, step)]
    assert all(block.has_canonical_format for block in blocks if scipy.sparse.issparse(block))
    return scipy.sparse.vstack(blocks).toarray() if scipy.sparse.issparse(blocks[0]) else np.vstack(blocks)


@pytest.fixture(params=["memory", "disk"])
def opened(request, tmp_path, monkeypatch):
    """Opens a file into memory, or sorted on disk, whatever its size."""
    if request.param == "disk":
        monkeypatch.setattr(market, "_PER_ENTRY", 1 << 40)
    return lambda path: open_matrix(path, budget_bytes=BUDGET, scratch=tmp_path / "scratch")


def entries(rng, rows, columns, count):
    return rng.integers(0, rows, count), rng.integers(0, columns, count), rng.integers(-3, 9, count)


# A pattern is never skew-symmetric: the format has no such kind.
KINDS = [
    *((field, symmetry) for field in ("integer", "real") for symmetry in ("general", "symmetric", "skew-symmetric")),
    ("pattern", "general"),
    ("pattern", "symmetric"),
]


@pytest.mark.parametrize(("field", "symmetry"), KINDS)
def test_coordinates_of_every_kind_are_read_as_scipy_reads_them(tmp_path, opened, field, symmetry):
    rng = np.random.default_rng(0)
    rows, columns, values = entries(rng, 60, 60, 900)
    if symmetry != "general":
        rows, columns = np.maximum(rows, columns), np.minimum(rows, columns)
    kept = rows > columns if symmetry == "skew-symmetric" else slice(None)
    # Entries come in any order, and some of them twice.
    told = {"integer": [str(value) for value in values], "real": [f"{value / 7:.17g}" for value in values], "pattern": [""] * 900}[field]
    lines = [f"{i + 1} {j + 1} {v}" for i, j, v in zip(rows[kept], columns[kept], np.array(told)[kept], strict=True)]
    path = written(tmp_path, f"%%MatrixMarket matrix coordinate {field} {symmetry}\n% told\n60 60 {len(lines)}\n" + "\n".join(lines) + "\n")
    matrix = opened(path)
    # Of what stands twice the sum may round otherwise.
    np.testing.assert_allclose(whole(matrix, 7), scipy.io.mmread(path).toarray(), rtol=1e-14)
    assert matrix.row_nnz().sum() == matrix.nnz


@pytest.mark.parametrize("symmetry", ["general", "symmetric", "skew-symmetric"])
def test_arrays_of_every_kind_are_read_as_scipy_reads_them(tmp_path, opened, symmetry):
    numbers = {"general": 12 * 12, "symmetric": 78, "skew-symmetric": 66}[symmetry]
    text = "".join(f"{number / 3}\n" for number in range(numbers))
    path = written(tmp_path, f"%%MatrixMarket matrix array real {symmetry}\n12 12\n{text}")
    matrix = opened(path)
    assert not matrix.sparse
    np.testing.assert_array_equal(whole(matrix, 5), scipy.io.mmread(path))


def test_gzip_windows_line_ends_blank_lines_and_fortrans_numbers_are_read(tmp_path, opened):
    text = REAL + "% a comment\r\n3 4 4\r\n\r\n1 1 1.5D2\r\n 2\t3   +2d-1\r\n\r\n3 4 -7\r\n1 2 .5"
    expected = np.array([[150, 0.5, 0, 0], [0, 0, 0.2, 0], [0, 0, 0, -7]])
    for name in ("docs.mtx", "docs.mtx.gz"):
        np.testing.assert_array_equal(whole(opened(written(tmp_path, text, name))), expected)


@pytest.mark.parametrize("field", ["real", "integer", "pattern"])
def test_blank_and_unusual_lines_among_many_parts_leave_no_gap(tmp_path, opened, monkeypatch, field):
    monkeypatch.setattr(market, "_MOST_TEXT", market._LEAST_TEXT)
    rng = np.random.default_rng(1)
    rows, columns, values = entries(rng, 90, 70, 9000)
    told = {"real": [f" {v}.125" for v in values], "integer": [f" {v}" for v in values], "pattern": [""] * 9000}[field]
    lines = [f"{i + 1} {j + 1}{v}" for i, j, v in zip(rows, columns, told, strict=True)]
    # Some parts have a line that is left to scipy's reader, some a blank one, most have none.
    for at in rng.integers(0, 9000, 6):
        lines[at] += "\n \n"
        lines[at // 2] = "0" * 25 + lines[at // 2]
    path = written(tmp_path, f"%%MatrixMarket matrix coordinate {field} general\n90 70 9000\n" + "\n".join(lines))
    np.testing.assert_array_equal(whole(opened(path), 11), scipy.io.mmread(path).toarray())


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6), budget=st.integers(600_000, 1_200_000))
def test_a_file_in_any_order_gives_the_same_rows_within_any_budget(tmp_path_factory, seed, budget):
    rng = np.random.default_rng(seed)
    shape = int(rng.integers(1, 400)), int(rng.integers(1, 300))
    # Some rows have most of the entries, so that parts are far from even; the least budget sorts them all in one row.
    count = int(rng.integers(1, 6000))
    rows = np.minimum((rng.pareto(0.5, count) * 3).astype(int), shape[0] - 1)
    columns, values = rng.integers(0, shape[1], count), rng.integers(-200, 200, count)
    folder = tmp_path_factory.mktemp("market")
    path = folder / "a.mtx"
    np.savetxt(path, np.stack([rows + 1, columns + 1, values], 1), "%d", header=f"{REAL}{shape[0]} {shape[1]} {count}", comments="")
    expected = scipy.sparse.coo_array((values, (rows, columns)), shape=shape).toarray()
    held = open_matrix(path, budget_bytes=1 << 30)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(market, "_PER_ENTRY", 1 << 40)
        matrix = open_matrix(path, budget_bytes=budget, scratch=folder / "scratch")
    np.testing.assert_array_equal(whole(held), expected)
    np.testing.assert_array_equal(whole(matrix, 11), expected)
    matrix.close()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (REAL + "3 3 3\n1 1 1.0\n3 3 2\n", r"ends after line 4 with 2 of 3 entries"),
        (REAL + "3 3 1\n1 1 1.0\n\n3 3 2\n", r"more entries than the 1 that its header says: line 5 is one too many"),
        (REAL + "3 3 2\n1 1 1.0\n\n4 3 2\n", r"line 5: '4 3 2'; the matrix has 3 rows and 3 columns, which count from 1"),
        (REAL + "3 3 2\n1 1 1.0\n3 0 2\n", r"line 4: '3 0 2'; the matrix has 3 rows"),
        (REAL + "3 3 2\n1 1 1.0\n-1 3 2\n", r"line 4: '-1 3 2'; each line has row, column and value"),
        (REAL + "3 3 2\n1 1 1.0\n99999999999999999999 3 2\n", r"line 4: '99999999999999999999 3 2'; Integer out of range"),
        (REAL + "3 3 2\n1 1 nan\n1 3 1\n", r"line 3: '1 1 nan'; give finite numbers"),
        (REAL + "3 3 2\n1 1 2\n1 3 -Inf\n", r"line 4: '1 3 -Inf'; give finite numbers"),
        (REAL + "3 3 2\n1 1 2\n1 3 1e999\n", r"line 4: '1 3 1e999'; out of the range of float64"),
        (REAL + "3 3 2\n1 1 2\n1 3 1.5e\n", r"line 4: '1 3 1.5e'; each line has"),
        (REAL + "3 3 2\n1 1 2\n1 3 1.5.2\n", r"line 4: '1 3 1.5.2'; each line has"),
        (REAL + "3 3 2\n1 1 2 5\n1 3 1\n", r"line 3: '1 1 2 5'; each line has"),
        (REAL + "3 3 2\n1 1\n1 3 1\n", r"line 3: '1 1'; each line has"),
        (REAL + "3 3 2\n1 1 1\n% no\n1 3 1\n", r"line 4: '% no'; each line has"),
        (REAL + "3 3 2\n1 1 1\nthe quick brown fox\n", r"line 4: 'the quick brown fox'; each line has"),
        (REAL + "9 9 9\n" + "\0" * 9000, r"line 3: .* has no end"),
        (REAL + "9 9 3\n1 2 3\n4 5 6\n7 8", r"line 5: '7 8'; .*; the file ends there, and was cut off"),
        (REAL.replace("real", "integer") + "3 3 2\n1 1 2\n1 3 1.5\n", r"line 4: '1 3 1.5'; not whole, in a file of whole numbers"),
        (REAL.replace("real", "pattern") + "3 3 2\n1 1\n1 3 5\n", r"line 4: '1 3 5'; .* a pattern has no values"),
        (REAL.replace("coordinate", "array") + "2 2\n1\n2\n3\n", r"ends after line 5 with 3 of 4 entries"),
        (REAL.replace("coordinate", "array") + "2 2\n1\n2\n3\n4\n5\n", r"line 7 is one too many"),
        (REAL.replace("coordinate", "array") + "2 2\n1 2\n3 4\n", r"line 3: '1 2'; each line of an array has one number"),
        (REAL + "3 3\n1 1 5\n", r"line 2: '3 3'; the first line of numbers says rows, columns and entries"),
        (REAL + "3 0 1\n1 1 5\n", r"line 2: a matrix of 3 × 0"),
        (REAL + "3 3 0\n", r"3 × 3 holds no number but zero"),
        (REAL, r"line 2: ''; the first line"),
        (REAL.replace("general", "symmetric") + "3 4 1\n1 1 1\n", r"symmetric and has 3 rows, 4 columns"),
        (REAL.replace("real", "complex") + "3 3 1\n1 1 1 0\n", r"is complex; give its real part"),
        (REAL.replace("real", "quaternion") + "3 3 1\n1 1 1 0\n", r"line 1: .* of real, integer or pattern"),
        ("", r"line 1: ''; a Matrix Market file begins with"),
        ("row,column\n1,1\n", r"line 1: 'row,column'; a Matrix Market file begins with"),
    ],
)
def test_a_wrong_line_is_told_by_its_number_and_nothing_stays(tmp_path, opened, text, told):
    path = written(tmp_path, text)
    with pytest.raises(InputError, match=told):
        opened(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["docs.mtx"]


def test_a_gzip_file_that_was_cut_off_is_told_by_the_lines_that_were_read(tmp_path, opened):
    rng = np.random.default_rng(0)
    lines = "".join(f"{i % 97 + 1} {i % 89 + 1} {rng.random()}\n" for i in range(9000))
    path = written(tmp_path, f"{REAL}97 89 9000\n{lines}", "docs.mtx.gz")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match=r"cut off or damaged behind line [34]\d\d\d \("):
        opened(path)
    path.write_bytes(b"plain text")
    with pytest.raises(InputError, match=r"cut off or damaged in its header"):
        opened(path)


def test_what_was_sorted_before_is_found_again_and_another_file_is_sorted_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(market, "_PER_ENTRY", 1 << 40)
    path, scratch = written(tmp_path, REAL + "2 2 1\n1 2 3\n"), tmp_path / "scratch"
    open_matrix(path, budget_bytes=BUDGET, scratch=scratch).close()
    before = (scratch / "rows" / "values").stat().st_mtime_ns
    open_matrix(path, budget_bytes=BUDGET, scratch=scratch).close()
    assert (scratch / "rows" / "values").stat().st_mtime_ns == before
    written(tmp_path, REAL + "2 2 1\n2 2 40.5\n")
    assert whole(open_matrix(path, budget_bytes=BUDGET, scratch=scratch)).tolist() == [[0, 0], [0, 40.5]]


def test_a_budget_that_holds_neither_the_matrix_nor_its_sorting_is_refused_with_the_least(tmp_path):
    lines = "".join(f"{i + 1} 1 1\n" for i in range(2000))
    path = written(tmp_path, f"{REAL}2000 3 2000\n{lines}")
    with pytest.raises(DoesNotFit, match="Name an output on disk") as found:
        open_matrix(path, budget_bytes=200_000)
    assert open_matrix(path, budget_bytes=found.value.least_bytes).nnz == 2000
    with pytest.raises(DoesNotFit, match="Sorting") as found:
        open_matrix(path, budget_bytes=50_000, scratch=tmp_path / "scratch")
    assert [entry.name for entry in tmp_path.iterdir()] == ["docs.mtx"]
    assert open_matrix(path, budget_bytes=found.value.least_bytes, scratch=tmp_path / "scratch").nnz == 2000


def test_sums_of_entries_that_come_twice_may_be_larger_than_the_type_of_the_entries(tmp_path, opened):
    path = written(tmp_path, REAL.replace("real", "integer") + "2 2 3\n1 1 100\n2 2 -1\n1 1 100\n")
    assert whole(opened(path)).tolist() == [[200, 0], [0, -1]]


GROWTH = """
import sys
from pathlib import Path
from sash.arrays._matrix_open import open_matrix
from sash.arrays._weights import row_blocks, weighted
from sash.heap import blocks_given_back

def status(name):
    return next(int(line.split()[1]) * 1024 for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))

def read(path, budget, scratch):
    with blocks_given_back(1 << 18):
        matrix = weighted(open_matrix(path, budget_bytes=budget, scratch=Path(scratch)), "tfidf", budget_bytes=budget // 4)
        for start, stop in row_blocks(matrix, budget // 4):
            matrix.block(start, stop)
        matrix.close()

small, path, scratch = sys.argv[1:4]
read(small, 4 << 20, scratch + "-small")  # so that libraries load what they need
for budget in map(int, sys.argv[4:]):
    Path("/proc/self/clear_refs").write_text("5")  # the highest level counts from here
    before = status("VmRSS")
    read(path, budget, f"{scratch}-{budget}")
    print(status("VmHWM") - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_reading_sorting_and_weighing_grow_a_process_by_no_more_than_the_budget(tmp_path):
    rng = np.random.default_rng(0)
    for name, count in (("small", 60_000), ("large", 500_000)):
        # Columns one after another, as some programs write them: no row is whole before the file is.
        rows, columns = rng.integers(0, 5000, count), np.sort(rng.integers(0, 20_000, count))
        scipy.io.mmwrite(tmp_path / f"{name}.mtx", scipy.sparse.coo_array((rng.random(count), (rows, columns)), shape=(5000, 20_000)))
    budgets = [8 << 20, 16 << 20, 100 << 20]
    told = [str(budget) for budget in budgets]
    paths = [tmp_path / "small.mtx", tmp_path / "large.mtx", tmp_path / "scratch"]
    result = subprocess.run([sys.executable, "-c", GROWTH, *paths, *told], capture_output=True, text=True, check=True)
    grown = [int(line) for line in result.stdout.split()]
    assert all(one <= budget for one, budget in zip(grown, budgets, strict=True)), (grown, budgets)
    # Sorted on disk within the first two, in memory within the last.
    assert [(tmp_path / f"scratch-{budget}" / "rows").exists() for budget in budgets] == [True, True, False]
