"""The journal of a long run: what was done counts, what was cut off does not, and what changed is named."""

import pytest

from sash.arrays import _journal
from sash.arrays._journal import Journal
from sash.errors import InputError

FACTS = {"source": {"path": "/a.npy", "size": 3, "mtime_ns": 1}, "tile": (48, 64), "kernel": "0" * 64}


@pytest.fixture
def out(tmp_path):
    """An output that an interrupted run left."""
    (tmp_path / "out.npy.partial").write_bytes(b"numbers")
    return tmp_path / "out.npy"


def written(out, numbers, facts=FACTS):
    journal = Journal(out, facts)
    journal.begin()
    for number in numbers:
        journal.done(number)
    return journal


def test_what_was_done_is_known_to_the_next_run(out):
    journal = written(out, [3, 0, 12])
    assert Journal(out, FACTS).begun(restart=False) == {0, 3, 12}
    journal.remove()
    assert list(out.parent.iterdir()) == []


def test_without_a_journal_or_without_the_output_a_run_starts_anew(out):
    assert Journal(out, FACTS).begun(restart=False) is None
    assert list(out.parent.iterdir()) == []
    written(out, [1])
    assert Journal(out, FACTS).begun(restart=False) is None
    assert list(out.parent.iterdir()) == []


def test_a_restart_takes_everything_away(out):
    written(out, [1])
    assert Journal(out, {}).begun(restart=True) is None
    assert list(out.parent.iterdir()) == []


@pytest.mark.parametrize("lost", range(1, 8))
def test_a_line_that_was_cut_off_does_not_count_and_does_not_spoil_the_next(out, lost):
    journal = written(out, [7, 12, 345])
    journal.path.write_bytes(journal.path.read_bytes()[:-lost])
    before = {7} if lost > 4 else {7, 12}
    again = Journal(out, FACTS)
    assert again.begun(restart=False) == before
    again.begin()
    again.done(6)
    assert Journal(out, FACTS).begun(restart=False) == before | {6}


def test_since_another_boot_only_what_was_marked_counts(out, monkeypatch):
    journal = written(out, [3, 0])
    # Noted while what the first two wrote went to the disk: not among those that the mark is about.
    journal.done(12)
    journal.mark(2)
    journal.done(5)
    assert Journal(out, FACTS).begun(restart=False) == {0, 3, 5, 12}
    monkeypatch.setattr(_journal, "boot", lambda: "another")
    assert Journal(out, FACTS).begun(restart=False) == {0, 3}


def test_a_later_mark_does_not_count_what_an_earlier_boot_lost(out, monkeypatch):
    written(out, [3, 0, 12]).mark(1)
    monkeypatch.setattr(_journal, "boot", lambda: "another")
    again = Journal(out, FACTS)
    assert again.begun(restart=False) == {3}
    again.begin()
    again.done(0)
    again.mark(2)
    again.done(7)
    assert Journal(out, FACTS).begun(restart=False) == {0, 3, 7}
    monkeypatch.setattr(_journal, "boot", lambda: "a third")
    assert Journal(out, FACTS).begun(restart=False) == {0, 3}


def test_after_a_refusal_of_the_disk_only_what_was_marked_counts(out):
    journal = written(out, [3, 0])
    journal.mark(1)
    journal.lost()
    journal.done(12)
    assert Journal(out, FACTS).begun(restart=False) == {3}


def test_where_the_system_does_not_tell_each_process_is_a_boot(monkeypatch, tmp_path):
    monkeypatch.setattr(_journal, "_BOOT", tmp_path / "none")
    _journal.boot.cache_clear()
    try:
        first = _journal.boot()
        assert first == _journal.boot()
        _journal.boot.cache_clear()
        assert first != _journal.boot()
    finally:
        _journal.boot.cache_clear()


def test_a_mark_of_more_than_there_is_ends_what_counts(out):
    journal = written(out, [3])
    journal.mark(2)
    journal.done(4)
    assert Journal(out, FACTS).begun(restart=False) == {3}


def test_a_journal_without_a_whole_first_line_is_no_journal(out):
    for content in (b"", b'{"schema": 1', b"nothing\n3\n", b"3\n"):
        out.with_name("out.npy.partial").write_bytes(b"numbers")
        out.with_name("out.npy.journal").write_bytes(content)
        assert Journal(out, FACTS).begun(restart=False) is None
        assert list(out.parent.iterdir()) == []


def test_facts_that_changed_are_named(out):
    written(out, [1])
    changed = {"source": {"path": "/a.npy", "size": 3, "mtime_ns": 2}, "tile": (32, 64), "kernel": "1" * 64, "new": True}
    with pytest.raises(
        InputError, match=r"changed: source \(mtime_ns\), tile \(\[48, 64\] → \[32, 64\]\), kernel, new \(null → true\)\. Undo"
    ):
        Journal(out, changed).begun(restart=False)
    assert Journal(out, FACTS).begun(restart=False) == {1}


def test_a_folder_of_an_unfinished_output_is_taken_away_too(tmp_path):
    (tmp_path / "out.zarr.partial").mkdir()
    (tmp_path / "out.zarr.partial" / "zarr.json").write_text("{}")
    written(tmp_path / "out.zarr", [1]).remove()
    assert list(tmp_path.iterdir()) == []


def test_the_journal_of_a_link_lies_beside_the_output_itself(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "a.npy").symlink_to(tmp_path / "far" / "b.npy")
    assert Journal(tmp_path / "a.npy", {}).partial == tmp_path / "far" / "b.npy.partial"
