"""Rates of array jobs: kept, read back, refused; and what is chosen by them."""

import json
import subprocess
import sys
from dataclasses import replace
from types import MappingProxyType

import numpy as np
import pytest

from sash import arrays
from sash.arrays import _rates, array_rates, array_rates_path, blur, convolve, forget_array_rates, stored_array_rates
from sash.arrays._choose import stage_seconds
from sash.arrays._overlap_save import OverlapSave
from sash.arrays._rates import NAMES, read_array_rates
from sash.arrays._stage import Correlate
from sash.errors import DoesNotFit, InputError, SashError

RNG = np.random.default_rng(0)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.delenv("SASH_ARRAY_RATES")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def test_rates_are_measured_once_kept_and_deleted(cache, monkeypatch):
    made_up = read_array_rates((_rates.Path(__file__).parent / "rates.json").read_text())
    machine, versions, threads = _rates._here()
    runs = []
    monkeypatch.setattr(
        _rates, "_measured", lambda: runs.append(1) or replace(made_up, machine=machine, versions=versions, threads=threads)
    )
    assert stored_array_rates() is None
    assert array_rates() == array_rates() == stored_array_rates()
    assert len(runs) == 1
    assert array_rates_path().is_relative_to(cache)
    array_rates(again=True)
    assert len(runs) == 2
    array_rates_path().write_text("{")
    assert array_rates().threads == threads
    assert len(runs) == 3
    # Another machine's file is no measure of this one.
    array_rates_path().write_text(made_up.to_json())
    array_rates()
    assert len(runs) == 4
    assert forget_array_rates()
    assert not forget_array_rates()


def test_a_calibration_gives_every_rate():
    done = subprocess.run([sys.executable, "-m", "sash.arrays._calibration", "1"], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert set(found["values"]) == set(NAMES)
    assert all(0 < value < 1 for value in found["values"].values())


def test_a_calibration_that_fails_is_told(cache, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(SashError, match="ended with exit code 1"):
        array_rates()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": "x"}, "the schema is 'x'"),
        ({"threads": "2"}, "threads is '2'"),
        ({"values": {}}, r"the rate job\.s is None"),
        (None, "this is not JSON"),
    ],
)
def test_files_that_are_no_rates_are_refused(tmp_path, monkeypatch, change, message):
    text = array_rates().to_json()
    (tmp_path / "rates.json").write_text("{" if change is None else json.dumps({**json.loads(text), **change}))
    monkeypatch.setenv("SASH_ARRAY_RATES", str(tmp_path / "rates.json"))
    with pytest.raises(InputError, match=message):
        array_rates()
    monkeypatch.setenv("SASH_ARRAY_RATES", str(tmp_path / "none.json"))
    with pytest.raises(InputError, match="cannot be read"):
        array_rates()


def test_the_quickest_is_chosen_by_the_rates(monkeypatch):
    source = RNG.random((600, 700), dtype=np.float32)
    plan = blur(source, 20, plan_only=True)
    assert plan.method == "multirate"
    by_name = {method.name: method for method in plan.methods}
    assert plan.wall_s == by_name["multirate"].wall_s < by_name["direct"].wall_s
    assert "times as long" in by_name["direct"].verdict
    slow = array_rates()
    values = {**slow.values, "f32.splines.sample_s": 1.0}
    monkeypatch.setattr("sash.arrays._blur.array_rates", lambda: replace(slow, values=MappingProxyType(values)))
    assert blur(source, 20, plan_only=True).method == "direct"


def test_what_does_not_fit_is_not_chosen(monkeypatch):
    source, sigma = RNG.random((300, 4000), dtype=np.float32), 4.0
    out = np.empty_like(source)
    usual = array_rates()
    slow = MappingProxyType({**usual.values, "f32.taps.tap_s": 1e-6})
    monkeypatch.setattr("sash.arrays._blur.array_rates", lambda: replace(usual, values=slow))
    least = {}
    for name in ("direct", "multirate"):
        with pytest.raises(DoesNotFit) as caught:
            blur(source, sigma, out, budget=1, method=name)
        least[name] = caught.value.least_bytes
    assert least["direct"] < least["multirate"]
    assert blur(source, sigma, out, plan_only=True).method == "multirate"
    plan = blur(source, sigma, out, budget=least["multirate"] - 1, plan_only=True)
    assert plan.method == "direct"
    assert "at least" in {method.name: method for method in plan.methods}["multirate"].verdict
    tight = blur(source, sigma, out, budget=least["direct"]).copy()
    np.testing.assert_allclose(blur(source, sigma, budget="1 GiB"), tight, atol=2e-3)


def test_an_axis_with_a_small_sigma_keeps_its_few_taps():
    source = RNG.random((500, 600), dtype=np.float32)
    np.testing.assert_allclose(blur(source, (1, 30)), blur(source, (1, 30), method="direct"), atol=2e-3)
    assert blur(source, (1, 100), plan_only=True).method == "multirate"


def test_kernels_without_structure_are_not_taken_apart():
    source = RNG.random((400, 500), dtype=np.float32)
    plan = convolve(source, RNG.random((101, 101)), plan_only=True)
    assert plan.method.startswith("fft")
    assert "outer products at least" in {method.name: method for method in plan.methods}["separable"].verdict
    two = np.outer(np.hanning(101), np.ones(101)) + np.outer(np.ones(101), np.arange(101.0))
    assert convolve(source, two, plan_only=True, method="separable").method == "separable, 2 outer products"


def test_seconds_grow_with_the_work():
    rates = array_rates()

    def taps(count, size=(1000, 1000)):
        return stage_seconds(Correlate(size, np.dtype(np.float32), "reflect", np.ones(count), np.ones(count), (0, 0)), rates)

    assert taps(7) < taps(31) < taps(95)
    assert taps(7, (2000, 1000)) == pytest.approx(2 * taps(7))
    tile = OverlapSave((1000, 1000), np.dtype(np.float32), "constant", np.ones((25, 25)), (0, 0), (524, 524))
    assert stage_seconds(tile, rates) == pytest.approx(4 * 524**2 * 8.7e-9, rel=0.1)


def test_names_are_those_that_users_type():
    assert str(arrays.array_rates()).startswith("arrays: a made-up machine")
