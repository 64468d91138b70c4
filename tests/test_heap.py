"""Limits of the C library's heap: the innermost hold, and those around it hold again afterwards."""

import ctypes
import platform

import pytest

from sash import heap


class Library:
    """glibc, as far as it is asked; remembers how its limits stand."""

    def __init__(self):
        self.limits, self.trims = {}, 0

    def mallopt(self, which, value):
        self.limits[which] = value

    def malloc_trim(self, kept):
        self.trims += 1


@pytest.fixture
def library(monkeypatch):
    library = Library()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))
    return library


def test_what_stood_before_stands_again(library):
    mapped, trimmed = -3, -1
    with heap.blocks_given_back(1 << 18):
        outer = dict(library.limits)
        assert outer == {mapped: 1 << 18, trimmed: 128 << 10}
        with heap.blocks_kept(4 << 20):
            assert library.limits == {mapped: 4 << 20, trimmed: 64 << 20}
            trims = library.trims
        assert library.limits == outer
        # What was kept goes back at the end.
        assert library.trims == trims + 1
        with pytest.raises(KeyError), heap.blocks_kept():
            raise KeyError
        assert library.limits == outer
    # glibc's own.
    assert library.limits == {mapped: 32 << 20, trimmed: 64 << 20}


def test_other_libraries_are_left_alone(library, monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    with heap.blocks_given_back(), heap.blocks_kept():
        assert not library.limits
